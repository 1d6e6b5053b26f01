"""Names that were not found, and those that may have been meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def closest(name: object, known: Iterable[object]) -> str:
    """A question that names what may have been meant, or nothing.

    Examples
    --------
    >>> closest("donor", ["cell_type", "Donor_ID"])
    " Did you mean 'Donor_ID'?"
    """
    names = {str(other).lower(): other for other in known}
    close = get_close_matches(str(name).lower(), names, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(names[other]) for other in close)}?" if close else ""
