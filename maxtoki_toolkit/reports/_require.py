"""What reports need beyond a plain installation."""

from __future__ import annotations


def require_reports() -> None:
    """Raise if what runs notebooks and turns them into pages is not installed."""
    try:
        import ipykernel  # noqa: F401
        import jupytext  # noqa: F401
        import nbconvert  # noqa: F401
        import papermill  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'Reports need {error.name}, of the extra "notebook": pip install -c constraints.txt -e ".[notebook]".'
        ) from None
