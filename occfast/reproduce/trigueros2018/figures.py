"""The figures of the trigueros2018 reproduction."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...occlude.noisy import NoisyOccluder
from ...plots import extent, gray
from ...train.augment import TEMPERATURES
from ..report import Picture
from .results import Results
from .settings import FIGURE_6, SIZES, TABLE_1, pretty, times
from .sources import Sources
from .steps import parts

_COLORS = {"A": "#575463", "A20x20": "#2f7fb5", "A20x40": "#b5367a", "A40x40": "#3a9a5b"}
#: Conditions of Figure 6.
CONDITIONS = ("clean", "sunglasses", "scarf")
_ACCENT, _GRAY = "#b5367a", "#575463"


def only(command: str, what: str) -> str:
    """Return the command that makes one table or figure alone."""
    return f"{command} {what}" if what not in command else command


def grid(rows: int, columns: int, width: float, height: float, *, bare: bool = True) -> tuple[Any, Any]:
    """Make a figure of ``rows`` × ``columns`` axes; bare ones have no ticks and no frame."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.asarray(figure.subplots(rows, columns, squeeze=False))
    for ax in axes.flat if bare else ():
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    return figure, axes


def bars(results: Results) -> Picture:
    """Draw Table 1: mean and standard deviation over locations, beside the paper's."""
    from matplotlib.figure import Figure

    names = results.settings.rows
    figure = Figure(figsize=(9.0, 0.42 * len(names) + 1.5), layout="constrained")
    axes = np.asarray(figure.subplots(1, 3, sharey=True))
    for column, (size, ax) in enumerate(zip(SIZES, axes, strict=True)):
        for row, name in enumerate(names):
            shown = [
                (float(np.mean(results.cell(name, size, "mean"))), float(np.mean(results.cell(name, size, "std"))))
            ]
            shown += [TABLE_1[name][column]] if name in TABLE_1 else []
            for k, (mean, std) in enumerate(shown):
                style: dict[str, Any] = (
                    {"fmt": "s", "ms": 4, "color": "#a9a6b4", "capsize": 2, "label": "paper"}
                    if k
                    else {"fmt": "o", "color": _ACCENT, "capsize": 3, "label": "this run"}
                )
                if row:
                    style["label"] = None
                ax.errorbar(mean, row - 0.12 + 0.3 * k, xerr=[[std], [min(std, 100 - mean)]], **style)
        ax.set_title(f"occluder {pretty(times(size))}")
        ax.set_xlabel("accuracy over locations [%]")
        ax.grid(axis="x", color="#e3e0ea")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), [pretty(name) for name in names])
    axes[0].invert_yaxis()
    axes[0].legend(loc="lower left", frameon=False, fontsize=8)
    return Picture(
        "Table 1 as a picture",
        "Mean accuracy over locations; bars show one standard deviation over locations.",
        "Mean accuracy and standard deviation over locations, this run and the paper",
        figure,
    )


def maps(results: Results) -> Picture:
    """Draw the maps of Table 1: a row for each network, one color scale for each occluder."""
    names = results.settings.rows
    figure, axes = grid(len(names), 3, 8.2, 2.15 * len(names) + 0.4)
    for column, size in enumerate(SIZES):
        found = {name: results.map(f"table {name} {times(size)}") for name in names}
        top = max(100 * max(float(m.values.max()) for m in found.values()), 1.0)
        for row, (name, m) in enumerate(found.items()):
            ax = axes[row, column]
            shown = ax.imshow(
                100 * m.values, extent=extent(*m.centers), cmap="inferno", vmin=0, vmax=top, interpolation="nearest"
            )
            mean, std = m.accuracy
            ax.set_xlabel(f"{100 * mean:.2f} ± {100 * std:.2f} %", color=_GRAY)
            if column == 0:
                ax.set_ylabel(pretty(name), fontweight="bold")
            if row == 0:
                ax.set_title(f"occluder {pretty(times(size))}")
        figure.colorbar(
            shown,
            ax=list(axes[:, column]),
            location="bottom",
            shrink=0.8,
            pad=0.01,
            format="%.0f %%",
            label="error rate",
        )
    return Picture(
        "Maps of Table 1",
        "Error rate with the occluder's center at each place, on the images of the table, which P was not made from "
        f"(seed {results.settings.seeds[0]}). Each column has one scale: darker is better.",
        "Occlusion maps of every network for the three occluders",
        figure,
    )


