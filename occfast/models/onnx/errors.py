"""What an ONNX file may lack besides being damaged."""

from __future__ import annotations

from collections.abc import Sequence


class UnsupportedOperator(ValueError):
    """A network of an ONNX file can't be read as a module, though ONNX Runtime may run it.

    Attributes:
        operators: What is missing, such as "NonMaxSuppression" or "Conv (weights that depend on the images)".
        opset: Version of the operator set.
    """

    def __init__(self, source: str, operators: Sequence[str], opset: int) -> None:
        super().__init__(
            f"{source}: expected operators that can be followed, got {', '.join(operators)} (opset {opset})"
        )
        self.operators, self.opset = tuple(operators), opset
        self._source = source

    def __reduce__(self) -> tuple[type[UnsupportedOperator], tuple[str, tuple[str, ...], int]]:
        return type(self), (self._source, self.operators, self.opset)


class UnsupportedForm(Exception):
    """A form of a known operator that can't be followed; the message says which."""


class Malformed(Exception):
    """A node that breaks the rules of its operator; the message says how."""


__all__ = ["Malformed", "UnsupportedForm", "UnsupportedOperator"]
