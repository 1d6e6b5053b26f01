"""Train models. Needs the extra `train`."""

from .._doors import guard
from .lora import lora
from .pretrain import pretrain
from .temporal import temporal

__all__ = ["lora", "pretrain", "temporal"]

guard(globals(), __all__)