def figure_1(results: Results, command: str) -> Picture:
    """Draw Figure 1 of the paper, and P below it."""
    figure, axes = grid(4, 3, 8.4, 10.8)
    for column, size in enumerate(SIZES):
        m = results.map(f"map A {times(size)}")
        p = m.distribution(TEMPERATURES[size])
        mean = gray(m.mean_image)
        where = NoisyOccluder(size, p, noise=("gaussian",), level=(0.0, 0.0), intensity=(0.5, 0.5), seed=3)
        covered = where(torch.from_numpy(mean)[None, None].float(), torch.tensor([column]))
        axes[0, column].imshow(covered[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        top = max(100 * float(m.values.max()), 1.0)
        shown = axes[1, column].imshow(
            100 * m.values, extent=extent(*m.centers), cmap="inferno", vmin=0, vmax=top, interpolation="nearest"
        )
        figure.colorbar(shown, ax=axes[1, column], shrink=0.8, format="%.0f %%")
        axes[2, column].imshow(gray(m.masked_mean()), cmap="gray")
        density = p.probabilities.numpy() * p.probabilities.numel()
        shown = axes[3, column].imshow(density, cmap="viridis", interpolation="nearest")
        figure.colorbar(shown, ax=axes[3, column], shrink=0.8, format="%.1f×")
        axes[0, column].set_title(f"{pretty(times(size))}, {m.n_images} images")
    for row, text in enumerate(
        ("mean face, occluder drawn from P", "O: error rate of A", "mean face masked by O", "P")
    ):
        axes[row, 0].set_ylabel(text)
    return Picture(
        "Figure 1",
        "Occlusion maps of A for the three occluders: bright where covering makes it fail. The paper's maps are "
        "bright in the middle of the face. Below: P = softmax(O / T), where occluders are placed in training, as a "
        f"multiple of uniform; T = {', '.join(f'{t:g}' for t in TEMPERATURES.values())}.",
        "Mean face with an occluder, occlusion maps of network A, the mean face masked by them, and the placement P",
        figure,
        only(command, "--figure 1"),
    )


def figure_2(results: Results, command: str) -> Picture:
    """Draw the noisy occluders, as Figure 2 of the paper."""
    kinds, columns = ("salt_and_pepper", "speckle", "gaussian"), 5
    figure, axes = grid(3, columns, 8.4, 5.2)
    m = results.map("map A 20x40")
    face = torch.from_numpy(gray(m.mean_image))[None, None].float()
    for row, kind in enumerate(kinds):
        occluder = NoisyOccluder((20, 40), m.distribution(TEMPERATURES[20, 40]), noise=(kind,), seed=row)  # type: ignore[arg-type]
        covered = occluder(face.expand(columns, -1, -1, -1), torch.arange(columns))
        for ax, image in zip(axes[row], covered, strict=True):
            ax.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_ylabel(kind.replace("_", " "))
    return Picture(
        "Figure 2",
        "The occluders of training, 20×40, on the mean face: random intensity, noise and level, placed by P.",
        "The mean face with noisy occluders",
        figure,
        only(command, "--figure 2"),
    )


def figure_4(results: Results, command: str) -> Picture:
    """Draw the scores of pairs for A, B and C, as Figure 4 of the paper."""
    figure, axes = grid(1, 3, 9.6, 3.0, bare=False)
    for ax, name, text in zip(
        axes[0], "ABC", ("A: classification", "B: triplet loss", "C: batch triplet loss"), strict=True
    ):
        result = results.step(f"verify {name}").result
        edges = np.array(result["distribution"]["edges"])
        for kind, color, label in (("same", "#3a9a5b", "one person"), ("different", "#b5367a", "two people")):
            counts = np.array(result["distribution"][kind], dtype=float)
            ax.stairs(counts / max(counts.sum(), 1), edges, fill=True, alpha=0.5, color=color, label=label)
        ax.set_title(f"{text}, d′ = {result['decidability']:.2f}", fontsize=10)
        ax.set_xlabel("cosine similarity")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return Picture(
        "Figure 4",
        f"Scores of pairs of one person and of two, seed {results.settings.seeds[0]}, and the decidability d′ (Eq. 8). "
        "The paper shows A and B, with d instead of the cosine: there the triplet loss moves the means apart and "
        "widens both distributions.",
        "Histograms of the scores of pairs for A, B and C",
        figure,
        only(command, "--figure 4"),
    )


def figure_6(results: Results, command: str) -> Picture:
    """Draw ROC curves for clean faces, sunglasses and scarves, as Figure 6 of the paper."""
    figure, axes = grid(1, 3, 9.6, 3.6, bare=False)
    first = results.step("roc A").result["conditions"]
    for ax, condition in zip(axes[0], CONDITIONS, strict=True):
        n = first[condition]["n_different"]
        rates = np.logspace(np.log10(max(1e-4, 1 / n)), 0, 200)
        for name in FIGURE_6:
            curves = []
            for seed in results.settings.seeds:
                found = results.step(f"roc {name}", seed).result["conditions"][condition]
                far, tar = np.array(found["far"]), np.array(found["tar"])
                curves.append([tar[far <= f * (1 + 1e-9)].max() for f in rates])
            ax.plot(rates, np.mean(curves, 0), color=_COLORS[name], label=pretty(name), linewidth=1.5)
        ax.set_xscale("log")
        ax.set_ylim(0, 1.01)
        ax.set_title(f"{condition}: {first[condition]['n_same']} + {n} pairs", fontsize=10)
        ax.set_xlabel("false acceptance rate")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("true acceptance rate")
    axes[0, 0].legend(frameon=False, fontsize=8)
    real = "drawn on held-out people of ORL" if results.settings.scale == "smoke" else "photographs of AR"
    return Picture(
        "Figure 6",
        f"A clean reference against clean faces, sunglasses and scarves ({real}); mean over seeds of the TAR at each "
        "FAR. With n pairs of two people no FAR below 1/n can be measured: the axis begins there, the paper's at 10⁻⁴.",
        "ROC curves of four networks for clean faces, sunglasses and scarves",
        figure,
        only(command, "--figure 6"),
    )


def photographs(results: Results, sources: Sources) -> list[Picture]:
    """Draw faces with the occluders of training, and faces of the three parts of the data."""
    s, faces = results.settings, sources.train
    split = parts(s, faces, s.seeds[0])
    figure, axes = grid(3, 8, 9.0, 3.6)
    chosen = split[0][:: max(1, len(split[0]) // 8)][:8]
    for row, size in enumerate(SIZES):
        p = results.map(f"map A {times(size)}").distribution(TEMPERATURES[size])
        occluder = NoisyOccluder(size, p, seed=s.seeds[0] + s.fine_seed)
        for ax, face in zip(axes[row], occluder(faces.images(chosen).float() / 255, chosen), strict=False):
            ax.imshow(face[0].numpy(), cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_ylabel(pretty(times(size)))
    text = "Random intensity; salt-and-pepper, speckle or Gaussian noise at a random level; locations drawn from P."
    occluders = Picture("Faces as the networks see them in training", text, "Faces with noisy occluders", figure)
    figure, axes = grid(3, 10, 9.0, 3.1)
    for row, (part, text) in enumerate(zip(split, ("training", "for P", "for the table"), strict=True)):
        for ax, k in zip(axes[row], part[:: max(1, len(part) // 10)][:10].tolist(), strict=False):
            ax.imshow(faces[k].image[0].numpy(), cmap="gray", vmin=0, vmax=255)
        axes[row, 0].set_ylabel(text)
    counts = "{} images for training, {} for P and {} for the table; no image is in two parts.".format(*map(len, split))
    text = f"ORL (AT&T Laboratories Cambridge), aligned by five landmarks and scaled to 100×100. {counts}"
    return [occluders, Picture("The data", text, "Aligned faces of the three parts", figure)]
