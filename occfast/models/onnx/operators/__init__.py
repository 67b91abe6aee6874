"""One function for each ONNX operator, in files by kind."""

from . import activations, arithmetic, layers, pooling, reductions, resizing, shapes
from .table import OPERATORS

__all__ = ["OPERATORS", "activations", "arithmetic", "layers", "pooling", "reductions", "resizing", "shapes"]
