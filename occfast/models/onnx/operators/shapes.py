"""Shapes: views, parts, joins, and arithmetic with sizes."""

from __future__ import annotations

import math
import operator as python
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..builder import BATCHES, MOST_NUMBERS, Builder, Value
from ..call import Call, positive
from ..errors import Malformed, UnsupportedForm
from .table import operator

_END = 1 << 31


@operator("Constant")
def constant(b: Builder, call: Call) -> Value:
    """Return a tensor or numbers of the file."""
    if call.given("value"):
        return b.stored(call.tensor("value"))
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        if call.given(name):
            number = call.number(name, 0.0) if dtype == torch.float32 else call.integer(name, 0)
            return b.stored(torch.tensor(number, dtype=dtype))
    if (floats := call.floats("value_floats")) is not None:
        return b.stored(torch.tensor(floats, dtype=torch.float32))
    if (integers := call.integers("value_ints")) is not None:
        return b.stored(torch.tensor(integers, dtype=torch.int64))
    raise UnsupportedForm("a value that is neither numbers nor a tensor")


def _sizes(call: Call, k: int) -> tuple[list[int], list[int]]:
    """Return the whole numbers of an argument for both batch sizes."""
    value = call.value(k)
    if value.varies:
        raise UnsupportedForm("a shape that depends on the images")
    first, second = value.samples
    if first.is_floating_point() or first.dim() > 1 or first.numel() > 64 or first.shape != second.shape:
        raise Malformed(f"expected a shape, got {list(first.shape)} of {first.dtype}")
    return first.reshape(-1).tolist(), second.reshape(-1).tolist()


@operator("Shape")
def shape(b: Builder, call: Call) -> Value:
    """Return the shape of a value."""
    start, end = call.integer("start", 0), call.integer("end", _END)
    made = [torch.tensor(list(sample.shape)[start:end], dtype=torch.int64) for sample in call.value().samples]
    return b.constant(*made) if not torch.equal(*made) else b.constant(made[0])


@operator("Size")
def size(b: Builder, call: Call) -> Value:
    """Return the number of elements of a value."""
    made = [torch.tensor(sample.numel()) for sample in call.value().samples]
    return b.constant(*made) if not torch.equal(*made) else b.constant(made[0])


@operator("ConstantOfShape")
def constant_of_shape(b: Builder, call: Call) -> Value:
    """Return a tensor of one number."""
    first, second = _sizes(call, 0)
    filler = call.tensor("value").reshape(-1) if call.given("value") else torch.zeros(1)
    if filler.numel() != 1 or any(dim < 0 for dim in (*first, *second)):
        raise Malformed(f"a shape of {first[:9]} and {filler.numel()} numbers")
    one = b.constant(filler.reshape([1] * len(first)))
    if first == second:
        return b.call("expand", one, first)
    return b.constant(one.samples[0].expand(first), one.samples[0].expand(second))


