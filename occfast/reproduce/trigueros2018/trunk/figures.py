"""The figures of the networks on a pretrained trunk."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....plots import extent, gray
from ....sweep import OcclusionMap
from ....train.augment import TEMPERATURES
from ...report import Picture
from ..figures import grid
from ..settings import pretty
from .results import TrunkResults
from .settings import LOSSES, STAGES
from .steps import named

_SAME, _DIFFERENT = "#3a9a5b", "#b5367a"
_COLORS = {"B": "#2f7fb5", "C": "#b5367a"}


def figure_4(results: TrunkResults) -> Picture:
    """Draw the scores of pairs for A, B and C on the training people and on LFW, as Figure 4 of the paper."""
    names = ["A", *(named(loss, "", stage) for stage in STAGES for loss in LOSSES)]
    titles = ["A", *(f"{loss}, {text}" for text in STAGES.values() for loss in LOSSES)]
    figure, axes = grid(2, len(names), 2.1 * len(names), 4.4, bare=False)
    for row, (step, text) in enumerate((("networks", "training people of A"), ("verify", "LFW"))):
        for ax, name, title in zip(axes[row], names, titles, strict=True):
            found = results.facts(step, name)
            edges = np.array(found[0]["distribution"]["edges"])
            for kind, color, label in (("same", _SAME, "one person"), ("different", _DIFFERENT, "two people")):
                counts = np.sum([one["distribution"][kind] for one in found], 0, dtype=float)
                ax.stairs(counts / max(counts.sum(), 1), edges, fill=True, alpha=0.5, color=color, label=label)
            d = float(np.mean([one["decidability"] for one in found]))
            ax.set_title(f"{title}\nd′ = {d:.2f}" if row == 0 else f"d′ = {d:.2f}", fontsize=9)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_yticks([])
        axes[row, 0].set_ylabel(text)
    for ax in axes[1]:
        ax.set_xlabel("cosine similarity", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=7)
    return Picture(
        "Figure 4",
        "Scores of pairs of one person and of two, all seeds together, and the decidability d′ (Eq. 8): above on pairs "
        "of the people that A was trained on, below on LFW's. The paper shows A and B, with d instead of the cosine.",
        "Histograms of the scores of pairs for A, B and C on the training people and on LFW",
        figure,
    )


def choices_figure(results: TrunkResults) -> Picture:
    """Draw the accuracy of every candidate on the pairs that hyperparameters are chosen on."""
    tried: list[dict[str, Any]] = results.choices()["B and C"]["tried"]
    base = 100 * float(np.mean(next(one["accuracies"] for one in tried if one["network"] == "A")))
    figure, axes = grid(1, len(STAGES), 3.3 * len(STAGES), 3.0, bare=False)
    for ax, (stage, text) in zip(axes[0], STAGES.items(), strict=True):
        for loss in LOSSES:
            own = [one for one in tried if one["network"] == loss and one["people"] == stage]
            for style, rate in zip((":", "--", "-", "-."), sorted({one["rate"] for one in own}), strict=False):
                line = sorted((one["epochs"], 100 * np.mean(one["accuracies"])) for one in own if one["rate"] == rate)
                ax.plot(*zip(*line, strict=True), style, color=_COLORS[loss], marker=".", label=f"{loss}, {rate:g}")
        ax.axhline(base, color="#575463", linewidth=0.8)
        ax.set_title(f"trained on {text}", fontsize=10)
        ax.set_xscale("log", base=2)
        ax.set_xlabel("epochs")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("accuracy when choosing [%]")
    axes[0, 0].legend(frameon=False, fontsize=7)
    return Picture(
        "Candidates",
        "Accuracy on the pairs that hyperparameters are chosen on, mean over seeds, by loss and learning rate; the "
        "line is A.",
        "Accuracy of the triplet stages by epochs and learning rate",
        figure,
    )


def maps(results: TrunkResults) -> Picture:
    """Draw the maps of A and P, with the mean face."""
    sizes = results.settings.sizes
    figure, axes = grid(2, len(sizes), 2.8 * len(sizes), 6.0)
    for column, (name, size) in enumerate(sizes.items()):
        found = OcclusionMap.load(results.steps[f"map A {name}"].folder / "map.npz")
        top = max(100 * float(found.values.max()), 1.0)
        shown = axes[0, column].imshow(
            100 * found.values, extent=extent(*found.centers), cmap="inferno", vmin=0, vmax=top, interpolation="nearest"
        )
        figure.colorbar(shown, ax=axes[0, column], shrink=0.8, format="%.0f %%")
        p = found.distribution(TEMPERATURES[size])
        axes[1, column].imshow(gray(found.mean_image), cmap="gray")
        density = p.probabilities.numpy() * p.probabilities.numel()
        shown = axes[1, column].imshow(density, cmap="viridis", alpha=0.6, interpolation="nearest")
        figure.colorbar(shown, ax=axes[1, column], shrink=0.8, format="%.1f×")
        axes[0, column].set_title(f"{pretty(name)}, {found.n_images} images")
    axes[0, 0].set_ylabel("O: error rate of A")
    axes[1, 0].set_ylabel("P on the mean face")
    return Picture(
        "Maps",
        "Occlusion maps of A on the trunk, sampled on held-out images that A recognizes, and P = softmax(O / T) as a "
        f"multiple of uniform; T = {', '.join(f'{t:g}' for t in TEMPERATURES.values())}.",
        "Occlusion maps of network A and the placement P on the mean face",
        figure,
    )
