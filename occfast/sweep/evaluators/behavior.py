"""Assumptions of a sweep about a model, tested on two images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn


class NotIncremental(Exception):
    """The network can't be swept incrementally; the message says why."""


class NotDeterministic(NotIncremental):
    """Two runs on the same images differ."""


class BatchDependent(NotIncremental):
    """The output for an image depends on the other images of its batch or on its place there; it has no map."""


#: Differences of outputs that rounding explains, relative to the largest output.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}

#: Contrast of the second example and of the image that replaces one of them: odd numbers, so that hardly any statistic
#: of two images is the same.
_DIM, _DIMMER = 0.6180339887, 0.2360679775


def is_exported(model: nn.Module) -> bool:
    """Return whether a model is a program of ``torch.export``."""
    return isinstance(model, fx.GraphModule) and "eval" in vars(model)


def in_training(model: nn.Module) -> bool:
    """Return whether any module is in training mode. Programs of ``torch.export`` have no modes."""
    if is_exported(model):
        return False
    return any(getattr(module, "training", False) for module in model.modules())


def example(images: Tensor) -> Tensor:
    """Return two images like these, [2, C, H, W], the second with less contrast than the first."""
    return torch.cat((images[:1], _DIM * images[-1:].flip(-1)))


def allowed_difference(outputs: Tensor, tolerance: float) -> float:
    """Return the difference from the outputs [N, K] of an example that rounding may explain.

    It is ``tolerance`` times the largest output, but less than a tenth of the difference between images: outputs of
    many networks hardly differ from image to image, and that difference is what a map shows.
    """
    scale = float(outputs.abs().max()) or 1.0
    if len(outputs) < 2 or outputs.dtype in (torch.float16, torch.bfloat16):
        return tolerance * scale
    spread = float((outputs[0] - outputs[1]).abs().max())
    return max(0.1 * TOLERANCE[outputs.dtype] * scale, min(tolerance * scale, 0.1 * spread))


def agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether outputs [N, K] are those expected for an example, but for rounding."""
    if found.shape != expected.shape:
        return False
    return float((found - expected).abs().max()) <= allowed_difference(expected, tolerance)


def compared_outputs(model: Callable[[Tensor], Tensor], images: Tensor, tolerance: float) -> Tensor:
    """Return the outputs [N, K] for an example, after comparing them with those of other batches.

    A second run must give the same bits. An image alone may differ by rounding, since other kernels may run. In a
    batch of the same size whose other image is exchanged the same kernels run, so next to nothing may change.

    Raises:
        NotDeterministic: The second run differs.
        BatchDependent: An image alone differs by more than rounding explains, ``tolerance`` relative to the largest
            output at most; or the other image has an influence.
    """
    first, again = _run(model, images), _run(model, images)
    if not torch.equal(first, again):
        raise NotDeterministic("two runs on the same images differ: it is not deterministic")
    alone = torch.cat([_run(model, image) for image in images.split(1)])
    if not agree(alone, first, tolerance):
        raise BatchDependent("the output for an image depends on the other images of its batch")
    same_bits = 0.01 * TOLERANCE[first.dtype] * (float(first.abs().max()) or 1.0)
    for k in range(len(images) if len(images) > 1 else 0):
        mixed = _other(images).expand_as(images).clone()
        mixed[k] = images[k]
        if not float((_run(model, mixed)[k] - first[k]).abs().max()) <= same_bits:
            raise BatchDependent("the output for an image depends on the other images of its batch")
    return first


def _other(images: Tensor) -> Tensor:
    """Return an image that is unlike the example's."""
    return _DIMMER * images[:1].flip(-2) + 0.1 * images[-1:].roll(1, -1)


def same_outputs(model: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Return whether two models agree on single images like these, but for rounding.

    The other one may be a copy that reads what the model stored, for example in a dictionary that a forward hook
    fills. That is never right for both images: what the model stored last is of the second one.
    """
    both = example(images).split(1)
    expected, found = (torch.cat([_run(net, image) for image in both]) for net in (model, other))
    return agree(found, expected, 10 * TOLERANCE[images.dtype])


def _run(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return model(images.clone()).clone()  # it may change its input, and may return the same memory again
