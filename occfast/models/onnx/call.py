"""One node of an ONNX graph, with its arguments and attributes checked as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .builder import Value
from .errors import Malformed, UnsupportedForm
from .tensors import Tensors

_LARGEST = 1 << 31
_FLOAT, _INT, _STRING, _TENSOR, _FLOATS, _INTS = 1, 2, 3, 4, 6, 7


class Call:
    """A call of an operator.

    Args:
        node: The NodeProto.
        inputs: Its arguments; None for those left out.
        opset: Version of the operator set.
        tensors: Reads tensors among the attributes.
        used: Whether each output is read by a node or is the network's.
    """

    def __init__(
        self, node: Any, inputs: Sequence[Value | None], opset: int, tensors: Tensors, used: Sequence[bool]
    ) -> None:
        self.kind: str = node.op_type
        self.opset, self.used = opset, list(used)
        self._inputs, self._tensors = list(inputs), tensors
        self._attributes: dict[str, Any] = {}
        for attribute in node.attribute:
            if attribute.name in self._attributes or attribute.ref_attr_name:
                raise Malformed(f"attribute {attribute.name!r:.80} is given twice or refers to a function's")
            self._attributes[attribute.name] = attribute
        self._read = set[str]()

    # Arguments ----------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Number of arguments, those left out included."""
        return len(self._inputs)

    def has(self, k: int) -> bool:
        """Return whether argument ``k`` is given."""
        return k < len(self._inputs) and self._inputs[k] is not None

    def value(self, k: int = 0) -> Value:
        """Return argument ``k``."""
        found = self._inputs[k] if k < len(self._inputs) else None
        if found is None:
            raise Malformed(f"argument {k + 1} is missing")
        return found

    def values(self) -> list[Value]:
        """Return all arguments."""
        return [self.value(k) for k in range(len(self._inputs))]

    def constant(self, k: int, what: str) -> Tensor:
        """Return the tensor of argument ``k``, which may depend neither on the images nor on the batch size."""
        value = self.value(k)
        if value.varies or value.sized:
            raise UnsupportedForm(f"{what} that depend on the images")
        return value.samples[0]

    def weight(self, k: int, what: str) -> Tensor | None:
        """Return as :meth:`constant`, or None if the argument is left out."""
        return self.constant(k, what) if self.has(k) else None

    def numbers(self, k: int, what: str) -> list[int]:
        """Return the whole numbers of argument ``k``."""
        tensor = self.constant(k, what)
        if tensor.is_floating_point() or tensor.dim() > 1 or tensor.numel() > 64:
            raise Malformed(f"expected {what} as whole numbers, got {list(tensor.shape)} of {tensor.dtype}")
        return [int(number) for number in tensor.reshape(-1).tolist()]

    def scalar(self, k: int, what: str) -> float | None:
        """Return the number of argument ``k``, or None if it is left out."""
        if not self.has(k):
            return None
        tensor = self.constant(k, what)
        if tensor.numel() != 1:
            raise Malformed(f"expected one number for {what}, got {list(tensor.shape)}")
        return float(tensor.item())

    # Attributes ---------------------------------------------------------------------------------------

    def _attribute(self, name: str, kind: int) -> Any:
        self._read.add(name)
        found = self._attributes.get(name)
        if found is not None and found.type != kind:
            raise Malformed(f"attribute {name} has another type ({found.type}, expected {kind})")
        return found

    def given(self, name: str) -> bool:
        """Return whether an attribute is given."""
        return name in self._attributes

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is a whole number."""
        found = self._attribute(name, _INT)
        return default if found is None else int(found.i)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return an attribute that is 0 or 1."""
        value = self.integer(name, int(default))
        if value not in (0, 1):
            raise Malformed(f"expected 0 or 1 for attribute {name}, got {value}")
        return bool(value)

    def number(self, name: str, default: float) -> float:
        """Return an attribute that is a float."""
        found = self._attribute(name, _FLOAT)
        return default if found is None else float(found.f)

    def text(self, name: str, default: str, choices: Sequence[str] = ()) -> str:
        """Return an attribute that is one of some words."""
        found = self._attribute(name, _STRING)
        value = default if found is None else bytes(found.s).decode("utf-8", "replace")
        if choices and value not in choices:
            raise UnsupportedForm(f"{name} {value!r:.40}")
        return value

    def integers(self, name: str, count: int | None = None, least: int | None = None) -> list[int] | None:
        """Return an attribute that is a list of whole numbers; None if it is not given."""
        found = self._attribute(name, _INTS)
        if found is None:
            return None
        values = [int(value) for value in found.ints]
        if (count is not None and len(values) != count) or len(values) > 64:
            raise Malformed(f"expected {count or 'some'} numbers for attribute {name}, got {len(values)}")
        if any(abs(value) > _LARGEST or (least is not None and value < least) for value in values):
            raise Malformed(f"expected numbers of at least {least} for attribute {name}, got {values}")
        return values

    def floats(self, name: str) -> list[float] | None:
        """Return an attribute that is a list of floats; None if it is not given."""
        found = self._attribute(name, _FLOATS)
        return None if found is None else [float(value) for value in found.floats]

    def tensor(self, name: str) -> Tensor:
        """Return an attribute that is a tensor."""
        found = self._attribute(name, _TENSOR)
        if found is None:
            raise Malformed(f"attribute {name} is missing")
        return self._tensors.read(found.t, name)

    def axis(self, rank: int, default: int, name: str = "axis") -> int:
        """Return an attribute that is a dimension, in [0, rank)."""
        return positive(self.integer(name, default), rank, name)

    def check_all_read(self) -> None:
        """Raise if an attribute was not read: it may change the result."""
        if unknown := sorted(set(self._attributes) - self._read):
            raise UnsupportedForm(f"attribute {', '.join(unknown)}"[:120])

    def alone(self) -> None:
        """Raise if outputs besides the first are read."""
        if any(self.used[1:]):
            raise UnsupportedForm("outputs besides the first")


def positive(axis: int, rank: int, name: str = "axis") -> int:
    """Return a dimension counted from the first."""
    if not -rank <= axis < rank:
        raise Malformed(f"expected {name} in [{-rank}, {rank}), got {axis}")
    return axis % rank


__all__ = ["Call", "positive"]
