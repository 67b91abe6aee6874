"""The demo's report: ``report.json`` with every figure and ``report.html``, one self-contained page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_atomically
from ..plots import extent, gray, png_data_uri
from ..train.augment import TEMPERATURES
from .demo import PAPER, Result, compare, occluder, occluder_name
from .report import environment
from .trigueros2018.steps import CONTROL

SIZES = tuple(TEMPERATURES)
_ACCENT, _GRAY = "#b5367a", "#575463"


def write(result: Result, output: Path) -> Path:
    """Write both files atomically; returns the path of the page."""
    facts = gather(result)
    write_atomically(output / "report.json", (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    return write_atomically(output / "report.html", render(result, facts).encode())


# -- figures as numbers ------------------------------------------------------------------------------------


def gather(result: Result) -> dict[str, Any]:
    """Everything that the page says, as plain data; what depends on the clock is in ``cost`` alone."""
    s = result.settings
    comparisons = [
        {"network": name, "against": other, "occluder": occluder_name(size), **compare(result, name, other, size)}
        for name in s.networks
        for other in ("A", CONTROL)
        for size in SIZES
    ]
    return {
        "kind": "occfast.demo",
        "version": 1,
        "settings": asdict(s),
        "data": {
            "name": "ORL (AT&T Laboratories Cambridge): 400 photographs of 40 people",
            "people": s.people,
            "training_images": len(result.parts[0]),
            "images_for_placement": len(result.parts[1]),
            "images_for_table": len(result.parts[2]),
        },
        "placement": [
            {
                "occluder": occluder_name(size),
                "temperature": TEMPERATURES[size],
                "accuracy_mean": 100 * m.accuracy[0],
                "accuracy_std": 100 * m.accuracy[1],
                "images": m.n_images,
                "largest_error": 100 * float(m.values.max()),
                "entropy_bits": result.placements[size].entropy,
                "peak_over_uniform": float(result.placements[size].probabilities.max()) * _pixels(result),
            }
            for size, m in result.placement_maps.items()
        ],
        "table": [
            {
                "network": name,
                "clean_accuracy": 100 * result.clean[name],
                "clean_accuracy_held_out": 100 * result.held_out[name],
                "final_loss": result.histories[name][-1].loss,
                "cells": {
                    occluder_name(size): _cell(result.maps[name][size], name, column)
                    for column, size in enumerate(SIZES)
                },
            }
            for name in result.maps
        ],
        "comparisons": comparisons,
        "verdict": [_verdict(result, size) for size in SIZES],
        "differences": differences(result),
        "cost": {
            "seconds": sum(cost.seconds for cost in result.costs),
            "steps": [asdict(cost) for cost in result.costs],
            "positions_per_second": _rate(result),
        },
        "environment": environment(),
    }


def _pixels(result: Result) -> int:
    return int(result.images.shape[-2] * result.images.shape[-1])


def _cell(m: Any, name: str, column: int) -> dict[str, float | int | None]:
    paper = PAPER.get(name)
    return {
        "mean": 100 * m.accuracy[0],
        "std": 100 * m.accuracy[1],
        "images": m.n_images,
        "paper_mean": paper[column][0] if paper else None,
        "paper_std": paper[column][1] if paper else None,
    }


def _verdict(result: Result, size: tuple[int, int]) -> dict[str, Any]:
    """Whether training with placed occluders of a size raised the mean accuracy under them and lowered its std."""
    name = f"A{occluder_name(size)}"
    if name not in result.maps:
        return {"occluder": occluder_name(size), "network": None, "raises_mean": None, "lowers_std": None}
    gain = compare(result, name, "A", size)
    return {
        "occluder": occluder_name(size),
        "network": name,
        "raises_mean": gain["mean"] > 0,
        "lowers_std": gain["std"] < 0,
        **gain,
        "mean_against_control": compare(result, name, CONTROL, size)["mean"],
    }


def _rate(result: Result) -> float:
    swept = [cost for cost in result.costs if cost.evaluations]
    return sum(cost.evaluations for cost in swept) / max(sum(cost.seconds for cost in swept), 1e-9)


def differences(result: Result) -> list[str]:
    """In what this run departs from the paper."""
    s = result.settings
    found = [
        f"Data: {len(result.parts[0])} training photographs of {s.people} people taken in one laboratory (ORL), not "
        "445,000 of 10,575 people from the web. Fewer people are easier to tell apart and fewer images tell less: "
        "compare the direction of the changes with the paper's, not their size.",
        f"Maps are means over {len(result.parts[1])} and {len(result.parts[2])} images (less those wrong uncovered), "
        "not 1,000.",
        "Batch normalization after each convolution: the paper's network has none and would need more faces and time.",
        "Faces are aligned by a similarity transform from five landmarks that a detector found.",
        "The paper doesn't say what the swept occluder is filled with; here it is middle gray without noise.",
    ]
    if s.width != 1:
        found.append(
            f"The network has {s.width:g} times the paper's channels: a feature of {round(320 * s.width)} numbers, "
            "not 320."
        )
    if s.stride != 1:
        found.append(
            f"The occluder's center visits every {s.stride}th pixel along each axis; P interpolates between them."
        )
    missing = [name for name in PAPER if name not in result.maps]
    if missing:
        found.append(f"Not trained here: {', '.join(missing)} (occfast demo --full trains them).")
    return found


# -- pictures ----------------------------------------------------------------------------------------------


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Any, NDArray[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.asarray(figure.subplots(rows, columns, squeeze=False))
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    return figure, axes


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def picture_placement(result: Result) -> str:
    """Figure 1 of the paper, with P below: maps of A, the mean face masked by them, where occluders go."""
    figure, axes = _grid(3, 3, 9.0, 8.4)
    for column, (size, m) in enumerate(result.placement_maps.items()):
        where = extent(*m.centers)
        top = max(100 * float(m.values.max()), 1.0)
        shown = axes[0, column].imshow(
            100 * m.values, extent=where, cmap="inferno", vmin=0, vmax=top, interpolation="nearest"
        )
        figure.colorbar(shown, ax=axes[0, column], shrink=0.8, format="%.0f %%")
        weight = m.every_pixel() / max(float(m.values.max()), 1e-12)
        axes[1, column].imshow(gray(m.mean_image) * weight, cmap="gray", vmin=0, vmax=1)
        p = result.placements[size].probabilities.numpy() * _pixels(result)
        shown = axes[2, column].imshow(p, cmap="viridis", interpolation="nearest")
        figure.colorbar(shown, ax=axes[2, column], shrink=0.8, format="%.1f×")
        axes[0, column].set_title(f"occluder {_times(size)}")
    for row, text in enumerate(("error rate of A", "mean face, masked", "P: density over uniform")):
        axes[row, 0].set_ylabel(text)
    return png_data_uri(figure)


def picture_networks(result: Result) -> str:
    """The table's maps: a row for each network, one scale for each occluder."""
    rows = len(result.maps)
    figure, axes = _grid(rows, 3, 8.2, 2.15 * rows + 0.4)
    for column, size in enumerate(SIZES):
        top = max(float(maps[size].values.max()) for maps in result.maps.values())
        for row, (name, maps) in enumerate(result.maps.items()):
            m, ax = maps[size], axes[row, column]
            shown = ax.imshow(
                100 * m.values,
                extent=extent(*m.centers),
                cmap="inferno",
                vmin=0,
                vmax=max(100 * top, 1),
                interpolation="nearest",
            )
            mean, std = m.accuracy
            ax.set_xlabel(f"{100 * mean:.2f} ± {100 * std:.2f} %", color=_GRAY)
            if column == 0:
                ax.set_ylabel(_plain(name), fontweight="bold")
            if row == 0:
                ax.set_title(f"occluder {_times(size)}")
        figure.colorbar(
            shown,
            ax=list(axes[:, column]),
            location="bottom",
            shrink=0.8,
            pad=0.01,
            format="%.0f %%",
            label="error rate",
        )
    return png_data_uri(figure, dpi=100)


