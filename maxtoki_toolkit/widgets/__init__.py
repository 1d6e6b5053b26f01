"""Explore results in JupyterLab.

Needs the extra "notebook": `pip install -c constraints.txt -e ".[notebook]"`. Where nobody can click, as in a
notebook that is executed by papermill or exported to HTML, there is a picture in place of the widget.
"""

from .explore import explore
from .features import features
from .heads import heads

__all__ = ["explore", "features", "heads"]
