"""Training: recipes, one training loop, and trained networks as files."""

from ..models.weights import Trained, load_into
from ..models.weights import load as load_network
from .augment import Augment
from .export import Exported, export_onnx
from .faces import open_data, split, validation_of
from .jitter import Jitter
from .loop import Epoch, History, fit, predict
from .recipe import Recipe
from .recipe import load as load_recipe
from .session import Result, train

__all__ = [
    "Augment",
    "Epoch",
    "Exported",
    "History",
    "Jitter",
    "Recipe",
    "Result",
    "Trained",
    "export_onnx",
    "fit",
    "load_into",
    "load_network",
    "load_recipe",
    "open_data",
    "predict",
    "split",
    "train",
    "validation_of",
]
