"""Networks that a user names on the command line, and faces prepared for them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data import FaceDataset
    from ..models import Preprocessing, Preset, Recognizer


def load_recognizer(
    model: str,
    source: FaceDataset,
    *,
    network: str | None = None,
    classes: int | None = None,
    size: tuple[int, int] | None = None,
    color: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    preset: str | None = None,
    trust: bool = False,
    device: str = "cpu",
    template: str | None = None,
    resize: bool = False,
    aligned: bool | None = None,
    quiet: bool = False,
    find: Callable[[FaceDataset], FaceDataset] | None = None,
) -> tuple[Recognizer, Preprocessing]:
    """Load a network and determine how its images are prepared.

    Args:
        model, network, classes, preset, trust: See :func:`occfast.models.load`.
            The preset "auto" tries those that fit and takes the one with the best separation, aloud.
        source: The data; their images' shape is the input of networks whose files don't describe it.
        size, color, mean, std: Preprocessing, in place of what the file or the preset states; ``mean`` and ``std`` as
            on the command line.
        device: "auto", "cpu" or "cuda".
        template, resize, aligned: Alignment in the trials of the preset "auto"; see :func:`prepared`.
        quiet: Whether those show no progress.
        find: Function that finds the landmarks that those need; None: the data have them.

    Raises:
        ValueError: ``mean`` or ``std`` is not one number or three; otherwise as :func:`occfast.models.load`.
    """
    import torch

    from .. import checks
    from ..models import Preprocessing, load

    shape = tuple(source[0].image.shape)
    given: dict[str, Any] = {
        "size": size,
        "color": color,
        "mean": numbers(mean, "--mean"),
        "std": numbers(std, "--std"),
    }
    given = {name: value for name, value in given.items() if value is not None}
    plain = Preprocessing(**{"size": (shape[1], shape[2]), "color": "gray" if shape[0] == 1 else "RGB", **given})
    place = checks.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    found = load(
        model,
        network=network,
        classes=classes,
        channels=plain.channels,
        size=plain.size,
        preset=None if preset == "auto" else preset,
        trust=trust,
    ).to(place)
    if preset == "auto":
        if found.preprocessing is not None:
            raise ValueError(f"--preset: only valid for files that do not record how images are prepared; {model} does")
        trial = source if find is None else find(source)
        found = _with_best_preset(found, model, trial, template, resize, aligned, quiet)
    return found, found.prepare(shape, **given)


def _with_best_preset(
    found: Recognizer,
    model: str,
    source: FaceDataset,
    template: str | None,
    resize: bool,
    aligned: bool | None,
    quiet: bool,
) -> Recognizer:
    import typer

    from ..evaluate import try_presets
    from ..models import PRESETS

    as_is = resize or aligned or template is not None

    def prepare(faces: FaceDataset, one: Preset) -> FaceDataset:
        if one.template is None and not as_is and faces.landmarks is not None:
            raise ValueError("expects images of the face's box, these are photographs (else give --resize)")
        return prepared(faces, one.preprocessing, template, resize, aligned=aligned, preset=one.template)

    trials = try_presets(found, source, prepare, progress=not quiet)
    best = PRESETS[trials[0].preset]
    typer.echo(f"{model}: --preset {trials[0].preset} separates best ({'; '.join(map(str, trials))})", err=True)
    return dataclasses.replace(found, preprocessing=best.preprocessing, template=best.template)


def numbers(text: str | None, name: str) -> float | tuple[float, ...] | None:
    """Return the number or the three numbers that an option such as 0.5 or 0.485,0.456,0.406 states."""
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) not in (1, 3):
        raise ValueError(f"{name}: expected a number, or three separated by commas, got {text!r}")
    return found[0] if len(found) == 1 else found


def pair(text: str, name: str) -> tuple[int, int]:
    """Return the height and width that a text such as 20x40 states."""
    height, _, width = text.lower().replace("×", "x").partition("x")
    if not (height.isdecimal() and width.isdecimal()) or max(len(height), len(width)) > 9:
        raise ValueError(f"{name}: expected height x width as in 20x40, got {text!r}")
    return int(height), int(width)


def prepared(
    source: FaceDataset,
    preprocessing: Preprocessing,
    template: str | None,
    resize: bool,
    *,
    aligned: bool | None = None,
    preset: str | None = None,
) -> FaceDataset:
    """Return the faces as the network expects them: aligned as its weights record, or resized on request.

    Args:
        source: The data set.
        preprocessing: How images become the network's input.
        template: Template to align to, in place of the recorded one.
        resize: Resize the images instead of aligning them.
        aligned: Whether the user states that the images are aligned already; they are then only resized. False refuses
            ``resize`` for weights that record an alignment; None doesn't.
        preset: Template of a preset, unless ``template``, ``resize`` or ``aligned`` is given.
    """
    from ..data import Aligned, Alignment
    from ..data.align import aligned_as
    from ..data.resize import Resized

    gray = preprocessing.color == "gray"
    if (resize or aligned) and template is not None:
        raise ValueError(f"{'--aligned' if aligned else '--resize'}: not valid together with --template")
    how = Alignment.read(preprocessing.alignment, "weights")
    if resize and aligned is False and how is not None:
        raise ValueError(
            f"--resize: the weights expect faces aligned to {how.template}, and lose accuracy on others; leave "
            "--resize out to align them by landmarks, or give --aligned if these images are aligned already"
        )
    if template is None and not resize and not aligned:
        template = preset
    if resize or aligned:
        return Resized(source, preprocessing.size, gray=gray)
    if template is None and (how is None or source.alignment is not None):
        return source  # embed refuses another size, colors or alignment
    if source.landmarks is None:
        raise ValueError(
            "dataset: no landmarks to align by; find them with occfast data landmarks DATASET landmarks.csv, then give "
            "--landmarks landmarks.csv"
        )
    if template is not None:
        return Aligned(source, template, gray=gray, size=preprocessing.size)
    assert how is not None
    return aligned_as(source, how, gray=gray)
