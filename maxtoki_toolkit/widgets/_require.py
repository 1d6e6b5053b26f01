"""What the widgets need beyond a plain installation."""

from __future__ import annotations


def require_widgets() -> None:
    """Raise if ipywidgets, plotly or what plotly needs for widgets is not installed."""
    try:
        import anywidget  # noqa: F401
        import ipywidgets  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'The widgets need {error.name}, of the extra "notebook": pip install -c constraints.txt -e ".[notebook]".'
        ) from None
