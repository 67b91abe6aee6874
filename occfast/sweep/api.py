"""Computation of occlusion maps: :func:`occlusion_map`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from .. import checks
from ..packages import require
from ..progress import Report
from ..progress import progress as show_progress
from .checkpoint import Checkpoint
from .maps import OcclusionMap
from .methods.adaptive import AdaptiveSweep
from .methods.base import Sweep
from .methods.exact import ExactSweep
from .methods.sampled import SampledSweep
from .options import Method, Mismatch, Options, device_of
from .precision import float32_as, lowered
from .processes import Processes
from .source import Source
from .types import Border, Fill, ImageInput, LabelInput, Occluder, Precision, Region, Score

if TYPE_CHECKING:
    from typing import Unpack


class SweepOptions(TypedDict, total=False):
    """Options of :func:`occlusion_map` that :func:`occlusion_maps` takes too."""

    stride: checks.Pair
    border: Border
    region: Region | None
    fill: Fill
    method: Method
    skip_misclassified: bool | None
    precision: Precision | None
    seed: int
    batch_size: int | None
    memory_limit: int | str | None
    device: torch.device | str | None
    checkpoint: str | os.PathLike[str] | None
    resume: bool
    progress: bool | Report
    group: dist.ProcessGroup | Literal[False] | None


def occlusion_map(
    model: Callable[[Tensor], Tensor],
    images: ImageInput,
    labels: LabelInput | None = None,
    occluder: Occluder = (20, 40),
    *,
    stride: checks.Pair = 1,
    border: Border = "clip",
    region: Region | None = None,
    fill: Fill = 0.0,
    score: Score | Mismatch = "error",
    method: Method = "auto",
    skip_misclassified: bool | None = None,
    precision: Precision | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    memory_limit: int | str | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool | Report = True,
    group: dist.ProcessGroup | Literal[False] | None = None,
) -> OcclusionMap:
    """Compute an occlusion map: the score of a network with an occluder centered on each pixel.

    Source: trigueros2018, section 3.1.

    Args:
        model: An ``nn.Module`` in evaluation mode, or any function, from images [n, C, H, W] to a floating-point
            tensor [n, K]: class scores (K of at least 2), or embeddings for "similarity_drop" and
            :class:`Mismatch`. With a function as
            ``score``, a tensor [n, ...] of any shape, such as [n], or [n, classes, H, W] of a segmentation.
        images: Floating-point [N, C, H, W], a tensor or an array with ``__dlpack__``, scaled as the model expects; or
            an iterable of batches such as a ``DataLoader``, which may be larger than memory. A batch is images, a
            tuple (images, labels) or (images, labels, sample ids), or a mapping with the keys "images" and "labels".
        labels: Integers [N], classes in [0, K), as a tensor, an array or a list. For "similarity_drop"
            and :class:`Mismatch`: None (each image is compared with itself without an occluder) or reference
            embeddings, floating-point [N, K]. None where ``images`` is an iterable.
        occluder: (height, width) in pixels; a mask bool [height, width] of the pixels that it covers, such as
            :func:`~occfast.sweep.disk` returns; or a list of these, over which each image's map is averaged.
        stride: Pixels between neighboring centers, an int or (rows, columns).
        border: "clip": a center on every pixel, the occluder cut at the edge (the paper); "valid": whole occluders
            only. :class:`SweepGrid` has the exact centers.
        region: Top, left, bottom and right in pixels of the part of the image in which centers lie; None: all of it.
        fill: Content of the occluder: a number, one number for each channel, "mean" (of each image and channel),
            "noise" (one seeded pattern, uniform over each image's range), "blur" (the image, blurred with a standard
            deviation of a tenth of its shorter side), a tensor that broadcasts to [C, H, W] or, with one row for each
            image given, to [N, C, H, W]; or a function of images [n, C, H, W] that returns a tensor that broadcasts to
            them.
        score: Recorded at each position and averaged over images.
            "error": 1 where the class of the largest output (the lowest of equals) differs from the label (Eq. 3);
            "score_drop": the label's output without the occluder minus that with it;
            "probability_drop": the same drop of the label's softmax probability;
            "similarity_drop": the drop of the cosine similarity to the reference embedding;
            ``Mismatch(threshold)``: 1 where that similarity is below a recognizer's threshold;
            or a function of outputs [m, ...] and their labels [m, ...] (None without labels) that returns m
            floating-point numbers, of which the drop is recorded.
        method: "dense": one forward pass for each position. "incremental": recompute only what the occluder changes;
            equal to "dense" up to rounding. "auto": "incremental" where the model allows it and it is faster, else
            "dense"; ``OcclusionMap.method`` is the one that ran. Two methods estimate the map from a fraction of the
            positions, and ``OcclusionMap.estimate`` holds their error: "adaptive" refines each image's map where it
            changes; "sampled" estimates the mean map. Pass :class:`Adaptive` or :class:`Sampled` to set their
            options.
        skip_misclassified: Leave out images that the model misclassifies without an occluder, or whose uncovered
            embedding does not match the reference. None: True for "error" and :class:`Mismatch`, else False.
            ``OcclusionMap.image_indices`` lists the images that were used.
        precision: None: the images' own dtype. Float32 is then IEEE float32, whatever ``torch.backends`` and autocast
            say. "tf32" (float32 images on a GPU): matrix products and convolutions round their factors to TF32.
            "bf16" (an ``nn.Module``): a bfloat16 copy of the model sweeps bfloat16 images. Scores are accumulated in
            float64 in any case. PyTorch's switches are process-wide and are restored afterwards.
        seed: For ``fill="noise"``, the positions of "sampled" and the checked positions of "adaptive".
        batch_size: Positions in one forward pass. None: "dense" measures which is fastest within ``memory_limit`` (a
            fixed batch size makes two runs equal to the bit); "incremental" chooses without measuring.
        memory_limit: Memory of the forward passes, bytes or a size such as "512MiB". None: a quarter of what is free.
        device: Device of the sweep. None: the model's, or the images' for a function.
        checkpoint: File that holds the unfinished sweep; it is updated every 30 seconds. When the sweep ends the file
            holds the finished one, until :meth:`OcclusionMap.save` has written the map to a ``.npz`` file; then it is
            removed. It may be that ``.npz`` file itself.
        resume: Continue from ``checkpoint`` if the file is there, to the same result to the bit; a finished sweep is
            returned at once. Settings, weights, outputs and images must be the same. False: start anew and
            overwrite the file at the first update.
        progress: True shows a bar or lines on the standard error, False nothing; or a function that is called with
            (positions done, total or None).
        group: Processes that share the work: None: all of ``torch.distributed`` where it is initialized (each of them
            must make this call, and each gets the map); False: this process alone; or a process group.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, pixels or outputs are NaN or infinite, the model is right about no
            image, or ``checkpoint`` belongs to another sweep.
        occfast.DataError: ``checkpoint`` is damaged or another kind of file.
        occfast.ProcessLost: Another process of the group died or raised.
        occfast.NativeUnavailable: The kernels can't be built.
    """
    found = _maps(
        model=model,
        images=images,
        labels=labels,
        occluder=occluder,
        score=score,
        stride=stride,
        border=border,
        region=region,
        fill=fill,
        method=method,
        skip_misclassified=skip_misclassified,
        precision=precision,
        seed=seed,
        batch_size=batch_size,
        memory_limit=memory_limit,
        device=device,
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
        group=group,
        many=False,
    )
    return found[0]


def occlusion_maps(
    model: Callable[[Tensor], Tensor],
    images: ImageInput,
    labels: LabelInput | None = None,
    occluder: Occluder = (20, 40),
    *,
    score: Score = "score_drop",
    **options: Unpack[SweepOptions],
) -> list[OcclusionMap]:
    """Compute an occlusion map for each of several targets in one sweep.

    Args:
        model, images, occluder: As for :func:`occlusion_map`.
        labels: Integers [N, T]: T classes for each image, or [N] for one.
        score: "score_drop" or "probability_drop".
        **options: The other arguments of :func:`occlusion_map`. ``method`` is "auto", "dense" or "incremental". A
            ``checkpoint`` is removed after all maps have been saved.

    Returns:
        T maps.

    Raises:
        TypeError, ValueError: As for :func:`occlusion_map`.
    """
    named: dict[str, Any] = {**_DEFAULTS, **options}
    unknown = named.keys() - _DEFAULTS.keys()
    if unknown:
        raise TypeError(f"occlusion_maps() got an unexpected keyword argument {sorted(unknown)[0]!r}")
    return _maps(model=model, images=images, labels=labels, occluder=occluder, score=score, **named, many=True)


def _maps(
    *,
    model: Callable[[Tensor], Tensor],
    images: ImageInput,
    labels: LabelInput | None,
    precision: Precision | None,
    device: torch.device | str | None,
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
    progress: bool | Report,
    group: dist.ProcessGroup | Literal[False] | None,
    many: bool,
    **more: Any,
) -> list[OcclusionMap]:
    """Check the arguments of a sweep, of which ``more`` are those of :meth:`Options.checked` alone, and run it."""
    options = Options.checked(precision=precision, **more)
    show = checks.progress(progress)
    file = None if checkpoint is None else Checkpoint(Path(checkpoint), resume=checks.flag(resume, "resume"))
    kinds: dict[str, type[Sweep]] = {"adaptive": AdaptiveSweep, "sampled": SampledSweep}
    if options.method in ("adaptive", "sampled"):
        require(f"method={options.method!r}", "scipy")  # before any work is done
    # A sample of the images must be random; the order of an iterable is the caller's.
    source = Source(
        images,
        labels,
        device_of(model, device),
        shuffle=options.seed if options.method == "sampled" else None,
        dtype=torch.bfloat16 if options.precision == "bf16" else None,
    )
    processes = Processes(group)
    sweep = kinds.get(options.method, ExactSweep)(lowered(model, precision), source, options, processes, file)
    sweep.many = many
    with (
        torch.no_grad(),
        float32_as("tf32" if options.precision == "tf32" else "ieee"),
        show_progress(
            "occlusion map", "positions", show if processes.rank == 0 or callable(show) else False, lambda: sweep.note
        ) as sweep.report,
    ):
        return sweep.run()


#: Defaults of the arguments that :func:`occlusion_maps` passes on.
_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(occlusion_map).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "score"
}
