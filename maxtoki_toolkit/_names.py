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


def require_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Raise if a setting is none of the words that it may be.

    Examples
    --------
    >>> try:
    ...     require_choice("mode", "inhibits", ["delete", "inhibit"])
    ... except ValueError as error:
    ...     print(error)
    There is no mode 'inhibits'; choose from delete, inhibit. Did you mean 'inhibit'?
    """
    if value not in (known := list(known)):
        raise ValueError(
            f"There is no {name} {value!r}; choose from {', '.join(known)}.{closest(value, known)}"
        )
