"""The exact incremental evaluator, which recomputes only what an occluder changes.

The activations without an occluder are kept. At each position, each layer's dirty rectangle is computed from a window
of the layer before: the rectangle with a halo, laid over the kept activations.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from ....native import ops
from ...geometry import SweepGrid
from ...memory import available_bytes
from ...precision import float32_as, without_benchmark
from ..behavior import TOLERANCE, NotIncremental, agree, compared_outputs, example
from .analysis import Analysis
from .batch import Activations, BatchRun, Buffers, MapRecorder, StepRunner, Strips, compute_strips, pixel_sum
from .builder import first_line
from .cuda_graphs import Graphs, OnCuda
from .defaults import BLOCK
from .device import DeviceProfile, profile_of
from .forecast import Forecast
from .layout import AxisLayout, plan
from .rates import Rates, is_calibrated, rates
from .steps import Step
from .trace import trace

_HALF = (torch.float16, torch.bfloat16)
_TOGETHER = 16  # images at most that a plan counts on
#: :attr:`IncrementalEvaluator.layout` with the native convolution, where it was chosen.
FUSED = "channels_last+fused"
_CLEAN_BATCH = 8  # images in a forward pass without an occluder


class IncrementalEvaluator:
    """Evaluates a network under an occluder by recomputing dirty rectangles (see :class:`~..protocol.Evaluator`).

    Args:
        model: Module in evaluation mode. It is traced and copied, never changed.
        grid: The positions.
        images: Example of what will be swept (shape, dtype, device), [N, C, H, W] with N >= 1.
        most_classes: Largest number of classes of grid rows, and of grid columns, with rectangles of their own size;
            None weighs the work that more classes save against the calls that they cost.
        batch: Positions computed together; None: as many as suit the device.
        fold_tail: Whether to compute a convolution whose map is only averaged from window sums.
        share_early: Whether positions share the layers whose receptive field is smaller than the occluder: only its
            four corners are computed for each position, the edges between them once for a grid row or column, and the
            interior once.
        fuse: Whether to gather and convolve in one native pass where there is one: ungrouped convolutions in float32
            and float64 and, on a GPU, in float16 and bfloat16. None: on a CPU.
        expected: Positions that will be evaluated per image; None: all of the grid. Sharing starts with work for each
            image, which few positions do not repay.
        memory_limit: Bytes; what positions share takes at most a quarter of them.
        cuda_graphs: Whether to replay batches whose shapes repeat as CUDA graphs on a GPU. Their intermediate results
            take as much memory again as a batch. No GPU has seen this path yet. It has no effect on a CPU.
        profile: Batches and costs; None: those of the images' device.
        together: Images that will be swept together, for the plan of a GPU.

    Attributes:
        plan: The :class:`~.layout.Layout`.
        layout: Memory format of all maps; :data:`FUSED` if ``fuse`` asked for the native convolution, which a sweep
            takes again when it is resumed: its sums have another order than PyTorch's.

    Raises:
        NotIncremental: The model can't be swept this way; the message says why.
    """

    method = "incremental"

    def __init__(
        self,
        model: nn.Module,
        grid: SweepGrid,
        images: Tensor,
        *,
        most_classes: int | None = None,
        batch: int | None = None,
        fold_tail: bool = True,
        share_early: bool = True,
        fuse: bool | None = None,
        expected: int | None = None,
        memory_limit: int | None = None,
        cuda_graphs: bool = False,
        profile: DeviceProfile | None = None,
        together: int = 1,
    ) -> None:
        self._grid, self._batch = grid, batch
        try:
            with torch.no_grad():
                wide, pair = _wide(model, example(images))
                traced = trace(wide, pair)
                lowered = traced if pair.dtype == images.dtype else copy.deepcopy(traced).to(images.dtype)
                self._analysis = Analysis(lowered, pair.to(images.dtype), fold_tail)
                outputs = _compared(wide, traced, pair)
            self._runner = StepRunner(self._analysis, images.device.type == "cpu" if fuse is None else fuse, images)
            self.layout = FUSED if fuse and self._runner.fused else "channels_last"
            self.plan = plan(
                self._analysis.steps,
                grid,
                entries=len(self._analysis.program),
                device=images.device,
                profile=profile or profile_of(images.device, images.dtype),
                fused=frozenset(self._runner.fused),
                images=min(together, _TOGETHER),
                expected=expected,
                most_classes=most_classes,
                share_early=share_early and grid.mask is None,  # shared pieces are made of rectangles
                memory_limit=memory_limit,
            )
        except NotIncremental:
            raise
        except Exception as error:  # of the model's own code, or of an idiom that nobody thought of
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise NotIncremental(f"it can't be analyzed ({reason})") from error
        self._bytes_per_output = outputs * images.element_size()
        self._element_size = images.element_size()
        self._memory = 1 << 62  # bytes for the rectangles of a batch
        self._like = images[:0]
        self._block: Activations | None = None
        self._buffers = Buffers(self._forget_graphs)
        self._room = 1  # images whose strips are kept
        self._axes: dict[tuple[int, int], tuple[AxisLayout, AxisLayout]] = {}
        self.graphs: Graphs | None = None
        self.use_graphs(cuda_graphs)

    # The interface of evaluators ----------------------------------------------------------------------

    def set_layout(self, layout: str) -> None:
        """Do nothing: there is one memory format."""

    @property
    def positions(self) -> int:
        """Positions of a map."""
        return self._grid.positions

    def use_graphs(self, wanted: bool) -> None:
        """Replay batches whose shapes repeat as CUDA graphs from now on, or no longer. Outputs have the same bits."""
        device = self._like.device
        if not wanted or device.type != "cuda":
            self.graphs = None
        elif self.graphs is None:
            self.graphs = Graphs(self._run, lambda: OnCuda(device))

    def forecast(self, images: int = 1, speeds: Rates | None = None) -> Forecast:
        """Predict the time of a dense and of this sweep.

        Args:
            images: Images that are swept.
            speeds: Seconds for each kind of work; None: of this machine, which are measured the first time.
        """
        like = self._like
        block, fused = ops.convolution_block(like), frozenset(self._runner.fused)
        if speeds is None and not is_calibrated(like.device) and like.device.type == "cpu":
            # Built-in speeds, for a forecast that is the same on every machine.
            block = BLOCK
            fused = frozenset(step.index for step in self.plan.steps if step.conv and step.conv.groups == 1)
        return Forecast(
            self._analysis,
            self.plan,
            rates(like.device, like.dtype) if speeds is None else speeds,
            block,
            fused,
            lambda group: self._batch or self.plan.largest_batch(group, self._memory),
            images,
        )

    def images_at_once(self, images: Tensor, memory_limit: int | None) -> int:
        """Return how many images to start at once, so that half of the memory holds their activations.

        Args:
            images: The images to sweep.
            memory_limit: Bytes; None: a quarter of what is free.

        Raises:
            NotIncremental: The memory does not hold one image.
        """
        limit = memory_limit if memory_limit is not None else available_bytes(images.device) // 4
        one = self.plan.bytes_of_images(1)
        each = max(1, self.plan.bytes_of_images(2) - one)
        fit = (limit // 2 - one) // each + 1
        if fit < 1:
            raise NotIncremental(f"{limit >> 20} MiB do not hold the activations of an image")
        return int(min(fit, images.shape[0]))

    def tune(self, total: int, memory_limit: int | None) -> int:
        """Return the number of positions for one call of :meth:`outputs`, within ``memory_limit`` bytes.

        Positions whose rectangles are alike are computed together, so a whole map at once is best, or all of them where
        batches span images; they are cut into batches inside. Call after :meth:`start`.
        """
        block = self._started.images
        images, device = len(block), block.device
        if memory_limit is None and device.type == "cuda":
            limit, left = 0, available_bytes(device) // 4  # what is kept is allocated already
        else:
            limit = memory_limit if memory_limit is not None else 1 << 62
            left = limit - self.plan.bytes_of_images(images)
        if left <= 0:
            raise NotIncremental(f"{limit >> 20} MiB do not hold the activations of {images} images")
        self._memory = left * 3 // (8 if device.type == "cuda" else 4)  # CUDA graphs have memory of their own
        most = total if self.plan.profile.spans_images else min(total, self._grid.positions)
        return int(max(1, min(most, left // 8 // max(1, self._bytes_per_output))))

    @torch.no_grad()
    @without_benchmark()
    def start(self, images: Tensor, fill: Tensor) -> Tensor:
        """Keep the activations of a block of images without an occluder.

        Args:
            images: [n, C, H, W].
            fill: Broadcasts to the images; same dtype and device.

        Returns:
            The outputs [n, K] without an occluder.
        """
        self._block = None
        given = self._buffers.hold("images", images.shape, images).copy_(images)
        covered = self._buffers.hold("fill", images.shape, images).copy_(fill.expand_as(images))
        keep = {self.plan.steps[k].node: self.plan.steps[k] for k in sorted(self.plan.keep) if k != 0}
        outputs, kept = self._recorded("kept", given, keep)
        full: dict[int, Tensor] = {}
        if self.plan.shared:
            shared = {node: step for node, step in keep.items() if step.index < self.plan.shared}
            full = self._recorded("full", covered, shared, outputs=False)[1]
        sums: dict[int, Tensor] = {}
        for step in self.plan.steps:
            if step.pooled is not None:
                sum_of = pixel_sum(kept[step.inputs[0]])[:, :, None, None]
                if not bool(sum_of.isfinite().all()):
                    continue  # a difference would be NaN
                sums[step.inputs[0]] = self._buffers.hold(("sum", step.inputs[0]), sum_of.shape, sum_of).copy_(sum_of)
        if self.plan.profile.spans_images:
            self._room = max(self._room, len(images))
        self._block = Activations(given, covered, kept, full, Strips(room=self._room), sums)
        return outputs

    @torch.no_grad()
    @without_benchmark()
    def outputs(self, positions: Tensor) -> Tensor:
        """Return the outputs [M, K] at flat positions int64 [M]; large M is fastest."""
        if not len(positions):
            raise ValueError("positions: expected at least one, got none")
        block, chosen = self._started, positions.cpu()
        device = block.images.device
        n, p = chosen // self._grid.positions, chosen % self._grid.positions
        i, j = p // self._grid.columns, p % self._grid.columns
        group = self.plan.group_of(chosen)
        order = torch.argsort(group, stable=True)
        indices, order = torch.stack((n, i, j))[:, order].to(device), order.to(device)
        result: Tensor | None = None
        start = 0
        for g, count in zip(*(t.tolist() for t in torch.unique(group, return_counts=True)), strict=True):
            image, g = divmod(g, self.plan.groups)
            if self.plan.shared and image not in block.strips.images:
                images = range(len(block.images)) if self.plan.profile.spans_images else range(image, image + 1)
                compute_strips(self._runner, self.plan, block, images, self._buffers, self._fitting)
            size = self.plan.batch_size(count, self._batch or self.plan.largest_batch(g, self._memory))
            for first in range(start, start + count, size):
                # The last batch is filled up with positions done before: one shape, so one compiled kernel.
                end = min(first + size, start + count)
                done = slice(max(start, end - size), end)
                batch = indices[:, done]
                if batch.shape[1] < size:  # of a graph
                    batch = torch.cat((batch, batch[:, :1].expand(-1, size - batch.shape[1])), 1)
                out = self.graphs(g, batch) if self.graphs else self._run(g, batch)
                if result is None:
                    result = out.new_empty((len(positions), out.shape[1]))
                result[order[done]] = out[: done.stop - done.start]
            start += count
        assert result is not None
        return result

    def release(self) -> None:
        """Forget the images and free the memory of their activations."""
        self._block, self._room = None, 1
        self._forget_graphs()
        self._axes.clear()
        self._buffers = Buffers(self._forget_graphs)

    def order(self, positions: Tensor) -> Tensor:
        """Return a permutation [M] of flat positions that brings together those whose rectangles are alike."""
        return torch.argsort(self.plan.group_of(positions.cpu()), stable=True).to(positions.device)

    # Inside -------------------------------------------------------------------------------------------

    @property
    def _started(self) -> Activations:
        if self._block is None:
            raise RuntimeError("start() comes first")
        return self._block

    def _recorded(
        self, name: str, images: Tensor, keep: dict[fx.Node, Step], outputs: bool = True
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the outputs, or none, and the maps of some steps for whole images."""
        maps: dict[int, Tensor] = {0: images}
        found: list[Tensor] = []
        for first in range(0, len(images), _CLEAN_BATCH):
            part = images[first : first + _CLEAN_BATCH]
            recorder = MapRecorder(self._analysis.traced, keep)
            if outputs:
                found.append(recorder.run(part))
            elif keep:
                recorder.record(part)
            for k, value in recorder.seen.items():
                if first == 0:
                    maps[k] = self._buffers.hold((name, k), (len(images), *value.shape[1:]), value)
                maps[k][first : first + len(part)] = value
        return torch.cat(found) if outputs else images[:0], maps

    def _run(self, group: int, indices: Tensor) -> Tensor:
        """Return the outputs [M, K] at indices (image, grid row, grid column) [3, M] of positions of a group."""
        rows, columns = self._axes_of(group)
        run = BatchRun(self._runner, self._grid, self._started, rows, columns, self.plan.shared, indices)
        return run.run()

    def _axes_of(self, group: int) -> tuple[AxisLayout, AxisLayout]:
        """Return the layouts of rows and columns of a group, for as many images as strips are kept of."""
        if self._room == 1 or not self.plan.shared:
            return self.plan.axes_of(group)
        key = group, self._room
        if key not in self._axes:
            rows, columns = self.plan.axes_of(group)
            self._axes[key] = rows.of_images(self._room), columns.of_images(self._room)
        return self._axes[key]

    def _fitting(self, numbers: int) -> int:
        """Return how many items of this many numbers each a batch holds."""
        return max(1, self.plan.profile.layer_bytes // (numbers * self._element_size))

    def _forget_graphs(self) -> None:
        if self.graphs:
            self.graphs.forget()


def _wide(model: nn.Module, pair: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a model and two images to compare its trace with.

    In half precision rounding would hide differences, so it is a float32 copy, whose trace is lowered afterwards.
    """
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    if pair.dtype not in _HALF or any(t.dtype != pair.dtype for t in tensors if t.is_floating_point()):
        return model, pair
    try:
        wide, pair = copy.deepcopy(model).float(), pair.float()
        wide(pair)
    except Exception as error:  # it is the model's own code
        raise NotIncremental(f"a float32 copy of it, to compare its trace with, does not run: {error}") from error
    return wide, pair


def _compared(model: nn.Module, traced: fx.GraphModule, pair: Tensor) -> int:
    """Return the number of outputs.

    Raises:
        NotIncremental: The trace does not compute what the model does.
    """
    tolerance = TOLERANCE[pair.dtype]
    with float32_as("ieee"):
        outputs, found = compared_outputs(model, pair, tolerance), traced(pair.clone())
    if not agree(found, outputs, tolerance):
        raise NotIncremental("its trace computes something else than the model")
    return int(outputs.shape[1])
