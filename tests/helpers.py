"""What tests of many modules do alike."""

from anndata import AnnData


def on_copy(function, adata: AnnData, *args, **settings) -> AnnData:
    """Call a function that writes into cells with a copy of them, and return the copy."""
    copied = adata.copy()
    function(copied, *args, **settings)
    return copied
