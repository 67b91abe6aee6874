"""Training: a reproducible supervised loop and the usual small changes of a face."""

from .jitter import Jitter
from .loop import Epoch, History, fit, predict

__all__ = ["Epoch", "History", "Jitter", "fit", "predict"]