def picture_bars(result: Result) -> str:
    """Mean accuracy over locations with its standard deviation, and the paper's beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 0.42 * len(result.maps) + 1.5), layout="constrained")
    axes = np.asarray(figure.subplots(1, 3, sharey=True))
    names = list(result.maps)
    for column, (size, ax) in enumerate(zip(SIZES, axes, strict=True)):
        for row, name in enumerate(names):
            mean, std = (100 * v for v in result.maps[name][size].accuracy)
            ax.errorbar(
                mean,
                row - 0.12,
                xerr=[[std], [min(std, 100 - mean)]],
                fmt="o",
                color=_ACCENT,
                capsize=3,
                label="this run" if row == 0 else None,
            )
            if name in PAPER:
                mean, std = PAPER[name][column]
                ax.errorbar(
                    mean,
                    row + 0.18,
                    xerr=[[std], [min(std, 100 - mean)]],
                    fmt="s",
                    ms=4,
                    color="#a9a6b4",
                    capsize=2,
                    label="paper" if row == 0 else None,
                )
        ax.set_title(f"occluder {_times(size)}")
        ax.set_xlabel("accuracy over locations [%]")
        ax.grid(axis="x", color="#e3e0ea")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), [_plain(name) for name in names])
    axes[0].invert_yaxis()
    axes[0].legend(loc="lower left", frameon=False, fontsize=8)
    return png_data_uri(figure)


def picture_occluders(result: Result, columns: int = 8) -> str:
    """Figure 2 of the paper: training faces with the occluders that training drew, placed by P."""
    figure, axes = _grid(len(SIZES), columns, 9.0, 3.6)
    chosen = result.parts[0][:: max(1, len(result.parts[0]) // columns)][:columns]
    images = result.images[chosen].float() / 255
    for row, size in enumerate(SIZES):
        covered = occluder(result.settings, f"A{occluder_name(size)}", result.placements)(images, chosen)
        for ax, face in zip(axes[row], covered, strict=False):
            ax.imshow(face[0].numpy(), cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_ylabel(_times(size))
    return png_data_uri(figure)


def picture_faces(result: Result, columns: int = 10) -> str:
    """Aligned faces of the three parts, which share no image."""
    figure, axes = _grid(3, columns, 9.0, 3.1)
    for row, (part, text) in enumerate(zip(result.parts, ("training", "for P", "for the table"), strict=True)):
        chosen = part[:: max(1, len(part) // columns)][:columns]
        for ax, face in zip(axes[row], result.images[chosen], strict=False):
            ax.imshow(face[0].numpy(), cmap="gray", vmin=0, vmax=255)
        axes[row, 0].set_ylabel(text)
    return png_data_uri(figure)


# -- the page ----------------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return name.replace("x", "×")


def _headlines(facts: dict[str, Any]) -> list[str]:
    lines = []
    for found in facts["verdict"]:
        if found["network"] is None:
            continue
        size, name = (_plain(found[key]) for key in ("occluder", "network"))
        up = "raised" if found["raises_mean"] else "did not raise"
        down = "lowered" if found["lowers_std"] else "did not lower"
        joint = "and" if found["raises_mean"] == found["lowers_std"] else "but"
        lines.append(
            f"Under {size} occluders, training with placed ones ({name}) {up} the mean accuracy over locations "
            f"({found['mean']:+.2f} points against A; {found['mean_against_control']:+.2f} against A trained as long) "
            f"{joint} {down} its spread ({found['std']:+.2f}). On the {found['images']} images that both get right, "
            f"the mean differs by {found['paired_mean']:+.2f} ± {found['paired_standard_error']:.2f} "
            "(standard error over images)."
        )
    return lines


def render(result: Result, facts: dict[str, Any]) -> str:
    """The page as text; every picture is inside it."""
    from importlib.resources import files

    import jinja2

    template = files("occfast.reproduce").joinpath("demo.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["plain"] = _plain
    return environment.from_string(template).render(
        facts=facts,
        sizes=[occluder_name(size) for size in SIZES],
        control=CONTROL,
        headlines=_headlines(facts),
        pictures={
            "bars": picture_bars(result),
            "placement": picture_placement(result),
            "networks": picture_networks(result),
            "occluders": picture_occluders(result),
            "faces": picture_faces(result),
        },
    )
