"""The sweep itself: blocks of images, batches of positions, scores, sums, checkpoints."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import checks
from ..native import ops
from ..native.reference import cosine, first_largest
from ..progress import Report
from ..progress import progress as show_progress
from .checkpoint import Checkpoint, SweepState, fingerprint
from .dense import DenseEvaluator
from .evaluator import Evaluator
from .geometry import Border, SweepGrid
from .incremental import IncrementalEvaluator
from .maps import OcclusionMap
from .memory import is_out_of_memory
from .plan import NotIncremental
from .source import Block, Source

_log = logging.getLogger("occfast")

Score = Literal["error", "score_drop", "similarity_drop"]
Fill = float | Sequence[float] | Literal["mean", "noise"] | Tensor

METHODS = ("auto", "dense", "incremental")
_WORTH_IT = 1.1  # the predicted speed-up from which "auto" sweeps incrementally
_CHECKED = 8  # positions compared with the dense sweep on every call
_AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-4}  # of outputs, relative to the largest
_BLOCK_IMAGES = 64  # images whose scores are summed at a time
_CLEAN_BATCH = 16  # images in an unoccluded forward pass
_KEEP_BYTES = 2**30  # per-image scores are part of the result up to this size


def occlusion_map(
    model: Callable[[Tensor], Tensor],
    images: Any,
    labels: Any = None,
    occluder: checks.Pair = (20, 40),
    stride: checks.Pair = 1,
    border: Border = "clip",
    fill: Fill = 0.0,
    score: Score = "error",
    method: str = "auto",
    tolerance: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    memory_limit: int | str | None = None,
    device: Any = None,
    progress: bool | Report = True,
    checkpoint: str | os.PathLike[str] | None = None,
    skip_misclassified: bool = True,
) -> OcclusionMap:
    """Slide an occluder over every pixel and see where the network fails (trigueros2018, section 3.1).

    Parameters
    ----------
    model : an ``nn.Module`` in evaluation mode, or any function, from images [n, C, H, W] to a
        floating-point tensor [n, K]: class scores, or embeddings for "similarity_drop"
    images : floating-point [N, C, H, W] (tensor or ``__dlpack__``), or an iterable of (images, labels)
        batches, which may be larger than memory
    labels : int64 [N], classes in [0, K).  For "similarity_drop": None (each image is compared with itself
        uncovered) or reference embeddings, floating-point [N, K]
    occluder : (height, width) in pixels
    stride : distance of neighbouring centres in pixels, int or (rows, columns)
    border : "clip": a centre on every pixel, the occluder cut at the edge (the paper); "valid": only whole
        occluders.  Exact centres: :class:`~occfast.sweep.geometry.SweepGrid`
    fill : what covers: a number, one for each channel, "mean" (of each image and channel), "noise" (uniform
        over each image's range, one seeded pattern for all), or a tensor that broadcasts to [C, H, W]
    score : what is recorded at each position, then averaged over images:
        "error": 1 where the class of the largest output (the lowest of equals) differs from the label (Eq. 3);
        "score_drop": the label's output without the occluder minus with it;
        "similarity_drop": the drop of the cosine similarity to the reference embedding
    method : "dense": a forward pass a position; "incremental": only what the occluder changes is computed again,
        equal to the dense sweep but for rounding; "auto": incremental where the model can be swept so and it
        pays.  ``OcclusionMap.method`` says which ran
    tolerance : for methods that estimate; the methods here are exact and refuse it
    seed : of fill="noise"
    batch_size : positions in a forward pass.  None: a dense sweep measures what is fastest within
        ``memory_limit`` (a batch size of your own makes it equal to the bit between runs), an incremental one
        chooses without measuring
    memory_limit : bytes, or a size such as "512MiB", for the forward passes; None takes a quarter of what is free
    device : where to sweep, by default where the model is; model and device must agree
    progress : True shows a bar, False none; or a function of (positions done, total or None)
    checkpoint : a file that is updated every half minute; if it exists the sweep goes on from it and ends at the
        same result to the bit.  It is removed at the end
    skip_misclassified : leave out images that the model gets wrong uncovered (with integer labels only)

    Raises
    ------
    ValueError, TypeError
        For bad arguments, NaN or infinite pixels or outputs, no image that the model gets right.
    occfast.DataError
        For a damaged checkpoint.
    occfast.NativeUnavailable
        Where the kernels can't be built.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if tolerance is not None:
        raise ValueError(f"tolerance: expected None, since method={method!r} is exact, got {tolerance!r}")
    options = _Options(
        occluder=checks.pair(occluder, "occluder"),
        stride=checks.pair(stride, "stride"),
        border=border,
        fill=_checked_fill(fill),
        score=score,
        method=method,
        seed=checks.seed(seed),
        batch_size=batch_size,
        memory_limit=None if memory_limit is None else checks.memory(memory_limit, "memory_limit"),
        skip_misclassified=bool(skip_misclassified),
    )
    source = Source(images, labels, _device_of(model, device))
    file = None if checkpoint is None else Checkpoint(Path(checkpoint))
    with torch.no_grad(), show_progress("occlusion map", "positions", progress) as report:
        return _Sweep(model, source, options, file, report).run()


@dataclass(frozen=True)
class _Options:
    """The arguments of :func:`occlusion_map` that say what to compute."""

    occluder: tuple[int, int]
    stride: tuple[int, int]
    border: Border
    fill: Fill
    score: Score
    method: str
    seed: int
    batch_size: int | None
    memory_limit: int | None
    skip_misclassified: bool

    def __post_init__(self) -> None:
        if self.score not in ops.SCORES:
            raise ValueError(f"score: expected one of {', '.join(ops.SCORES)}, got {self.score!r}")
        if self.batch_size is not None:
            if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
                raise TypeError(f"batch_size: expected an int or None, got {self.batch_size!r}")
            if self.batch_size < 1:
                raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")

    def stated(self) -> dict[str, Any]:
        """What the result depends on, for a checkpoint and for the record."""
        fill: Any = self.fill
        if isinstance(fill, Tensor):
            fill = f"tensor {list(fill.shape)}, sum {float(fill.double().sum()):.17g}"
        return {
            "occluder": list(self.occluder),
            "stride": list(self.stride),
            "border": self.border,
            "fill": fill if isinstance(fill, (str, float)) else list(fill),
            "score": self.score,
            "method": self.method,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "skip_misclassified": self.skip_misclassified,
        }


class _Sweep:
    """One call of :func:`occlusion_map`: blocks of images, in each of them batches of positions."""

    grid: SweepGrid
    state: SweepState
    evaluator: Evaluator | None = None  # chosen with the first images
    scores: Tensor  # of the block under way

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        source: Source,
        options: _Options,
        checkpoint: Checkpoint | None,
        report: Report,
    ) -> None:
        _check_model(model)
        self.model, self.source, self.options = model, source, options
        self.checkpoint, self.report = checkpoint, report
        self.started = time.perf_counter()
        self.begun = False
        self.checked = False
        self.advanced = False  # beyond what the checkpoint holds

    def run(self) -> OcclusionMap:
        try:
            for block in self.source.blocks(_BLOCK_IMAGES):
                if not self.begun:
                    self._begin(block)
                end = block.first + block.images.shape[0]
                if end <= self.state.seen:
                    if end == self.state.seen and self.state.partial is None:
                        self._check_same_data()
                    continue
                self._sweep_block(block)
        except BaseException:
            if self.advanced:  # an interrupt or an error loses nothing; a refused checkpoint stays as it was
                self._save()
            raise
        result = self._result()
        if self.checkpoint:
            self.checkpoint.remove()
        return result

    def _begin(self, block: Block) -> None:
        size = (int(block.images.shape[-2]), int(block.images.shape[-1]))
        self.grid = SweepGrid.over(size, self.options.occluder, self.options.stride, self.options.border)
        shape = list(block.images.shape[1:])
        if self.checkpoint:
            self.checkpoint.stamp = fingerprint(self.model, {**self.options.stated(), "image": shape})
        self.state = (self.checkpoint and self.checkpoint.load()) or SweepState(
            total=np.zeros(self.grid.positions),
            squares=np.zeros(self.grid.positions),
            image_sum=np.zeros(shape),
            batch_size=self.options.batch_size or 0,
            layout="channels_last" if self.options.batch_size else "",  # the faster one, nearly always
        )
        self.begun = True

    # -- one block -------------------------------------------------------------------------------------

    def _sweep_block(self, block: Block) -> None:
        state, grid = self.state, self.grid
        images, labels, clean = self._screen(block)
        if state.partial is not None:
            self._check_same_data()
        n = images.shape[0]
        scores = torch.zeros(n, grid.positions, dtype=torch.float64, device=images.device)
        if n:
            targets = self._targets(labels, clean)
            fill = _fill_for(self.options.fill, images, self.options.seed)
            if state.partial is not None:
                scores.copy_(torch.from_numpy(state.partial))
            self.scores = scores
            self.evaluator = self.evaluator or self._choose_evaluator(images)
            group = self.evaluator.images_at_once(images, self.options.memory_limit)
            for first in range(0, n, group):
                last = min(first + group, n)
                if state.next < last * grid.positions:
                    part, cover = images[first:last], fill[first:last] if fill.shape[0] == n else fill
                    self.evaluator.start(part, cover)
                    self._choose_batch((last - first) * grid.positions)
                    if self.evaluator.method != "dense" and not self.checked:
                        self._check_evaluator(part, cover)
                        self.checked = True
                    self._sweep_positions(targets, first, last, block.first)
        # One assignment, so that an interrupt finds the state before the block or after it.
        self.state = replace(
            state,
            **self._sums(scores),
            image_sum=state.image_sum + images.double().sum(0).cpu().numpy(),
            partial=None,
            next=0,
            seen=block.first + block.images.shape[0],
            used=state.used + n,
            skipped=state.skipped + block.images.shape[0] - n,
        )

    def _sweep_positions(self, targets: dict[str, Tensor | None], first: int, last: int, block_first: int) -> None:
        """The positions of images first to last - 1 of the block, which the evaluator has taken."""
        state, scores, kind = self.state, self.scores, ops.SCORES[self.options.score]
        assert self.evaluator is not None
        bad = torch.zeros(1, dtype=torch.int32, device=scores.device)
        start, end = first * self.grid.positions, last * self.grid.positions
        while state.next < end:
            stop = min(state.next + state.batch_size, end)
            positions = torch.arange(state.next, stop, device=scores.device)
            try:
                outputs = _checked_outputs(self.evaluator.outputs(positions - start), stop - state.next)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or state.batch_size == 1:
                    raise
                state.batch_size = max(1, state.batch_size // 2)
                _log.warning("out of memory: the batch size goes down to %d", state.batch_size)
                if scores.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            ops.sweep_score(outputs, positions, self.grid.positions, kind, scores, bad,
                            targets["labels"], targets["references"], targets["baseline"])  # fmt: skip
            if scores.device.type == "cpu" or stop == end:  # reading a GPU's flag waits for it
                self._check_finite(bad, block_first)
            state.next = stop
            self.advanced = True
            self.report(*self._done())
            if self.checkpoint and self.checkpoint.due():
                self._check_finite(bad, block_first)
                self._save()

    def _check_finite(self, bad: Tensor, first: int) -> None:
        if int(bad):
            raise ValueError(
                f"model: expected finite outputs, got NaN or infinity for an occluded copy of one of the images "
                f"from number {first} on"
            )

    def _screen(self, block: Block) -> tuple[Tensor, Tensor | None, Tensor]:
        """The images to sweep, their labels and outputs without an occluder."""
        images, labels = block.images, block.labels
        outputs = torch.cat([_checked_outputs(self.model(part), part.shape[0]) for part in images.split(_CLEAN_BATCH)])
        if not bool(outputs.isfinite().all()):
            wrong = int((~outputs.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"model: expected finite outputs, got NaN or infinity for image {block.first + wrong}")
        classes = outputs.shape[1]
        if self.options.score == "similarity_drop":
            _check_references(labels, classes)
            return images, labels, outputs
        if labels is None:
            raise ValueError(f"labels: expected int64 [N] for score={self.options.score!r}, got None")
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise TypeError(f"labels: expected int64 [N], got {str(labels.dtype)[6:]} {list(labels.shape)}")
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"labels: expected classes in [0, {classes}), got values from {low} to {high}")
        if self.options.skip_misclassified:
            right = first_largest(outputs) == labels
            return images[right], labels[right], outputs[right]
        return images, labels, outputs

    def _targets(self, labels: Tensor | None, clean: Tensor) -> dict[str, Tensor | None]:
        if self.options.score == "error":
            return {"labels": labels, "references": None, "baseline": None}
        if self.options.score == "score_drop":
            assert labels is not None
            baseline = clean.double().gather(1, labels[:, None])[:, 0]
            return {"labels": labels, "references": None, "baseline": baseline}
        mine = clean.double()
        references = mine if labels is None else labels.double()
        return {"labels": None, "references": references, "baseline": cosine(mine, references)}

    def _choose_evaluator(self, images: Tensor) -> Evaluator:
        """The one that ``method`` names; for "auto" the incremental one where it can be had and pays."""
        dense, method = DenseEvaluator(self.model, self.grid), self.state.method or self.options.method
        if method == "dense":
            return dense
        try:
            if not isinstance(self.model, nn.Module):
                raise NotIncremental("a function can't be traced, an nn.Module can")
            incremental = IncrementalEvaluator(
                self.model, self.grid, images, batch=self.options.batch_size, memory_limit=self.options.memory_limit
            )
            incremental.images_at_once(images, self.options.memory_limit)
        except NotIncremental as reason:
            if method == "incremental":
                raise ValueError(f"method: 'incremental' can't sweep this model: {reason}") from reason
            _log.info("the sweep is dense: %s", reason)
            return dense
        if method == "auto" and incremental.predicted_speedup < _WORTH_IT:
            _log.info(
                "the sweep is dense: an incremental one would be %.2f times as fast", incremental.predicted_speedup
            )
            return dense
        return incremental

    def _check_evaluator(self, images: Tensor, fill: Tensor) -> None:
        """Compare a few seeded positions with the dense sweep: a wrong map must never come out."""
        assert self.evaluator is not None
        total = images.shape[0] * self.grid.positions
        count = max(1, min(_CHECKED, total // 500))
        positions = torch.randint(total, (count,), generator=torch.Generator().manual_seed(self.options.seed))
        positions = positions.to(images.device)
        dense = DenseEvaluator(self.model, self.grid)
        dense.start(images, fill)
        expected, got = dense.outputs(positions).double(), self.evaluator.outputs(positions).double()
        difference = float((got - expected).abs().max())
        allowed = _AGREEMENT.get(images.dtype, 0.1) * float(expected.abs().max())
        if not difference <= allowed:
            raise RuntimeError(
                f"the incremental sweep is not the dense one: outputs differ by {difference:.2g}, where rounding "
                f"explains {allowed:.2g}; is the model deterministic, and each row of its output a function of that "
                "image alone? method='dense' makes no such assumption"
            )

    def _choose_batch(self, total: int) -> None:
        """Once for the whole sweep, so that a resumed one runs the same batches."""
        state = self.state
        assert self.evaluator is not None
        # The incremental sweep takes many positions at a time and cuts them into batches itself.
        if state.batch_size == 0 or (not state.method and self.evaluator.method == "incremental"):
            state.batch_size = self.evaluator.tune(total, self.options.memory_limit)
            state.layout = self.evaluator.layout
        state.method = self.evaluator.method
        self.evaluator.set_layout(state.layout)

    def _sums(self, scores: Tensor) -> dict[str, Any]:
        """The running sums and the per-image maps with a block's scores added."""
        state = self.state
        total, squares = (torch.tensor(v, device=scores.device) for v in (state.total, state.squares))
        ops.sweep_accumulate(scores, total, squares)
        kept = torch.uint8 if self.options.score == "error" else torch.float32
        per_image = [*state.per_image, scores.to(kept).cpu().numpy()] if state.keep_per_image else []
        keep = state.keep_per_image and sum(part.nbytes for part in per_image) <= _KEEP_BYTES
        if state.keep_per_image and not keep:
            _log.warning("per-image maps are over %d MiB and are not kept", _KEEP_BYTES >> 20)
            per_image = []
        return {
            "total": total.cpu().numpy(),
            "squares": squares.cpu().numpy(),
            "per_image": per_image,
            "keep_per_image": keep,
        }

    # -- the record ------------------------------------------------------------------------------------

    def _done(self) -> tuple[int, int | None]:
        """Positions done and, as far as it can be told, the number of all."""
        done = self._evaluations()
        if self.source.total is None:
            return done, None
        # Images still to come count as right; the block under way knows how many of its are.
        block_end = min(self.state.seen + _BLOCK_IMAGES, self.source.total)
        to_come = self.source.total - block_end
        return done, (self.state.used + self.scores.shape[0] + to_come) * self.grid.positions

    def _evaluations(self) -> int:
        return self.state.used * self.grid.positions + self.state.next

    def _save(self) -> None:
        state = self.state
        if self.checkpoint is None:
            return
        state.partial = self.scores.cpu().numpy() if state.next else None
        now = time.perf_counter()
        state.seconds, self.started = state.seconds + now - self.started, now
        state.digest = self.source.digest.hexdigest()
        self.checkpoint.save(state)

    def _check_same_data(self) -> None:
        if self.source.digest.hexdigest() != self.state.digest:
            raise ValueError("checkpoint: the images or labels are not those of the sweep that it belongs to")

    def _result(self) -> OcclusionMap:
        state, grid, n = self.state, self.grid, self.state.used
        if n == 0:
            raise ValueError(
                f"model: expected some image that it gets right uncovered, got 0 of {state.skipped}; "
                "check the labels, or pass skip_misclassified=False"
            )
        shape = (grid.rows, grid.columns)
        mean = state.total / n
        if n > 1:
            variance = np.maximum(state.squares / n - mean * mean, 0) * n / (n - 1)
            error = np.sqrt(variance / n)
        else:
            error = np.full_like(mean, np.nan)
        per_image = np.concatenate(state.per_image).reshape(n, *shape) if state.per_image else None
        stated = self.options.stated()
        return OcclusionMap(
            values=mean.reshape(shape),
            standard_error=error.reshape(shape),
            per_image=per_image,
            grid=grid,
            score=self.options.score,
            method=self.evaluator.method if self.evaluator else state.method,
            n_images=n,
            n_skipped=state.skipped,
            n_evaluations=self._evaluations(),
            seconds=state.seconds + time.perf_counter() - self.started,
            mean_image=(state.image_sum / n).astype(np.float32),
            settings={
                "fill": stated["fill"],
                "seed": self.options.seed,
                "batch size": state.batch_size,
                "layout": state.layout,
                "skip misclassified": self.options.skip_misclassified,
            },
        )


# -- arguments -----------------------------------------------------------------------------------------


def _check_model(model: Any) -> None:
    if not callable(model):
        raise TypeError(f"model: expected an nn.Module or a function, got {type(model).__name__}")
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise ValueError("model: expected evaluation mode, got training mode; call model.eval()")


def _device_of(model: Any, device: Any) -> torch.device | None:
    """Where to sweep: where the model is, if it has parameters; else where the images are (None)."""
    wanted = None if device is None else checks.device(device)
    if wanted is not None and wanted.type == "cuda" and wanted.index is None:
        wanted = torch.device("cuda", torch.cuda.current_device())
    if not isinstance(model, nn.Module):
        return wanted
    tensors = [*model.parameters(), *model.buffers()]
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"model: expected one device, got {sorted(map(str, devices))}")
    if devices and wanted is not None and wanted not in devices:
        raise ValueError(f"device: expected {devices.pop()}, where the model is, got {wanted}; move the model first")
    return devices.pop() if devices else wanted


def _checked_fill(fill: Any) -> Fill:
    if isinstance(fill, str):
        if fill not in ("mean", "noise"):
            raise ValueError(f"fill: expected a number, a number a channel, 'mean', 'noise' or a tensor, got {fill!r}")
        return fill  # type: ignore[return-value]
    if isinstance(fill, Tensor) or hasattr(fill, "__dlpack__"):
        tensor = checks.as_tensor(fill, "fill")
        if tensor.dim() > 3:
            raise ValueError(f"fill: expected a tensor that broadcasts to [C, H, W], got {list(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError("fill: expected finite numbers, got NaN or infinity")
        return tensor
    if isinstance(fill, Sequence):
        return [checks.in_range(v, "fill", -3.4e38, 3.4e38) for v in fill]
    return checks.in_range(fill, "fill", -3.4e38, 3.4e38)


def _fill_for(fill: Fill, images: Tensor, seed: int) -> Tensor:
    """The fill of a block of images: four dimensions, broadcasts to them, same dtype and device."""
    _, channels, height, width = images.shape
    if isinstance(fill, Tensor):
        try:
            torch.broadcast_shapes(fill.shape, (channels, height, width))
            made = fill.reshape((1,) * (3 - fill.dim()) + tuple(fill.shape))
            if any(s not in (1, t) for s, t in zip(made.shape, (channels, height, width), strict=True)):
                raise RuntimeError
        except RuntimeError:
            raise ValueError(
                f"fill: expected a tensor that broadcasts to {[channels, height, width]}, got {list(fill.shape)}"
            ) from None
        return made.to(images.device, images.dtype)[None]
    if fill == "mean":
        return images.double().mean((2, 3), keepdim=True).to(images.dtype)
    if fill == "noise":
        # One pattern whatever the block, drawn on the CPU so that every device covers with the same.
        pattern = torch.rand((1, channels, height, width), generator=torch.Generator().manual_seed(seed))
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return low + (high - low) * pattern.to(images.device, images.dtype)
    if isinstance(fill, Sequence) and not isinstance(fill, str):
        if len(fill) != channels:
            raise ValueError(f"fill: expected {channels} numbers, one a channel, got {len(fill)}")
        return torch.tensor(list(fill), dtype=images.dtype, device=images.device).view(1, channels, 1, 1)
    return torch.full((1, 1, 1, 1), float(fill), dtype=images.dtype, device=images.device)


def _checked_outputs(outputs: Any, rows: int) -> Tensor:
    """Outputs as float32 or float64 [rows, K]."""
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"model: expected a tensor [n, K], got {type(outputs).__name__}; wrap the model so that it returns one"
        )
    if outputs.dim() != 2 or outputs.shape[0] != rows or outputs.shape[1] == 0:
        raise ValueError(f"model: expected outputs of shape [{rows}, K], got {list(outputs.shape)}")
    if not outputs.is_floating_point():
        raise TypeError(f"model: expected floating-point outputs, got {str(outputs.dtype).removeprefix('torch.')}")
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _check_references(labels: Tensor | None, width: int) -> None:
    if labels is None:
        return
    if not labels.is_floating_point() or labels.dim() != 2 or labels.shape[1] != width:
        raise ValueError(
            f"labels: expected None or reference embeddings, floating-point [N, {width}], "
            f"got {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        )
    if not bool(labels.isfinite().all()):
        raise ValueError("labels: expected finite reference embeddings, got NaN or infinity")
