"""The call: :func:`occlusion_map`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..progress import Report
from ..progress import progress as show_progress
from .checkpoint import Checkpoint
from .geometry import Border
from .maps import OcclusionMap
from .methods.adaptive import AdaptiveSweep
from .methods.base import Sweep
from .methods.exact import ExactSweep
from .methods.sampled import SampledSweep
from .options import Fill, Options, Score, checked_fill, device_of
from .precision import Precision, float32_as, lowered
from .processes import Processes
from .source import Source


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
    *,
    spacing: checks.Pair | None = None,
    check: float | None = None,
    bandwidth: float | Sequence[float] | None = None,
    group: Any = None,
    precision: Precision | None = None,
) -> OcclusionMap:
    """Slide an occluder over every pixel and see where the network fails (trigueros2018, section 3.1).

    Args:
        model: an ``nn.Module`` in evaluation mode, or any function, from images [n, C, H, W] to a floating-point
            tensor [n, K]: class scores, or embeddings for "similarity_drop"
        images: floating-point [N, C, H, W] (tensor or ``__dlpack__``), or an iterable of (images, labels) batches,
            which may be larger than memory
        labels: int64 [N], classes in [0, K).  For "similarity_drop": None (each image is compared with itself
            uncovered) or reference embeddings, floating-point [N, K]
        occluder: (height, width) in pixels
        stride: distance of neighboring centers in pixels, int or (rows, columns)
        border: "clip": a center on every pixel, the occluder cut at the edge (the paper); "valid": only whole
            occluders.  Exact centers: :class:`~occfast.sweep.geometry.SweepGrid`
        fill: what covers: a number, one for each channel, "mean" (of each image and channel), "noise" (uniform over
            each image's range, one seeded pattern for all), or a tensor that broadcasts to [C, H, W]
        score: what is recorded at each position, then averaged over images:
            "error": 1 where the class of the largest output (the lowest of equals) differs from the label (Eq. 3);
            "score_drop": the label's output without the occluder minus with it;
            "similarity_drop": the drop of the cosine similarity to the reference embedding
        method: "dense": a forward pass a position; "incremental": only what the occluder changes is computed again,
            equal to the dense sweep but for rounding; "auto": incremental where the model can be swept so and it
            pays.  ``OcclusionMap.method`` says which ran.  Two estimate (docs/method/estimated-maps.md), and
            ``OcclusionMap.estimate`` says how well: "adaptive": each image's map from a coarse lattice, refined where
            it changes; "sampled": the mean map from a few positions of each image
        tolerance: "sampled": stop when every location's standard error is at most this; None: all images are visited.
            "adaptive", score="error": a position is skipped if the chance that what is known puts it on the wrong
            side is at most this, in (0, 0.5]; None: 0.1.  "adaptive", real-valued scores: what interpolation may
            miss; None: 5 % of the range of each image's coarse lattice
        seed: of fill="noise", of the positions of "sampled" and of those that "adaptive" checks
        batch_size: positions in a forward pass.  None: a dense sweep measures what is fastest within ``memory_limit``
            (a batch size of your own makes it equal to the bit between runs), an incremental one chooses without
            measuring
        memory_limit: bytes, or a size such as "512MiB", for the forward passes; None takes a quarter of what is free
        device: where to sweep, by default where the model is; model and device must agree
        progress: True shows a bar, False none; or a function of (positions done, total or None)
        checkpoint: a file that is updated every half minute; if it exists the sweep goes on from it and ends at the
            same result to the bit.  It is removed at the end
        skip_misclassified: leave out images that the model gets wrong uncovered (with integer labels only)
        spacing: pixels between neighboring positions of the lattice, int or (rows, columns).  "adaptive": of the
            coarse one, by default 6 for score="error", else 8, or the occluder's side where that is less; "sampled":
            of an image's lattice, by default 10.6 % of the image's sides: with a ninth as many positions anywhere, a
            hundred an image
        check: "adaptive": share in [0, 1] of the positions skipped that are evaluated to estimate how many are wrong;
            None: 0.25 %, more for few images
        bandwidth: "sampled": standard deviation of the kernel in pixels, a number or (rows, columns); None: the
            occluder's sides
        group: processes that share the work: None: those of ``torch.distributed`` where it is initialized (all of
            them must make this call, and all get the result); False: this process alone; or a process group
        precision: None: the images' own dtype, never less: on a GPU float32 is float32 whatever ``torch.backends``
            says of TF32, and autocast does not reach in.  "tf32" (GPU, float32 images): matrix products and
            convolutions round their factors to TF32.  "bf16" (an ``nn.Module``): a bfloat16 copy of the model sweeps
            bfloat16 images. Scores are accumulated in float64 in any case.  PyTorch's switches are set for the time
            of the sweep, for the whole process

    Raises:
        ValueError, TypeError: For bad arguments, NaN or infinite pixels or outputs, no image that the model gets
            right.
        occfast.DataError: For a damaged checkpoint.
        occfast.ProcessLost: Where another process of the group died or gave up.
        occfast.NativeUnavailable: Where the kernels can't be built.
    """
    options = Options(
        occluder=checks.pair(occluder, "occluder"),
        stride=checks.pair(stride, "stride"),
        border=border,
        fill=checked_fill(fill),
        score=score,
        method=method,
        seed=checks.seed(seed),
        batch_size=batch_size,
        memory_limit=None if memory_limit is None else checks.memory(memory_limit, "memory_limit"),
        skip_misclassified=bool(skip_misclassified),
        tolerance=None if tolerance is None else checks.number(tolerance, "tolerance", 0.0, 3.4e38),
        spacing=None if spacing is None else checks.pair(spacing, "spacing"),
        check=check,
        bandwidth=None if bandwidth is None else _widths(bandwidth),
        precision=precision,
    )
    kinds: dict[str, type[Sweep]] = {"adaptive": AdaptiveSweep, "sampled": SampledSweep}
    kind = kinds.get(method, ExactSweep)
    # A sample of the images must be a random one; an iterable's order is its own.
    source = Source(
        images,
        labels,
        device_of(model, device),
        shuffle=options.seed if method == "sampled" else None,
        dtype=torch.bfloat16 if precision == "bf16" else None,
    )
    processes = Processes(group)
    file = None if checkpoint is None else Checkpoint(Path(checkpoint))
    shown = progress if processes.rank == 0 or callable(progress) else False
    sweep = kind(lowered(model, precision), source, options, processes, file)
    with (
        torch.no_grad(),
        float32_as("tf32" if precision == "tf32" else "ieee"),
        show_progress("occlusion map", "positions", shown, lambda: sweep.note) as sweep.report,
    ):
        return sweep.run()


def _widths(bandwidth: Any) -> tuple[float, float]:
    pair = bandwidth if isinstance(bandwidth, Sequence) and not isinstance(bandwidth, str) else (bandwidth, bandwidth)
    if len(pair) != 2:
        raise TypeError(f"bandwidth: expected pixels or two of them (rows, columns), got {bandwidth!r}")
    rows, columns = (checks.number(v, "bandwidth", 0.0, 1e6) for v in pair)
    return rows, columns