@operator("Range")
def numbers(b: Builder, call: Call) -> Value:
    """Whole numbers from a start to a limit."""
    values = [call.constant(k, "limits") for k in range(3)]
    if any(value.numel() != 1 or value.is_floating_point() for value in values):
        raise UnsupportedForm("other than whole numbers")
    start, limit, step = (int(value.item()) for value in values)
    if step == 0 or max(0, -(-(limit - start) // step)) > 1 << 16:
        raise Malformed(f"numbers from {start} to {limit} by {step}")
    return b.constant(torch.tensor(range(start, limit, step), dtype=values[0].dtype))


# Views ------------------------------------------------------------------------------------------------


@operator("Flatten")
def flatten(b: Builder, call: Call) -> Value:
    """Two dimensions: those before ``axis`` and the others."""
    value = call.value()
    axis = call.integer("axis", 1)
    if not -value.rank <= axis <= value.rank:
        raise Malformed(f"expected axis in [{-value.rank}, {value.rank}], got {axis}")
    axis = axis + value.rank if axis < 0 else axis
    if axis == 1 and value.rank > 1:
        return value if value.rank == 2 else b.call(torch.flatten, value, 1)
    targets = [[math.prod(sample.shape[:axis]), math.prod(sample.shape[axis:])] for sample in value.samples]
    return b.viewed("reshape", value, *targets)


@operator("Reshape")
def reshape(b: Builder, call: Call) -> Value:
    """Another view of the same numbers."""
    value, keep = call.value(), call.flag("allowzero") if call.opset >= 14 else False
    first, second = _sizes(call, 1)
    targets = [
        _resolved(sample.shape, target, keep) for sample, target in zip(value.samples, (first, second), strict=True)
    ]
    if value.batched and first == second:
        dynamic = _with_batch(b, value, first, targets, keep)
        targets = dynamic if dynamic is not None else targets
    made = [target for target in targets if target is not None]
    if len(made) != 2 or len(made[0]) != len(made[1]):
        raise Malformed(f"{list(value.shape)} can't take the shape {first[:9]}")
    if value.varies and made[0][:1] == [BATCHES[0]] and made[1][:1] == [BATCHES[1]]:
        if made[0] == list(value.shape):
            return value
        if len(made[0]) == 2 and value.batched:
            return b.call(torch.flatten, value, 1) if value.rank > 2 else value
    return b.viewed("reshape", value, *made)


def _resolved(before: Sequence[int], target: list[int], keep: bool) -> list[int] | None:
    """Return a shape with its 0 and -1 replaced; None if it doesn't fit."""
    made = []
    for k, dim in enumerate(target):
        if dim < -1 or dim > _END or (dim == 0 and not keep and k >= len(before)):
            return None
        made.append(before[k] if dim == 0 and not keep else dim)
    total, unknown = math.prod(before), [k for k, dim in enumerate(made) if dim == -1]
    if len(unknown) > 1:
        return None
    if unknown:
        rest = math.prod(dim for dim in made if dim != -1)
        if rest == 0 or total % rest:
            return None
        made[unknown[0]] = total // rest
    return made if math.prod(made) == total else None


def _with_batch(
    b: Builder, value: Value, target: list[int], targets: list[list[int] | None], keep: bool
) -> list[list[int] | None] | None:
    """Return the shapes for a target in which the batch size of the file was written as a number, else None."""
    if not target or target[0] != (b.batch or 1):
        return None
    if all(found is not None and found[0] == batch for found, batch in zip(targets, BATCHES, strict=True)):
        return None
    made = [
        _resolved(sample.shape, [batch, *target[1:]], keep)
        for sample, batch in zip(value.samples, BATCHES, strict=True)
    ]
    return None if None in made else made


@operator("Transpose")
def transpose(b: Builder, call: Call) -> Value:
    """Another order of the dimensions."""
    value = call.value()
    order = call.integers("perm", value.rank, 0)
    order = list(reversed(range(value.rank))) if order is None else order
    if sorted(order) != list(range(value.rank)):
        raise Malformed(f"expected perm to hold each dimension once, got {order}")
    return value if order == sorted(order) else b.call(torch.permute, value, order)


def _axes(call: Call, rank: int) -> list[int] | None:
    given = call.integers("axes") if call.opset < 13 else (call.numbers(1, "dimensions") if call.has(1) else None)
    return None if given is None else sorted({positive(axis, rank) for axis in given})


@operator("Squeeze")
def squeeze(b: Builder, call: Call) -> Value:
    """Leave out dimensions of size 1."""
    value = call.value()
    axes = _axes(call, value.rank)
    if axes is None:  # all, except the batch, which is not 1 here
        axes = [k for k, dim in enumerate(value.shape) if dim == 1]
    if value.varies and 0 in axes and value.shape[0] == BATCHES[0]:
        raise UnsupportedForm("a batch that is left out")
    if any(value.shape[axis] != 1 for axis in axes):
        raise Malformed(f"dimensions {axes} of {list(value.shape)} are not 1")
    for axis in reversed(axes):
        value = b.call(torch.squeeze, value, axis)
    return value


@operator("Unsqueeze")
def unsqueeze(b: Builder, call: Call) -> Value:
    """Insert dimensions of size 1."""
    value = call.value()
    given = call.integers("axes") if call.opset < 13 else call.numbers(1, "dimensions")
    if given is None:
        raise Malformed("attribute axes is missing")
    for axis in sorted({positive(axis, value.rank + len(given)) for axis in given}):
        value = b.call(torch.unsqueeze, value, positive(axis, value.rank + 1))
    return value


@operator("Expand")
def expand(b: Builder, call: Call) -> Value:
    """Repeat dimensions of size 1."""
    value = call.value()
    targets = []
    for sample, target in zip(value.samples, _sizes(call, 1), strict=True):
        if any(dim < 0 or dim > _END for dim in target):
            raise Malformed(f"can't take the shape {target[:9]}")
        targets.append(list(torch.broadcast_shapes(sample.shape, target)))
    if [list(sample.shape) for sample in value.samples] == targets:
        return value
    if math.prod(targets[0]) > MOST_NUMBERS:
        raise Malformed(f"can't take the shape {targets[0]}")
    return b.viewed("expand", value, *targets)


@operator("Tile")
def tile(b: Builder, call: Call) -> Value:
    """Repeat whole dimensions."""
    value, repeats = call.value(), call.numbers(1, "repeats")
    if len(repeats) != value.rank or any(not 0 <= repeat <= _END for repeat in repeats):
        raise Malformed(f"repeats {repeats[:9]} for {list(value.shape)}")
    if value.varies and repeats[0] != 1:
        raise UnsupportedForm("a batch that is repeated")
    return value if set(repeats) == {1} else b.call("repeat", value, *repeats)


# Parts ------------------------------------------------------------------------------------------------


@operator("Slice")
def slice_(b: Builder, call: Call) -> Value:
    """Ranges of some dimensions."""
    value = call.value()
    if call.opset < 10:
        starts, ends, axes = (call.integers(name) for name in ("starts", "ends", "axes"))
        steps = None
        if starts is None or ends is None:
            raise Malformed("attribute starts or ends is missing")
    else:
        starts, ends = call.numbers(1, "starts"), call.numbers(2, "ends")
        axes = call.numbers(3, "dimensions") if call.has(3) else None
        steps = call.numbers(4, "steps") if call.has(4) else None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps or len(set(axes)) < len(axes):
        raise Malformed(f"starts {starts}, ends {ends}, dimensions {axes}, steps {steps}"[:200])
    keys: list[slice] = [slice(None)] * value.rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = positive(axis, value.rank)
        dims = [sample.shape[axis] for sample in value.samples]
        found = [_indices(start, end, step, dim) for dim in dims]
        if all(part == range(dim) for part, dim in zip(found, dims, strict=True)):
            continue
        if value.varies and dims[0] != dims[1]:
            raise UnsupportedForm("a part of the batch")
        if step < 0:
            if found[0] == range(dims[0] - 1, -1, -1):
                value = b.call(torch.flip, value, [axis])
            else:
                value = b.call(torch.index_select, value, axis, b.constant(torch.tensor(list(found[0]))))
            continue
        keys[axis] = slice(found[0].start, found[0].stop, None if step == 1 else step)
        if dims[0] != dims[1] and found[0] != found[1]:
            raise UnsupportedForm("a part of the batch")
    if all(key == slice(None) for key in keys):
        return value
    return b.call(python.getitem, value, tuple(keys))


def _indices(start: int, end: int, step: int, dim: int) -> range:
    return range(*slice(start, end, step).indices(dim))


@operator("Gather")
def gather(b: Builder, call: Call) -> Value:
    """Items of one dimension."""
    value, indices = call.value(), call.constant(1, "indices")
    axis = call.axis(value.rank, 0)
    if value.varies and axis == 0:
        raise UnsupportedForm("images of the batch")
    if indices.is_floating_point() or indices.dtype == torch.bool or indices.dim() > 1:
        raise UnsupportedForm(f"indices of {list(indices.shape)} in {indices.dtype}")
    dim = min(sample.shape[axis] for sample in value.samples)
    found = [int(index) for index in indices.reshape(-1).tolist()]
    if any(not -dim <= index < dim for index in found):
        raise Malformed(f"expected indices in [{-dim}, {dim}), got {found[:9]}")
    found = [index % dim for index in found]
    if indices.dim() == 0:
        return b.call(torch.select, value, axis, found[0])
    if found == list(range(dim)):
        return value
    if found == list(reversed(range(dim))):
        return b.call(torch.flip, value, [axis])
    return b.call(torch.index_select, value, axis, b.constant(torch.tensor(found, dtype=torch.int64)))


@operator("Split")
def split(b: Builder, call: Call) -> tuple[Value, ...]:
    """Consecutive parts of one dimension."""
    value, count = call.value(), len(call.used)
    axis = call.axis(value.rank, 0)
    dim = value.shape[axis]
    if value.varies and value.samples[1].shape[axis] != dim:
        raise UnsupportedForm("parts of the batch")
    sizes: list[int] | None = None
    if call.opset < 13:
        sizes = call.integers("split", count, 0)
    elif call.has(1):
        sizes = call.numbers(1, "sizes")
    if call.opset >= 18 and call.integer("num_outputs", count) != count:
        raise Malformed(f"expected num_outputs {count}")
    if sizes is None:
        each = -(-dim // count)
        sizes = [max(0, min(each, dim - k * each)) for k in range(count)]
    if len(sizes) != count or sum(sizes) != dim or min(sizes) < 0:
        raise Malformed(f"parts of {sizes[:9]} of {dim} for {count} outputs")
    return b.parts(torch.split, count, value, sizes, axis)


# Joins ------------------------------------------------------------------------------------------------


@operator("Concat")
def concat(b: Builder, call: Call) -> Value:
    """Values one after the other along a dimension."""
    values = call.values()
    if not values:
        raise Malformed("it has no arguments")
    axis = call.axis(values[0].rank, 0)
    if len({value.dtype for value in values}) > 1:
        raise Malformed("its arguments have several types")
    if any(value.varies for value in values) and axis == 0:
        raise UnsupportedForm("images that are joined to a larger batch")
    return values[0] if len(values) == 1 else b.call(torch.cat, values, axis)


@operator("Pad")
def pad(b: Builder, call: Call) -> Value:
    """More numbers around a value."""
    value = call.value()
    mode = call.text("mode", "constant", ("constant", "reflect", "edge"))
    filler: float | None
    if call.opset < 11:
        amounts, filler, axes = call.integers("pads"), call.number("value", 0.0), None
    else:
        amounts, filler = call.numbers(1, "pads"), call.scalar(2, "value")
        axes = call.numbers(3, "dimensions") if call.has(3) else None
    axes = list(range(value.rank)) if axes is None else [positive(axis, value.rank) for axis in axes]
    if amounts is None or len(amounts) != 2 * len(axes) or len(set(axes)) < len(axes):
        raise Malformed(f"pads {amounts} for {list(value.shape)}"[:200])
    if any(abs(amount) > _END for amount in amounts):
        raise Malformed(f"pads {amounts}"[:200])
    both = {axis: (amounts[k], amounts[len(axes) + k]) for k, axis in enumerate(axes)}
    flat = [amount for axis in reversed(range(value.rank)) for amount in both.get(axis, (0, 0))]
    if value.varies and any(flat[-2:]):
        raise UnsupportedForm("images that are padded to a larger batch")
    while flat and not any(flat[-2:]):
        flat = flat[:-2]
    if not flat:
        return value
    if mode == "constant":
        return b.call(F.pad, value, flat, "constant", filler or 0.0)
    if value.rank != 4 or len(flat) > 4 or min(flat) < 0:
        raise UnsupportedForm(f"mode {mode} of {value.rank} dimensions")
    flat = [*flat, *[0] * (4 - len(flat))]
    return b.call(F.pad, value, flat, "reflect" if mode == "reflect" else "replicate")


@operator("DepthToSpace", "SpaceToDepth")
def blocks(b: Builder, call: Call) -> Value:
    """Channels as blocks of pixels, or the other way."""
    value, factor = call.value(), call.integer("blocksize", 0)
    if value.rank != 4 or not value.varies or not 1 <= factor <= 1 << 16:
        raise UnsupportedForm(f"{value.rank} dimensions, blocks of {factor}")
    if call.kind == "DepthToSpace":
        if call.text("mode", "DCR", ("DCR", "CRD")) == "CRD":
            return b.call(F.pixel_shuffle, value, factor)
        raise UnsupportedForm("mode DCR")
    raise UnsupportedForm("channels in the order of blocks")


__all__ = ["reshape"]
