"""Networks of ONNX files as modules of torch.fx."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, fx

from ... import checks
from ...errors import DataError
from ..preprocessing import Preprocessing
from .builder import BATCHES, Builder, Value
from .call import Call
from .errors import Malformed, UnsupportedForm, UnsupportedOperator
from .file import OnnxFile, read_file
from .idioms import simplify
from .operators import OPERATORS

#: Versions of the operator set that are read.
OPSETS = range(7, 23)
#: Errors by which PyTorch refuses arguments that don't fit.
_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError)


class OnnxModule(fx.GraphModule):
    """A network read from an ONNX file: a ``torch.fx`` module with its weights as parameters, in evaluation mode.

    It takes float32 [N, C, H, W] with any N, on any device; :func:`read_onnx` makes it.
    """

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        size: tuple[int, int] = self.meta["size"]
        return size

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return int(self.meta["channels"])

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images become the input, as ``occfast export`` records it; None for files of other programs."""
        found: Preprocessing | None = self.meta["preprocessing"]
        return found

    @property
    def input_name(self) -> str:
        """Name of the input in the file."""
        return str(self.meta["input_name"])

    @property
    def opset(self) -> int:
        """Version of the file's operator set."""
        return int(self.meta["opset"])

    def __call__(self, images: Any) -> Any:
        """Return the first output for images [N, C, H, W].

        Raises:
            ValueError: The images have another size or number of channels.
        """
        # Sizes of the maps inside are fixed as in the file. A trace passes no tensor.
        if isinstance(images, Tensor) and (images.dim() != 4 or tuple(images.shape[1:]) != (self.channels, *self.size)):
            expected = ", ".join(map(str, (self.channels, *self.size)))
            raise ValueError(f"images: expected [N, {expected}], got {list(images.shape)}")
        return super().__call__(images)

    def __reduce__(self) -> tuple[Any, ...]:
        function, arguments = super().__reduce__()[:2]
        return _restored, (function, arguments, dict(self.meta))


def _restored(function: Any, arguments: tuple[Any, ...], about: dict[str, Any]) -> OnnxModule:
    """Return a module from what its base class pickles, which would be of that class."""
    plain = function(*arguments)
    module = OnnxModule(plain, plain.graph, "OnnxModule")
    module.meta.update(about)
    module.train(plain.training)
    return module


def read_onnx(
    path: str | os.PathLike[str], *, size: tuple[int, int] | None = None, channels: int | None = None
) -> OnnxModule:
    """Read the network in an ONNX file as a module of PyTorch, which sweeps can follow.

    The file may come from anywhere. Its shapes are checked before anything is allocated, and data outside the file are
    read from its own folder alone.

    A fixed batch size is made dynamic. Images are [N, C, H, W] even if the file's are [N, H, W, C]. Weights of float16
    and bfloat16 become float32, and everything is computed in float32; ONNX Runtime rounds to float16 between layers.

    Args:
        path: The file. It has one input of four dimensions. Its first output is read, the others are left out.
        size: (height, width) of the images, for files that leave it open.
        channels: Number of channels, for files that leave it open.

    Returns:
        The network in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file is damaged or not an ONNX file.
        MissingPackage: The package onnx is not installed.
        UnsupportedOperator: It has operators that can't be read; ONNX Runtime may run it
            (:class:`~occfast.models.onnx.OnnxNetwork`).
        ValueError: The network doesn't have one input of four dimensions; or its size is open and was not given.

    Example:
        >>> network = occfast.models.onnx.read_onnx("w600k_r50.onnx")
        >>> print(occfast.explain(network, network.size, (20, 40)))
    """
    return as_module(read_file(path), size=size, channels=channels)


