"""Outputs of a model on occluded copies of images, by the evaluator that suits the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NativeUnavailable
from ..geometry import SweepGrid
from ..memory import is_out_of_memory
from ..options import EXACT, Options
from ..precision import float32_as
from .behavior import TOLERANCE, BatchDependent, NotDeterministic, NotIncremental, compared_outputs, example
from .dense import DenseEvaluator
from .incremental.batch import fused_block
from .incremental.device import profile_of
from .incremental.evaluator import FUSED, IncrementalEvaluator
from .incremental.rates import built_in
from .protocol import Evaluator
from .trial import WORTH_MEASURING, faster

_log = logging.getLogger("occfast")

_CHECKED = 6  # positions compared with the dense sweep on every call; eight took 2.2 % of a map of W1
_CHECK_ANY = 4  # images from which the compared positions are on any image, not on the first
#: Allowed difference between the outputs of the two sweeps, relative to the largest. TF32 has the mantissa of float16,
#: bfloat16 an eighth of it.
_AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}
_ALONE = 10  # factor on the tolerance for rounding before outputs count as dependent on their batch
_FIXED_BATCH = {"cpu": 8, "cuda": 64}  # of a dense sweep that must not measure
#: Positions per call of an estimating method, for the plan: a few hundred of each of several images. Groups of
#: positions then span images, and sharing within an image does not pay.
_FEW = 600


class NotEqual(RuntimeError):
    """The outputs of the incremental and of the dense evaluator differ."""


class Runner:
    """Runs a model on occluded copies of images.

    :meth:`begin` takes some images and :meth:`run` yields outputs at their positions. Flat position ``n * P + p`` is
    position p of the grid's P on image n of those taken.

    Args:
        model: Module or function from images [n, C, H, W] to outputs [n, K].
        grid: The positions.
        options: Options of the sweep.
        measured: Whether a dense sweep may choose its batch size by measuring. Otherwise the batch size is fixed, so
            that several processes choose alike.
        method, batch_size, layout: Choices of the sweep that is resumed.

    Attributes:
        method, batch_size, layout: Choices; "" and 0 before the first :meth:`begin`.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        grid: SweepGrid,
        options: Options,
        *,
        measured: bool = True,
        method: str = "",
        batch_size: int = 0,
        layout: str = "",
    ) -> None:
        self.model, self.grid, self.options = model, grid, options
        self.method, self.batch_size, self.layout = method, batch_size, layout
        self._given, self._resumed = (method, batch_size, layout), bool(method)
        self._measured = measured
        #: Images that the choice of the evaluator counts on, whatever part of them this process begins with.
        self.expected_images: int | None = None
        self._evaluator: Evaluator | None = None
        self._checked = False

    def fitting(self, images: Tensor) -> int:
        """Return how many of some images to :meth:`begin` with at a time, so that memory holds their activations."""
        if self._evaluator is None:
            self._evaluator = self._choose_evaluator(images)
        fit = self._evaluator.images_at_once(images, self.options.memory_limit)
        return fit - fit % 8 if fit > 8 else fit  # full batches of the evaluator

    def begin(self, images: Tensor, fill: Tensor) -> None:
        """Take images [n, C, H, W] and their fill, which broadcasts to them and has their dtype and device."""
        if self._evaluator is None:
            self._evaluator = self._choose_evaluator(images)
        # "auto" never fails where the dense sweep works; only a sweep that has begun can't change its evaluator.
        required = self._checked or self._resumed or self.options.method == "incremental"
        try:
            self._start_evaluator(images, fill)
        except Exception as error:
            if required or self._evaluator.method == "dense" or is_out_of_memory(error):
                raise
            if isinstance(error, NativeUnavailable):
                raise
            self._check_model(images)
            reason = f"{error}" if isinstance(error, NotEqual) else f"{type(error).__name__}: {error}"
            _log.warning("the sweep is dense: %s", reason)
            self._evaluator = DenseEvaluator(self.model, self.grid)
            self.method, self.batch_size, self.layout = self._given
            self._start_evaluator(images, fill)

    def run(self, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield flat positions int64 [m] and their outputs [m, K], float32 or float64, in batches.

        The batch size is halved if memory runs out.
        """
        assert self._evaluator is not None
        done = 0
        while done < len(positions):
            part = positions[done : done + self.batch_size]
            try:
                outputs = checked_outputs(
                    self._evaluator.outputs(part), len(part), any_shape=callable(self.options.score)
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
                self.batch_size = max(1, self.batch_size // 2)
                _log.warning("out of memory: the batch size goes down to %d", self.batch_size)
                if positions.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield part, outputs
            done += len(part)

    def release(self) -> None:
        """Free the memory of the images. The next ones are checked against the dense sweep anew."""
        self._checked = False
        if self._evaluator is not None:
            self._evaluator.release()

    def order(self, positions: Tensor) -> Tensor:
        """Return a permutation of flat positions that brings together those that are computed together."""
        assert self._evaluator is not None
        return self._evaluator.order(positions)

    def piece(self, images: int) -> int:
        """Return how many positions of some started images to run at a time, so that processes can share them."""
        if not isinstance(self._evaluator, IncrementalEvaluator):
            return self.batch_size  # which is small already
        profile = self._evaluator.plan.profile
        if profile.spans_images:
            return self.batch_size
        of_an_image = -(-profile.pieces // images)
        return min(self.batch_size, -(-self.grid.positions // of_an_image))

    def _start_evaluator(self, images: Tensor, fill: Tensor) -> None:
        assert self._evaluator is not None
        self._evaluator.start(images, fill)
        self._choose_batch(images)
        if self._evaluator.method != "dense" and not self._checked:
            self._check_evaluator(images, fill)
        self._checked = True

    def _choose_evaluator(self, images: Tensor) -> Evaluator:
        """Return the evaluator that ``method`` names.

        "auto" and the estimating methods take the incremental one if it can sweep the model and pays.
        """
        dense, method, limit = DenseEvaluator(self.model, self.grid), self.options.method, self.options.memory_limit
        if "dense" in (method, self.method):
            self._check_model(images)
            return dense
        count = self.expected_images or images.shape[0]
        few: dict[str, Any] = {} if method in EXACT else {"share_early": False, "expected": _FEW}
        try:
            if not isinstance(self.model, nn.Module):
                raise NotIncremental("a function can't be traced, an nn.Module can")
            made = self._incremental_ones(self.model, images, count, **few)
            incremental = made[0]
            incremental.images_at_once(images, limit)
        except NotIncremental as reason:
            self._check_model(images)  # some reasons rule out a dense sweep as well
            if method == "incremental":
                raise ValueError(f"method: 'incremental' can't sweep this model: {reason}") from reason
            _log.info("the sweep is dense: %s", reason)
            return dense
        required = method == "incremental" or bool(self.method)
        if self._chooses(images, count):
            chosen = faster(None if required else dense, made, images[:1], count, limit)
            if chosen is not None:
                return chosen
        if required:
            return incremental
        # Processes must choose alike, and their machines may differ.
        speeds = None if self._measured else built_in(images.device, images.dtype)
        forecast = incremental.forecast(count, speeds)
        if not forecast.worth_it:
            whole = incremental.plan.whole_from
            _log.info(
                "the sweep is dense: an incremental one would be %.2f times as fast%s",
                forecast.speedup,
                f"; {whole} needs whole maps" if whole else "",
            )
            return dense
        return incremental

    def _incremental_ones(self, model: nn.Module, images: Tensor, count: int, **few: Any) -> list[IncrementalEvaluator]:
        """Return the incremental evaluators to choose from: one or, on a GPU, also one with the native convolution.

        A sweep that is resumed takes the one that it began with, whose bits the other one does not return.
        """
        device = images.device
        fuse: list[bool | None] = [None]
        if self._resumed and self.layout == FUSED:
            fuse = [True]
        elif self._chooses(images, count) and fused_block(images):
            fuse = [False] if self._resumed else [False, True]
        profile = profile_of(device, images.dtype, measured=self._measured)
        given = {"batch": self.options.batch_size, "memory_limit": self.options.memory_limit, "profile": profile, **few}
        return [IncrementalEvaluator(model, self.grid, images, fuse=f, together=count, **given) for f in fuse]

    def _chooses(self, images: Tensor, count: int) -> bool:
        """Return whether evaluators of so many images are measured."""
        exact = self.options.method in EXACT
        return images.device.type == "cuda" and self._measured and exact and count >= WORTH_MEASURING

    def _check_model(self, images: Tensor) -> None:
        """Check that the output for an image does not depend on the images beside it."""
        pair = example(images)
        if self.options.batch_size == 1:
            pair = pair[:1]  # an image is never evaluated beside others
        try:
            with float32_as("ieee"):
                compared_outputs(self.model, pair, _ALONE * TOLERANCE[pair.dtype])
        except BatchDependent as error:
            raise ValueError(
                f"model: {error}, so there is no map of it; is there batch norm without running statistics?"
            ) from error
        except NotDeterministic as error:
            _log.warning("model: %s; another sweep will give another map", error)

    def _check_evaluator(self, images: Tensor, fill: Tensor) -> None:
        """Compare a few seeded positions with the dense sweep, so that no wrong map is returned.

        All of them are on one image, since each image costs what its positions share; with few images it is the first,
        which comes next anyway.

        Raises:
            NotEqual: The outputs differ by more than rounding explains.
        """
        assert self._evaluator is not None
        n, each, generator = images.shape[0], self.grid.positions, torch.Generator().manual_seed(self.options.seed)
        image = int(torch.randint(n, (), generator=generator)) if n >= _CHECK_ANY else 0
        count = max(1, min(_CHECKED, n * each // 500))
        positions = (image * each + torch.randint(each, (count,), generator=generator)).to(images.device)
        dense = DenseEvaluator(self.model, self.grid)
        dense.start(images, fill)
        expected, got = dense.outputs(positions).double(), self._evaluator.outputs(positions).double()
        difference = float((got - expected).abs().max())
        dtype = torch.float16 if self.options.precision == "tf32" else images.dtype
        allowed = _AGREEMENT[dtype] * float(expected.abs().max())
        if not difference <= allowed:
            raise NotEqual(
                f"the incremental sweep is not the dense one: outputs differ by {difference:.2g}, where rounding "
                f"explains {allowed:.2g}; is the model deterministic, and each row of its output a function of that "
                "image alone? method='dense' makes no such assumption"
            )

    def _choose_batch(self, images: Tensor) -> None:
        """Choose the batch size once for the whole sweep, so that a resumed one runs the same batches."""
        assert self._evaluator is not None
        # The incremental sweep takes many positions at a time and cuts them into batches itself.
        incremental = self._evaluator.method == "incremental"
        if self.batch_size == 0 or (not self.method and incremental):
            if incremental or self._measured:
                self.batch_size = self._evaluator.tune(images.shape[0] * self.grid.positions, self.options.memory_limit)
                self.layout = self._evaluator.layout
            else:
                self.batch_size, self.layout = _FIXED_BATCH[images.device.type], "channels_last"
        self.method = self._evaluator.method
        self._evaluator.set_layout(self.layout)
        self.layout = self._evaluator.layout


def checked_outputs(outputs: Any, rows: int, *, any_shape: bool = False) -> Tensor:
    """Return outputs as float32 or float64 [rows, K]; ``any_shape``: flattened from [rows, ...]."""
    if any_shape and isinstance(outputs, Tensor) and outputs.shape[:1] == (rows,) and outputs.numel():
        outputs = outputs.reshape(rows, -1)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"model: expected a tensor [n, K], got {type(outputs).__name__}; wrap the model so that it returns one"
        )
    if outputs.dim() != 2 or outputs.shape[0] != rows or outputs.shape[1] == 0:
        raise ValueError(f"model: expected outputs of shape [{rows}, K], got {list(outputs.shape)}")
    if not outputs.is_floating_point():
        raise TypeError(f"model: expected floating-point outputs, got {str(outputs.dtype).removeprefix('torch.')}")
    return outputs if outputs.dtype == torch.float64 else outputs.float()
