"""Construction of a torch.fx graph, with the shape of every value for two batch sizes.

Values that depend on the images are nodes of the graph. All others are computed while the file is read. Shapes are
known for two batch sizes, so that arithmetic with the batch size is seen: what differs between them belongs to the
batch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import Malformed, UnsupportedForm

#: Two batch sizes that no other dimension is likely to have as a factor in both.
BATCHES = (7, 11)
#: Numbers for one image that a value may have.
MOST_NUMBERS = 1 << 28
#: Numbers that may be computed while a file is read, besides four times those of its tensors.
_FREE_NUMBERS = 1 << 22


@dataclass(eq=False)
class Value:
    """A value of the network.

    Attributes:
        node: Node of the graph; None for a constant.
        samples: The value for both batch sizes: tensors without storage (device "meta") for a node.
    """

    node: fx.Node | None
    samples: tuple[Tensor, Tensor]

    @property
    def varies(self) -> bool:
        """Whether the value depends on the images."""
        return self.node is not None

    @property
    def sized(self) -> bool:
        """Whether the value is a constant that depends on the batch size."""
        a, b = self.samples
        return self.node is None and a is not b and not (a.shape == b.shape and torch.equal(a, b))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape for the first of the two batch sizes."""
        return tuple(self.samples[0].shape)

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return self.samples[0].dim()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""
        return self.samples[0].dtype

    @property
    def batched(self) -> bool:
        """Whether the first dimension, and no other one, is the batch."""
        a, b = (tuple(sample.shape) for sample in self.samples)
        return self.varies and bool(a) and (a[0], b[0]) == BATCHES and a[1:] == b[1:]


