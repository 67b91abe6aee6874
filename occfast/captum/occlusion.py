"""Occlusion attributions with Captum's interface."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import checks
from ..progress import progress
from .arguments import Baselines, Strides, Target, WindowShapes, baselines_of, extra_arguments, inputs_of, windows_of
from .dense import window_by_window
from .swept import NotSwept, Plan, swept

_log = logging.getLogger("occfast")

_Inputs = TypeVar("_Inputs", Tensor, tuple[Tensor, ...])


class Occlusion:
    """Occlusion attributions: the drop of an output under the windows that cover an input element, averaged.

    Takes the place of ``captum.attr.Occlusion``: the same arguments give the same attributions up to rounding, faster
    where the sweep of :func:`occfast.occlusion_map` is. Batches of images [N, C, H, W] are swept, with windows over all
    channels or some. The plan of a sweep is kept for the next call with the same network, weights, windows and image
    size, so that one object is best for many images.

    Everything else (other or several inputs, tensors as additional arguments, outputs that depend on the batch,
    training mode, autocast) is computed as Captum does, window by window, and a line of the log ``occfast`` says why.

    Source: Zeiler and Fergus 2014, section 4.2; arguments and averages as in Captum 0.9.

    Args:
        forward_func: The model, or any function of the inputs.

    Raises:
        TypeError: ``forward_func`` can't be called.

    Example:
        >>> from occfast.captum import Occlusion  # in place of captum.attr
        >>> Occlusion(model).attribute(images, sliding_window_shapes=(3, 20, 20), strides=(3, 5, 5), target=0)
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func: expected a model or a function, got {type(forward_func).__name__}")
        self.forward_func = forward_func
        self._plan: Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_plan": None}

    @torch.no_grad()
    def attribute(
        self,
        inputs: _Inputs,
        sliding_window_shapes: WindowShapes,
        strides: Strides = None,
        baselines: Baselines = None,
        target: Target = None,
        additional_forward_args: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
    ) -> _Inputs:
        """Return the attribution of each input element.

        Args:
            inputs: Tensor [N, ...] or a tuple of them.
            sliding_window_shapes: Size of the window for one example, for images (channels, height, width); for a
                tuple of inputs a tuple of them.
            strides: Steps between windows: an int, or one for each dimension; for a tuple of inputs a tuple of these.
                At most the window's size where that is less than the input's. None: 1.
            baselines: Content of the windows: a number or a tensor that broadcasts to the input; for a tuple of inputs
                a tuple of these. None: 0.
            target: The output that is attributed. An int or a tuple of indices for all examples, a tensor [N], a list
                of N ints or of N tuples; None for a function that returns one number for each example.
            additional_forward_args: Further arguments of the function after the inputs, one or a tuple; tensors with
                dimensions have one row for each example.
            perturbations_per_eval: Windows in one batch where a model is not swept. Sweeps choose their batches
                themselves, within a quarter of the free memory.
            show_progress: Whether to show progress on the standard error.

        Returns:
            Float32 of the shape of the inputs. Where the selected output has m numbers instead of one for each of the N
            examples, the first dimension has size m.

        Raises:
            TypeError, ValueError: An argument is of another kind or does not fit the others.
        """
        given = inputs_of(inputs)
        windows = windows_of(sliding_window_shapes, strides, given)
        fills = baselines_of(baselines, given)
        arguments = extra_arguments(additional_forward_args)
        per_eval = checks.integer(perturbations_per_eval, "perturbations_per_eval", 1)
        with progress("occlusion", "windows", checks.flag(show_progress, "show_progress"), lambda: "") as report:
            try:
                drops = [self._swept(given, windows, fills, target, arguments, report)]
            except NotSwept as reason:
                _log.info("occlusion is computed window by window: %s", reason)
                drops = window_by_window(self.forward_func, given, windows, fills, target, arguments, per_eval, report)
        found = tuple(
            each.averaged(values).to(device=tensor.device, dtype=torch.float32)
            for each, values, tensor in zip(windows, drops, given, strict=True)
        )
        return found if isinstance(inputs, tuple) else found[0]

    def _swept(self, *given: Any) -> Tensor:
        """Sweep with the plan of the last call if it still applies."""
        plan, self._plan = self._plan, None  # another thread makes its own
        drops, self._plan = swept(self.forward_func, plan, *given)
        return drops
