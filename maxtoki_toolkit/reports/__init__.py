"""Run the project's notebooks, or your own, with other parameters: an executed notebook, an HTML page, and how they were made.

`features` writes a page of an autoencoder's features. The others need the extra "notebook": `pip install -c
constraints.txt -e ".[notebook]"`.
"""

from .._doors import guard
from .catalogue import catalogue, parameters, preset
from .cells import cells_with, read_cells
from .features import features
from .run import run
from .run_all import run_all
from .run_batch import run_batch
from .saver import saver

__all__ = [
    "catalogue",
    "cells_with",
    "features",
    "parameters",
    "preset",
    "read_cells",
    "run",
    "run_all",
    "run_batch",
    "saver",
]

guard(globals(), __all__)