class Builder:
    """A graph under construction.

    Args:
        batch: Batch size that the file fixes; None if it leaves it open.
    """

    def __init__(self, batch: int | None) -> None:
        self.batch = batch
        self.graph, self.root = fx.Graph(), nn.Module()
        self._counts: dict[str, int] = {}
        self._attributes: dict[int, tuple[Tensor, fx.Node]] = {}
        self._left = _FREE_NUMBERS
        self._batch_size: fx.Node | None = None
        self._images: fx.Node | None = None

    # Values -------------------------------------------------------------------------------------------

    def images(self, shape: Sequence[int]) -> Value:
        """Add the input, [N, *shape]."""
        self._images = self.graph.placeholder("images")
        first, second = (torch.empty((batch, *shape), device="meta") for batch in BATCHES)
        return self._made(self._images, (first, second))

    def stored(self, tensor: Tensor) -> Value:
        """Return a constant of the file."""
        self._left += 4 * tensor.numel()
        return self.constant(tensor)

    def constant(self, tensor: Tensor, second: Tensor | None = None) -> Value:
        """Return a constant; ``second`` is its value for the second batch size."""
        return Value(None, (tensor, tensor if second is None else second))

    def _made(self, node: fx.Node, samples: tuple[Any, Any]) -> Value:
        if not all(isinstance(sample, Tensor) for sample in samples):
            raise UnsupportedForm("a result that is no tensor")
        first, second = samples
        if first.dim() != second.dim() or first.dtype != second.dtype:
            raise UnsupportedForm("a result whose form depends on the batch size")
        if first.numel() > MOST_NUMBERS * BATCHES[0]:
            raise Malformed(f"its result has {first.numel() // BATCHES[0]:,} numbers for an image")
        node.meta["shape"] = tuple(tuple(sample.shape) for sample in samples)
        return Value(node, (first, second))

    # Calls --------------------------------------------------------------------------------------------

    def call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Value:
        """Add a call of a function, or of a method by its name; constants alone are computed now.

        Args:
            target: Function, or name of a method of the first argument.
            *args: Arguments, among them values; lists of values are allowed.
            **kwargs: Further arguments.
        """
        found = _values((args, kwargs))
        if not any(value.varies for value in found):
            return self._computed(target, args, kwargs, found)
        if any(value.sized for value in found):
            raise UnsupportedForm("arithmetic of images and the batch size")
        samples = tuple(self._run(target, args, kwargs, k, meta=True) for k in (0, 1))
        given, named = _mapped((args, kwargs), self._argument)
        kind = "call_method" if isinstance(target, str) else "call_function"
        node = self.graph.create_node(kind, target, tuple(given), named)
        return self._made(node, (samples[0], samples[1]))

    def parts(self, target: Callable[..., Any], count: int, *args: Any) -> tuple[Value, ...]:
        """Add a call of a function that returns so many tensors."""
        found = _values(args)
        if not any(value.varies for value in found):
            return tuple(self.call(lambda *given, k=k: target(*given)[k], *args) for k in range(count))
        samples = [self._run(target, args, {}, k, meta=True) for k in (0, 1)]
        if any(len(sample) != count for sample in samples):
            raise Malformed(f"it has {count} outputs, its argument has {len(samples[0])} parts")
        node = self.graph.call_function(target, tuple(_mapped(args, self._argument)))
        return tuple(
            self._made(self.graph.call_function(operator.getitem, (node, k)), (samples[0][k], samples[1][k]))
            for k in range(count)
        )

    def module(self, module: nn.Module, name: str, weights: dict[str, Tensor], value: Value) -> Value:
        """Add a call of a module.

        Args:
            module: Module on the device "meta", which its real weights replace.
            name: First part of its name in the root.
            weights: Parameters and buffers by name; float32.
            value: Its argument.
        """
        module.eval()
        with torch.no_grad():
            samples = tuple(module(sample) for sample in value.samples)
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for key, tensor in weights.items():
            if tuple(own[key].shape) != tuple(tensor.shape) or tensor.dtype != torch.float32:
                raise Malformed(
                    f"expected {key} of {list(own[key].shape)} in float32, got {list(tensor.shape)} in "
                    + str(tensor.dtype).removeprefix("torch.")
                )
            if key in module._parameters:
                setattr(module, key, nn.Parameter(tensor))
            else:
                setattr(module, key, tensor)
        path = self.name(name)
        self.root.add_module(path, module)
        return self._made(self.graph.call_module(path, (self.node(value),)), (samples[0], samples[1]))

    def _computed(self, target: Any, args: Any, kwargs: Any, found: list[Value]) -> Value:
        """Return the value of a call of constants."""
        one = all(value.samples[0] is value.samples[1] for value in found)
        results = []
        for k in (0,) if one else (0, 1):
            shown = self._run(target, args, kwargs, k, meta=True)
            self._left -= shown.numel()
            if self._left < 0:
                raise Malformed("constants are computed that are much larger than the file")
            results.append(self._run(target, args, kwargs, k, meta=False))
        return self.constant(results[0], results[-1])

    @staticmethod
    @torch.no_grad()
    def _run(target: Any, args: Any, kwargs: Any, k: int, *, meta: bool) -> Any:
        def sample(value: Value) -> Tensor:
            found = value.samples[k]
            return found.to("meta") if meta and found.device.type != "meta" else found

        given, named = _mapped((args, kwargs), sample)
        if isinstance(target, str):
            return getattr(given[0], target)(*given[1:], **named)
        return target(*given, **named)

    def node(self, value: Value) -> fx.Node:
        """Return the node of a value; a constant becomes a buffer of the root."""
        if value.node is not None:
            return value.node
        if value.sized:
            raise UnsupportedForm("a constant that depends on the batch size")
        tensor = value.samples[0]
        if id(tensor) not in self._attributes:
            name = self.name("constant")
            self.root.register_buffer(name, tensor.contiguous())
            assert self._images is not None
            with self.graph.inserting_after(self._images):  # before everything that may read it
                self._attributes[id(tensor)] = (tensor, self.graph.get_attr(name))
        return self._attributes[id(tensor)][1]

    def _argument(self, value: Value) -> Any:
        return self.node(value)

    def name(self, kind: str) -> str:
        """Return a new name in the root. Names of the file are not used, since names become code."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}_{self._counts[kind]}"

    # Sizes --------------------------------------------------------------------------------------------

    def batch_size(self) -> fx.Node:
        """Return the node of the images' batch size."""
        if self._batch_size is None:
            assert self._images is not None
            with self.graph.inserting_after(self._images):
                self._batch_size = self.graph.call_method("size", (self._images, 0))
        return self._batch_size

    def size(self, first: int, second: int) -> int | fx.Node:
        """Return a size of which the values for both batch sizes are given, as a number or a node."""
        if first == second:
            return first
        factor = first // BATCHES[0]
        if (factor * BATCHES[0], factor * BATCHES[1]) != (first, second):
            raise UnsupportedForm("a size that is no multiple of the batch size")
        if factor == 1:
            return self.batch_size()
        return self.graph.call_function(operator.mul, (self.batch_size(), factor))

    def viewed(self, method: str, value: Value, first: Sequence[int], second: Sequence[int]) -> Value:
        """Add a call of ``reshape`` or ``expand`` to sizes that are given for both batch sizes."""
        if not value.varies and list(first) == list(second):
            return self.call(method, value, list(first))
        samples = []
        for sample, dims in zip(value.samples, (first, second), strict=True):
            samples.append(getattr(sample.to("meta"), method)(list(dims)))
        varied = [k for k, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
        sizes: list[int | fx.Node] = list(first)
        if method == "reshape" and len(varied) == 1:
            sizes[varied[0]] = -1
        else:
            for k in varied:
                sizes[k] = self.size(first[k], second[k])
        node = self.graph.call_method(method, (self.node(value), *sizes))
        return self._made(node, (samples[0], samples[1]))


def _mapped(args: Any, function: Callable[[Value], Any]) -> Any:
    if isinstance(args, Value):
        return function(args)
    if type(args) in (list, tuple):
        return type(args)(_mapped(arg, function) for arg in args)
    if type(args) is dict:
        return {key: _mapped(arg, function) for key, arg in args.items()}
    return args


def _values(args: Any) -> list[Value]:
    found: list[Value] = []
    _mapped(args, found.append)
    return found


__all__ = ["BATCHES", "MOST_NUMBERS", "Builder", "Value"]
