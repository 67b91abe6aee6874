"""Occlusion of images by the sweep of occlusion maps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NativeUnavailable
from ..progress import Report
from ..sweep.checkpoint import add_tensor
from ..sweep.convolution import right_convolutions
from ..sweep.evaluators.behavior import in_training
from ..sweep.evaluators.runner import Runner
from ..sweep.options import Options
from ..sweep.precision import float32_as
from .arguments import Target, selected
from .dense import as_tensor
from .windows import Windows

_LARGEST = 2**30  # bytes of drops


class NotSwept(Exception):
    """Sweeps can't compute the attribution; the message says why."""


def swept(
    function: Callable[..., Any],
    plan: Plan | None,
    inputs: tuple[Tensor, ...],
    windows: Sequence[Windows],
    fills: Sequence[Tensor],
    target: Target,
    arguments: tuple[Any, ...],
    report: Report,
) -> tuple[Tensor, Plan | None]:
    """Return the drop of the selected output under each window.

    The arguments are those of :func:`~.dense.window_by_window`, and the plan of an earlier call.

    Returns:
        Float64 [outputs, *counts], and a plan for further calls if there is one.

    Raises:
        NotSwept: A sweep does not apply, or fails.
    """
    if reason := _obstacle(function, inputs, arguments):
        raise NotSwept(reason)
    images, box = inputs[0], windows[0]
    with float32_as("ieee"), right_convolutions(images):
        clean = as_tensor(function(images.clone(), *arguments)).clone()
        if clean.dim() == 0 or clean.shape[0] != len(images) or not clean.is_floating_point():
            raise NotSwept("the output does not have a row for each image")
        numbers = torch.arange(clean[0].numel(), device=clean.device).view(1, *clean.shape[1:]).expand(clean.shape)
        columns = selected(numbers, target).reshape(len(images), -1)
        if columns.numel() * box.count * 8 > _LARGEST:
            raise NotSwept(f"{columns.numel()} outputs under {box.count} windows do not fit into memory")
        baseline = clean.reshape(len(images), -1).double().gather(1, columns)
        key = _key(function, images, box, clean.dim(), arguments)
        try:
            if plan is None or plan.key != key:
                model = function if clean.dim() == 2 and not arguments else _flat(function, clean.dim(), arguments)
                plan = Plan(key, _runner(model, box))
            drops = _drops(plan.runner, images, box, fills[0], columns, baseline, report)
            plan.runner.release()
        except NativeUnavailable:
            raise
        except Exception as error:  # of the model, or of a check that it does not pass
            raise NotSwept(f"{type(error).__name__}: {error}") from error
    if not bool(drops.isfinite().all()):
        raise NotSwept("an output is NaN or infinite")
    return drops.reshape(-1, *box.counts), None if key is None else plan


def _obstacle(function: Callable[..., Any], inputs: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> str:
    """Return why a sweep does not apply; "" if it may."""
    images = inputs[0]
    if len(inputs) > 1:
        return "there are several inputs"
    if images.dim() != 4 or not images.is_floating_point():
        return "the input is not made of images [N, C, H, W]"
    if any(isinstance(each, Tensor) for each in arguments):
        return "an additional argument is a tensor"
    if torch.is_autocast_enabled(images.device.type):
        return "autocast is on"
    if isinstance(function, nn.Module) and in_training(function):
        return "the model is in training mode"
    return ""


def _key(
    function: Callable[..., Any], images: Tensor, box: Windows, rank: int, arguments: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """Return what a plan depends on; None for a plan that is not to be kept.

    That is the network's tensors, hooks and simple attributes. What a forward pass reads from elsewhere is left to the
    comparison with the dense sweep, which every call makes.
    """
    if not isinstance(function, nn.Module) or arguments:
        return None
    digest = hashlib.sha256()
    for name, module in function.named_modules():
        simple = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple, type(None)))}
        hooks = [len(vars(module).get(kind, ())) for kind in ("_forward_hooks", "_forward_pre_hooks")]
        digest.update(repr((name, id(module), id(vars(module).get("forward")), sorted(simple.items()), hooks)).encode())
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            add_tensor(digest, "", tensor)
    return digest.hexdigest(), id(function), box, rank, images.dtype, images.device


@dataclass(frozen=True)
class Plan:
    """Sweep that is ready for images of one size.

    Attributes:
        key: What it depends on; None: not to be kept.
        runner: The sweep.
    """

    key: tuple[Any, ...] | None
    runner: Runner


def _runner(model: Callable[[Tensor], Tensor], box: Windows) -> Runner:
    """Return the runner of a model from images to outputs [n, K]."""
    grid = box.grid()
    options = Options.checked(
        occluder=grid.occluder,
        stride=grid.stride,
        border=grid.border,
        fill=0.0,
        score="score_drop",
        method="auto",
        seed=0,
        batch_size=None,
        memory_limit=None,
        skip_misclassified=False,
        precision=None,
    )
    return Runner(model, grid, options)


def _drops(
    runner: Runner, images: Tensor, box: Windows, fill: Tensor, columns: Tensor, baseline: Tensor, report: Report
) -> Tensor:
    """Return the drops, float64 [N, m, channel windows, positions].

    Args:
        runner: Of the outputs [n, K] of images.
        images: [N, C, H, W].
        box: The windows.
        fill: Broadcasts to the images.
        columns: Outputs to attribute, int64 [N, m].
        baseline: These outputs without an occluder, float64 [N, m].
        report: Called with the windows done and the number of all.
    """
    n, layers, positions = len(images), box.counts[0], runner.grid.positions
    drops = torch.zeros(n, columns.shape[1], layers, positions, dtype=torch.float64, device=images.device)
    at_once, done = runner.fitting(images), 0
    for first in range(0, n, at_once):
        part = images[first : first + at_once]
        for layer in range(layers):
            runner.begin(part, _content(part, fill[first : first + at_once] if _of_each(fill) else fill, box, layer))
            everything = torch.arange(len(part) * positions, device=images.device)
            for flat, found in runner.run(everything[runner.order(everything)]):
                rows, at = flat // positions + first, flat % positions
                drops[rows, :, layer, at] = baseline[rows] - found.double().gather(1, columns[rows])
                done += len(flat)
                report(done // n, layers * positions)
    return drops


def _of_each(fill: Tensor) -> bool:
    return fill.dim() == 4 and fill.shape[0] > 1


def _content(images: Tensor, fill: Tensor, box: Windows, layer: int) -> Tensor:
    """Return the content of windows that begin at one channel: outside their channels that is the image itself."""
    channels = slice(layer * box.stride[0], layer * box.stride[0] + box.window[0])
    if box.window[0] == box.size[0]:
        return fill.reshape((1,) * (4 - fill.dim()) + tuple(fill.shape))
    content = images.clone()
    content[:, channels] = fill.expand(images.shape)[:, channels]
    return content


class _Flat(nn.Module):
    """A model with its additional arguments, and its outputs as [n, K]."""

    def __init__(self, model: Callable[..., Tensor], rank: int, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.model, self.rank, self.arguments = model, rank, arguments

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images, *self.arguments)
        if self.rank == 1:
            return output.unsqueeze(1)
        return output.flatten(1) if self.rank > 2 else output


def _flat(function: Callable[..., Any], rank: int, arguments: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    """Return a function's outputs as [n, K]; that of a module is a module, which can be traced."""
    flat = _Flat(function, rank, arguments)
    flat.training = False  # as all of a module that comes here
    return flat if isinstance(function, nn.Module) else flat.forward