def as_module(file: OnnxFile, *, size: tuple[int, int] | None = None, channels: int | None = None) -> OnnxModule:
    """Build the network of a file that :func:`~occfast.models.onnx.file.read_file` read; see :func:`read_onnx`."""
    if file.opset not in OPSETS:
        raise UnsupportedOperator(
            str(file.path), [f"those of a version outside {OPSETS[0]} to {OPSETS[-1]}"], file.opset
        )
    if missing := sorted(
        {_kind(node) for node in file.nodes if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS}
    ):
        raise UnsupportedOperator(str(file.path), missing, file.opset)
    shape = _shape(file, size, channels)
    builder = Builder(file.shape[0])
    with torch.random.fork_rng(devices=[]):  # modules draw weights when they are made, which are replaced
        output = _read_nodes(file, builder, shape)
    if not output.varies:
        raise DataError(f"{file.path}: expected an output that depends on the images, got a constant")
    if not output.batched:
        shapes = [list(sample.shape) for sample in output.samples]
        raise UnsupportedOperator(
            str(file.path),
            [f"an output of {shapes[0]} for {BATCHES[0]} images and {shapes[1]} for {BATCHES[1]}"],
            file.opset,
        )
    builder.graph.output(output.node)
    simplify(builder)
    module = OnnxModule(builder.root, builder.graph, "OnnxModule")
    for node in module.graph.nodes:
        node.meta.clear()
    module.meta.update(
        size=shape[1:], channels=shape[0], preprocessing=file.preprocessing, input_name=file.input, opset=file.opset
    )
    return module.eval()


def _kind(node: Any) -> str:
    kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    quantized = any(part in kind for part in ("Quantize", "quantize", "QLinear")) or kind.endswith("Integer")
    return f"{kind:.60}" + (" (quantized)" if quantized else "")


def _shape(file: OnnxFile, size: tuple[int, int] | None, channels: int | None) -> tuple[int, int, int]:
    """Return channels, height and width of the images."""
    _, *dims = file.shape
    found = [dims[2], dims[0], dims[1]] if file.last else list(dims)
    wanted: list[int | None] = [None, None, None]
    if file.preprocessing is not None:
        wanted = [file.preprocessing.channels, *file.preprocessing.size]
    if channels is not None:
        wanted[0] = checks.integer(channels, "channels", 1)
    if size is not None:
        wanted[1:] = checks.pair(size, "size")
    names = ("channels", "size", "size")
    for k, (mine, given, name) in enumerate(zip(found, wanted, names, strict=True)):
        if mine is None and given is None:
            raise ValueError(f"{name}: {file.path} leaves it open; expected it as an argument")
        if mine is not None and given is not None and mine != given:
            raise ValueError(f"{name}: {file.path} has images of {found}, got {wanted} (channels, height, width)")
        found[k] = given if mine is None else mine
    a, b, c = (int(dim or 0) for dim in found)
    if a * b * c > checks.MAX_PIXELS * 4:
        raise DataError(f"{file.path}: expected images of at most {checks.MAX_PIXELS:,} pixels, got {b}x{c}")
    return a, b, c


def _read_nodes(file: OnnxFile, builder: Builder, shape: tuple[int, int, int]) -> Value:
    """Add all nodes of a file; return the value of its output."""
    images = builder.images(shape)
    values: dict[str, Value] = {file.input: builder.call(torch.permute, images, [0, 2, 3, 1]) if file.last else images}
    left: dict[str, int] = {file.output: 1}  # readers of each name that are still to come
    for node in file.nodes:
        for name in node.input:
            left[name] = left.get(name, 0) + 1

    def value_of(name: str) -> Value | None:
        if not name:
            return None
        if name not in values:
            if name not in file.initializers:
                raise Malformed(f"nothing has the name {name!r:.80}")
            values[name] = builder.stored(file.tensors.read(file.initializers[name], name))
        return values[name]

    for number, node in enumerate(file.nodes):
        kind = node.op_type
        where = f"{file.path}: node {number} ({kind})"
        try:
            used = [bool(left.get(name)) for name in node.output]
            call = Call(node, [value_of(name) for name in node.input], file.opset, file.tensors, used)
            result = OPERATORS[kind](builder, call)
            call.check_all_read()
        except UnsupportedForm as error:
            raise UnsupportedOperator(str(file.path), [f"{kind} ({error})"], file.opset) from error
        except Malformed as error:
            raise DataError(f"{where}: {error}") from error
        except DataError:
            raise
        except _REFUSALS as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{where}: its arguments don't fit ({reason:.200})") from error
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(node.output, results, strict=False):
            if name:
                values[name] = value
        for name in node.input:
            left[name] -= 1
            if not left[name]:
                values.pop(name, None)
    found = values.get(file.output)
    if found is None:
        raise DataError(f"{file.path}: expected an output that depends on the images, got {file.output!r:.80}")
    return found


__all__ = ["OPSETS", "OnnxModule", "as_module", "read_onnx"]
