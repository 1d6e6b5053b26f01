"""Everything that knows tokens and tensors, and nothing of AnnData."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "build": ["build_model"],
        "classifier": ["CellClassifier"],
        "extend": ["extend_model"],
        "feature_edits": ["edited_features"],
        "load": ["load_model", "save_model"],
        "megatron": ["from_megatron", "to_megatron"],
        "model": ["MaxTokiModel"],
        "sae": ["SparseAutoencoder", "save_sae"],
        "time_head": ["TimeHead"],
        "vocabulary": ["Vocabulary"],
    },
)
