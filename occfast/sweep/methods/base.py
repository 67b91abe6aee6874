"""Common parts of the methods: blocks of images, sums over them, checkpoints, results."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DataError
from ...native import ops
from ...progress import Report
from ..checkpoint import Checkpoint, Fingerprint, SweepState, different_outputs, fingerprint
from ..convolution import right_convolutions
from ..evaluators.scorer import OF_EMBEDDINGS, OF_LABELS, Scorer
from ..geometry import SweepGrid
from ..maps import MAP_KIND, OWN_REFERENCE, OcclusionMap
from ..options import EXACT, Options, check_fill_count, check_model
from ..precision import check_precision
from ..processes import Processes
from ..source import Block, Source

_log = logging.getLogger("occfast")

BLOCK_IMAGES = 64  # summed at a time
_KEEP_BYTES = 2**30  # per-image scores are part of the result up to this size
_OTHER_DATA = "the images or labels are not those of the sweep that it belongs to"


class Sweep(ABC):
    """One call of :func:`~occfast.sweep.occlusion_map`, in one of the processes that share it.

    Subclasses choose the positions to score in :meth:`visit`.

    Attributes:
        grids: Positions of each occluder; ``grid`` is the first, and all have the same centers.
        scorers: Scorer of each occluder; ``scorer`` is the first.
    """

    grids: list[SweepGrid]
    grid: SweepGrid
    state: SweepState
    scorers: list[Scorer]
    scorer: Scorer
    targets: int  # for each image
    many = False  # whether there may be several

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        source: Source,
        options: Options,
        processes: Processes,
        checkpoint: Checkpoint | None,
    ) -> None:
        check_model(model)
        self.model, self.source, self.options, self.processes = model, source, options, processes
        self.checkpoint = checkpoint
        self.report: Report = lambda done, total: None
        self.digest = ""  # of the images in finished blocks
        self.note = ""  # shown beside the progress
        self.started = time.perf_counter()
        self.begun = False
        self._images = 0  # in the block under way
        self.saved: OcclusionMap | None = None  # a finished map of this sweep, from a file
        self.saved_from = Fingerprint({})
        self.advanced = False  # since the checkpoint was written

    @abstractmethod
    def visit(self, n: int) -> None:
        """Score positions of the ``n`` images that the scorer took, from ``state.next`` on.

        Afterwards every process has all scores.
        """

    def finished(self) -> bool:
        """Return whether no further images are needed."""
        return False

    def run(self) -> list[OcclusionMap]:
        """Sweep all images, or continue where the checkpoint ends; return a map for each target."""
        end = 0
        if self.source.total is not None:
            check_fill_count(self.options.fill, self.source.total)
        try:
            for block in self._blocks():
                if not self.begun:
                    with right_convolutions(block.images):
                        self._begin(block)
                end = block.first + block.images.shape[0]
                if self.saved is not None:
                    if end >= self.saved_from.seen and not self.saved_from.whole:
                        break
                elif block.first < self.state.seen < end:
                    raise ValueError(f"checkpoint: {_OTHER_DATA}, or batches of another size")
                elif end <= self.state.seen:
                    if end == self.state.seen and self.state.partial is None:
                        self._check_same_data()
                elif not self.finished():
                    with right_convolutions(block.images):
                        self._block(block)
                self.digest = self.source.digest.hexdigest()
                if self.saved is None and end >= self.state.seen and self.finished():
                    break
            if self.saved is not None:
                return [self._saved(end)]
            if end < self.state.seen:
                raise ValueError(f"checkpoint: {_OTHER_DATA}")
            if not self.finished():
                check_fill_count(self.options.fill, end)
        except BaseException:
            if self.advanced:  # an interrupt or an error loses nothing; a refused checkpoint stays as it was
                self.save()
            raise
        results = self.results()
        if self.checkpoint is None:
            return results
        if self.advanced:
            self.save()
        if self.targets > 1:
            kept = self.checkpoint.shared(self.targets)
            return [
                replace(each, _checkpoint=None if self.processes.rank else part)
                for each, part in zip(results, kept, strict=True)
            ]
        whole = not self.finished()
        origin = replace(self.checkpoint.origin, images=self.digest, seen=self.state.seen, whole=whole)
        return [replace(results[0], fingerprint=origin, _checkpoint=None if self.processes.rank else self.checkpoint)]

    def _saved(self, end: int) -> OcclusionMap:
        """Return the finished map that the checkpoint's file holds, if it is of these images."""
        origin = self.saved_from
        digest = self.source.digest.hexdigest()
        if self.saved is None or end != origin.seen or digest != origin.images:
            raise ValueError(f"checkpoint: {_OTHER_DATA}")
        return self.saved

    def _begin(self, block: Block) -> None:
        check_precision(self.options.precision, block.images)
        size = (int(block.images.shape[-2]), int(block.images.shape[-1]))
        options = self.options
        self.grids = [
            SweepGrid.over(size, each, stride=options.stride, border=options.border, region=options.region)
            for each in options.occluders
        ]
        self.grid = self.grids[0]
        labels = block.labels
        several = labels is not None and labels.dim() == 2 and options.score in OF_LABELS
        self.reference = OWN_REFERENCE if labels is None else "given embeddings"
        self.targets = labels.shape[1] if several and labels is not None else 1
        if self.targets > 1 and options.method not in EXACT:
            raise ValueError(f"labels: expected int64 [N] for method={options.method!r}, got several targets each")
        if self.targets > 1 and not self.many:
            raise ValueError("labels: expected int64 [N]; several targets of an image are for occfast.occlusion_maps")
        self.dtype = block.images.dtype
        shape = list(block.images.shape[1:])
        if self.checkpoint or self.processes:
            with self.processes.guard():
                settings = {**options.stated(), "image": shape}
                if self.targets > 1:
                    settings["targets"] = self.targets
                origin = fingerprint(self.model, settings, block.images)
            self.processes.assert_equal({**origin.settings, "checkpoint": self.checkpoint is not None})
            for rank, theirs in enumerate(self.processes.all(origin.outputs)):
                if different_outputs(origin.outputs, theirs, self.dtype) is not None:
                    raise ValueError(f"model: expected the same outputs in all processes, process {rank} has others")
            if self.checkpoint:
                self.checkpoint.origin = origin
        loaded: OcclusionMap | SweepState | None = None
        with self.processes.guard():
            if self.checkpoint and self.processes.rank == 0:
                loaded = self._load(self.checkpoint, shape)
        loaded = self.processes.broadcast(loaded)
        if isinstance(loaded, OcclusionMap):
            assert loaded.fingerprint is not None
            self.saved, self.saved_from, loaded = loaded, loaded.fingerprint, None
        self.state = loaded or SweepState(
            total=np.zeros(self.targets * self.grid.positions),
            squares=np.zeros(self.targets * self.grid.positions),
            image_sum=np.zeros(shape),
            batch_size=self.options.batch_size or 0,
            layout="channels_last" if self.options.batch_size else "",  # the faster one, nearly always
        )
        state = self.state
        first = state.method, state.batch_size, state.layout
        choices = [first, *(state.further or [first] * (len(self.grids) - 1))]
        self.scorers = [
            Scorer(self.model, grid, options, measured=not self.processes, method=how, batch_size=size, layout=layout)
            for grid, (how, size, layout) in zip(self.grids, choices, strict=True)
        ]
        self.scorer = self.scorers[0]
        self.begun = True

    def _load(self, checkpoint: Checkpoint, shape: list[int]) -> OcclusionMap | SweepState | None:
        """Return what the checkpoint's file holds for this sweep: its state, or the finished map."""
        content = checkpoint.read()
        if content is None or not checkpoint.resume:
            return None
        path = checkpoint.path
        if str(content["kind"]) == MAP_KIND:
            if self.targets > 1:
                raise ValueError(
                    f"checkpoint: {str(path)!r} is a map, but a sweep of several targets keeps a file of its own; name "
                    "another one, or pass resume=False to replace it"
                )
            m = OcclusionMap.load(path)
            if m.fingerprint is None:
                raise ValueError(
                    f"checkpoint: {str(path)!r} is a map that was computed without a checkpoint, so it does not say "
                    "from what; name another file, or pass resume=False to replace it"
                )
            checkpoint.require(m.fingerprint, self.dtype)
            return m
        state = checkpoint.load(content, self.grid.positions, self.targets, shape, self.dtype)
        try:
            self.check_state(state)
        except ValueError as error:
            raise DataError(f"{path}: not a complete checkpoint ({error})") from error
        return state

    def check_state(self, state: SweepState) -> None:
        """Raise ValueError for a state that this method can't have saved."""
        kept = np.uint8 if self.options.binary else np.float32
        if any(part.dtype != kept for part in state.per_image):
            raise ValueError("scores of single images have another dtype")
        if state.keep_per_image and state.used and not state.per_image:
            raise ValueError("scores of single images are missing")

    def _blocks(self) -> Iterator[Block]:
        """Yield the source's blocks, as long as all processes get the same."""
        blocks = self.source.blocks(BLOCK_IMAGES)
        while True:
            with self.processes.guard():
                block = next(blocks, None)
            self.processes.assert_equal({"images": "no more" if block is None else self.source.digest.hexdigest()})
            if block is None:
                return
            yield block

    def _block(self, block: Block) -> None:
        self._images = block.images.shape[0]
        with self.processes.guard():
            for scorer in self.scorers:
                n = scorer.take(block)
            if self.state.partial is not None:
                self._check_same_data()
                if list(self.state.partial.shape) != [len(self.scorers) * self.targets * n, self.grid.positions]:
                    raise ValueError("checkpoint: the model is right about other images than it was")
                parts = torch.from_numpy(self.state.partial).split(self.targets * n)
                for scorer, part in zip(self.scorers, parts, strict=True):
                    scorer.parts.copy_(part.view(scorer.parts.shape))
            images = self.scorer.images
        if n:
            self.visit(n)
            with self.processes.guard():
                for scorer in self.scorers:
                    scorer.check_finite()
        state = self.state
        indices = block.indices[self.scorer.kept].numpy()
        # One assignment, so that an interrupt finds the state before the block or after it.
        self.state = replace(
            state,
            **self.earned(self._combined()),
            indices=None if state.indices is None else [*state.indices, indices],
            image_sum=state.image_sum + images.double().sum(0).cpu().numpy(),
            partial=None,
            next=0,
            seen=block.first + block.images.shape[0],
            used=state.used + n,
            skipped=state.skipped + block.images.shape[0] - n,
        )
        self.advanced = True

    def _combined(self) -> Tensor:
        """Return the scores of the block, float64 [n, targets * positions]: means over the occluders."""
        parts = self.scorer.parts
        if len(self.scorers) > 1:
            parts = torch.stack([scorer.parts for scorer in self.scorers]).mean(0)
        return parts.transpose(0, 1).reshape(parts.shape[1], parts.shape[0] * parts.shape[2])

    def earned(self, scores: Tensor) -> dict[str, Any]:
        """Return the running sums and the per-image maps with a block's scores added."""
        state = self.state
        total, squares = (torch.tensor(v, device=scores.device) for v in (state.total, state.squares))
        ops.sweep_accumulate(scores, total, squares)
        kept = torch.uint8 if self.options.binary else torch.float32
        per_image = [*state.per_image, scores.to(kept).cpu().numpy()] if state.keep_per_image else []
        keep = state.keep_per_image and sum(part.nbytes for part in per_image) <= _KEEP_BYTES
        if state.keep_per_image and not keep:
            _log.warning("per-image maps are larger than %d MiB and are not kept", _KEEP_BYTES >> 20)
            per_image = []
        return {
            "total": total.cpu().numpy(),
            "squares": squares.cpu().numpy(),
            "per_image": per_image,
            "keep_per_image": keep,
        }

    # -- the work of several processes -----------------------------------------------------------------

    def add(self, positions: Tensor, scorer: Scorer | None = None) -> None:
        """Exchange the scores of flat positions of an occluder, each of which one process has scored."""
        if self.processes:
            flat = (scorer or self.scorer).parts.flatten(1)
            part = flat[:, positions].contiguous()
            self.processes.add(part)
            flat[:, positions] = part

    # -- checkpoints -----------------------------------------------------------------------------------

    def save_if_due(self) -> None:
        """Save a checkpoint if the last one is old enough."""
        self.advanced = True
        if self.checkpoint and self.processes.rank == 0 and self.checkpoint.due():
            for scorer in self.scorers:
                scorer.check_finite()
            self.save()

    def save(self) -> None:
        """Save a checkpoint, in the process of rank 0."""
        if self.checkpoint is None or self.processes.rank:
            return
        state, scorer = self.state, self.scorer
        state.partial = None
        if state.next:
            state.partial = torch.cat([each.parts.flatten(0, 1) for each in self.scorers]).cpu().numpy()
        state.further = [(each.method, each.batch_size, each.layout) for each in self.scorers[1:]]
        state.method, state.batch_size, state.layout = scorer.method, scorer.batch_size, scorer.layout
        now = time.perf_counter()
        state.seconds, self.started = state.seconds + now - self.started, now
        state.digest = self.source.digest.hexdigest() if state.next else self.digest
        self.checkpoint.save(state)

    def _check_same_data(self) -> None:
        if self.source.digest.hexdigest() != self.state.digest:
            raise ValueError(f"checkpoint: {_OTHER_DATA}")

    # -- results --------------------------------------------------------------------------------------

    def images_to_come(self) -> int | None:
        """Return the number of images after the block under way, misclassified ones included; None if not known."""
        if self.source.total is None:
            return None
        return max(0, self.source.total - self.state.seen - self._images)

    def mean_and_error(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean over images and its standard error, each [positions]."""
        state, n = self.state, self.state.used
        mean = state.total / n
        if n == 1:
            return mean, np.full_like(mean, np.nan)
        variance = np.maximum(state.squares / n - mean * mean, 0) * n / (n - 1)
        return mean, np.sqrt(variance / n)

    def evaluations(self) -> int:
        """Return the number of positions evaluated so far."""
        return self.state.used * len(self.grids) * self.grid.positions + self.state.next

    def results(self) -> list[OcclusionMap]:
        """Return the map of each target for the images used so far."""
        return [self.result(target) for target in range(self.targets)]

    def result(self, target: int = 0, **more: Any) -> OcclusionMap:
        """Return the map of the images used so far.

        Args:
            target: Number of the target.
            **more: Fields of the map to replace.

        Raises:
            ValueError: No image was used.
        """
        state, grid, n = self.state, self.grid, self.state.used
        if n == 0:
            raise ValueError(
                f"model: expected to be right about some image without an occluder, got 0 of {state.skipped}; check "
                "the labels and the scaling of the images, or pass skip_misclassified=False"
            )
        shape = (grid.rows, grid.columns)
        mine = slice(target * grid.positions, (target + 1) * grid.positions)
        mean, error = (each[mine] for each in self.mean_and_error())
        stated = self.options.stated()
        settings = {
            "fill": stated["fill"],
            "seed": self.options.seed,
            "batch size": self.scorer.batch_size,
            "layout": self.scorer.layout,
            "dtype": str(self.dtype).removeprefix("torch."),
            "skip misclassified": self.options.skip_misclassified,
        }
        if self.options.score in OF_EMBEDDINGS:
            settings["reference"] = self.reference
        if self.options.threshold is not None:
            settings["threshold"] = self.options.threshold
        if self.targets > 1:
            settings["target"] = f"{target} of {self.targets}"
        per_image = None
        if state.per_image:
            per_image = np.ascontiguousarray(np.concatenate(state.per_image)[:, mine]).reshape(n, *shape)
        return replace(
            OcclusionMap(
                values=mean.reshape(shape),
                standard_error=error.reshape(shape),
                per_image=per_image,
                grid=grid,
                score=self.options.score_label,
                method=self.scorer.method,
                n_images=n,
                n_skipped=state.skipped,
                n_evaluations=self.evaluations(),
                seconds=state.seconds + time.perf_counter() - self.started,
                mean_image=(state.image_sum / n).astype(np.float32),
                image_indices=None if state.indices is None else np.concatenate(state.indices),
                settings=settings,
                precision=self.options.precision,
                further=tuple(self.grids[1:]),
            ),
            **more,
        )
