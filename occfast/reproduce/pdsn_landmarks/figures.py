"""The figures of the pdsn-landmarks reproduction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...pdsn.faces import BANDS
from ...plots import gray
from ..report import Picture

_PARTS = ("left eye", "right eye", "nose", "left of the mouth", "right of the mouth")


def pictures(content: Mapping[str, Any], command: str, figures: Sequence[int]) -> Iterable[tuple[int, Picture]]:
    """Yield the figures of the paper by number.

    Args:
        content: what the step "examples" wrote.
        command: shown with each figure.
        figures: numbers of the figures that are wanted; the costly others are left out.
    """

    def only(k: int) -> str:
        return f"{command} --figure {k}" if "--figure" not in command else command

    def sheet(rows: Sequence[tuple[str, str]], names: Sequence[str], cmap: str = "inferno") -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1.75 * len(names), 2.3 * len(rows) + 0.2), layout="constrained")
        axes = np.asarray(figure.subplots(len(rows), len(names), squeeze=False))
        for line, (key, text) in enumerate(rows):
            for column, name in enumerate(names):
                ax, image = axes[line, column], content[f"{key} {name.replace(' ', '-')}"]
                ax.imshow(
                    gray(image) if key == "face" else image,
                    cmap="gray" if key in ("face", "label", "cleaned", "predicted") else cmap,
                )
                ax.set_xticks([])
                ax.set_yticks([])
                if line == 0:
                    ax.set_title(name, fontsize=9)
            axes[line, 0].set_ylabel(text, fontsize=9)
        return figure

    what = "Means over faces: no single face is shown."
    face = ("face", "mean face")
    yield (
        2,
        Picture(
            "Figure 2",
            f"Saliency: |d logit / d pixel| of the base on clean test images. {what}",
            "Mean face and mean saliency",
            sheet([face, ("saliency", "saliency")], ["clean"]),
            only(2),
        ),
    )
    if 3 in figures:
        yield (
            3,
            Picture(
                "Figure 3",
                "Offsets of landmarks from their mean places, in pixels: LM1 and LM2 are made from their spread.",
                "Histograms of landmark offsets",
                _offsets(content["landmarks"]),
                only(3),
            ),
        )
    if 4 in figures:
        yield (
            4,
            Picture(
                "Figure 4",
                "Regions over the mean face: the 3×3 grid, LM1 and LM2.",
                "Regions of the three strategies",
                _regions(content),
                only(4),
            ),
        )
    yield (
        5,
        Picture(
            "Figure 5",
            "Labels of the segmentation from |clean − covered|, before and after opening and closing; the mean face.",
            "Segmentation labels before and after cleaning",
            sheet([face, ("label", "cut"), ("cleaned", "cleaned")], ["face mask", "sunglasses", "eyes"]),
            only(5),
        ),
    )
    yield (
        6,
        Picture(
            "Figure 6",
            "Sunglasses and a face mask, drawn on the mean face.",
            "Mean face with sunglasses and mask",
            sheet([face], ["clean", "sunglasses", "face mask"]),
            only(6),
        ),
    )
    yield (
        7,
        Picture(
            "Figure 7",
            f"Pixels that the U-Net labels as covered: on the mean face, and their frequency on test images. {what}",
            "Predicted occlusions",
            sheet(
                [face, ("predicted", "predicted"), ("share", "frequency")], ["face mask", "sunglasses", "eyes", "chin"]
            ),
            only(7),
        ),
    )
    for k, names in ((8, list(BANDS)), (9, ["face mask", "sunglasses"])):
        yield (
            k,
            Picture(
                f"Figure {k}",
                f"Saliency without and with LM2's discard mask, occlusion known. {what}",
                "Mean saliency with and without the discard mask",
                sheet([face, ("saliency", "no mask"), ("masked", "with mask")], names),
                only(k),
            ),
        )


def _offsets(landmarks: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.subplots(2, 5, sharey=True, sharex=True)
    offsets = landmarks - landmarks.mean(0)
    for part, name in enumerate(_PARTS):
        for axis, text in enumerate(("rows", "columns")):
            ax = axes[axis, part]
            ax.hist(offsets[:, part, axis], bins=np.arange(-15.5, 16), color="#b5367a", alpha=0.7)
            ax.set_title(
                f"{name}\nσ = {offsets[:, part, axis].std():.2f}"
                if axis == 0
                else f"σ = {offsets[:, part, axis].std():.2f}",
                fontsize=9,
            )
            if part == 0:
                ax.set_ylabel(text)
    return figure


def _regions(content: Mapping[str, Any]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    for ax, strategy in zip(figure.subplots(1, 3), ("3x3", "lm1", "lm2"), strict=True):
        ax.imshow(gray(content["mean"]), cmap="gray")
        for top, left, bottom, right in content[f"boxes {strategy}"]:
            ax.add_patch(
                Rectangle(
                    (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="#ff7d00", linewidth=1.5
                )
            )
        points = content["landmarks"].mean(0)
        ax.plot(points[:, 1], points[:, 0], "+", color="#2f7fb5")
        ax.set_title({"3x3": "3×3", "lm1": "LM1", "lm2": "LM2"}[strategy], fontsize=10)
        ax.set_axis_off()
    return figure
