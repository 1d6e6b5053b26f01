"""Train models. Needs the extra `train`."""

from .pretrain import pretrain

__all__ = ["pretrain"]
