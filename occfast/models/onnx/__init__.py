"""Networks in ONNX files: as modules of PyTorch, or run by ONNX Runtime."""

from .errors import UnsupportedOperator
from .module import OnnxModule, read_onnx
from .runtime import OnnxNetwork

__all__ = ["OnnxModule", "OnnxNetwork", "UnsupportedOperator", "read_onnx"]
