"""What :mod:`occfast.reproduce.trigueros2018` found, as a report: tables, figures, the paper's orderings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ...occlude.noisy import NoisyOccluder
from ...plots import extent, gray
from ...sweep import OcclusionMap
from ...train.augment import TEMPERATURES
from ..graph import Done
from ..report import Claim, Comparison, Number, Picture, Report, Table
from .sources import Sources
from .steps import CONTROL, FIGURE_6, FIGURES, SIZES, TABLE_1, TABLE_2, TABLES, Settings, times

_FARS = (1e-4, 1e-3, 1e-2, 1e-1)
_COLORS = {"A": "#575463", "A20x20": "#2f7fb5", "A20x40": "#b5367a", "A40x40": "#3a9a5b"}


def report(
    settings: Settings,
    sources: Sources,
    found: Sequence[Done],
    command: str,
    tables: Iterable[int] = TABLES,
    figures: Iterable[int] = FIGURES,
) -> Report:
    """From finished steps; of the tables and figures asked for."""
    look = _Look(settings, {step.name: step for step in found})
    tables, figures = set(tables), set(figures)
    return Report(
        paper="trigueros2018",
        title=f"Occlusion maps and batch triplet loss: the paper beside occfast ({settings.scale})",
        lead="Sáez Trigueros, Meng and Hartnett, “Enhancing convolutional neural networks for face recognition with "
        "occlusion maps and batch triplet loss” (2018), done again"
        + {
            "smoke": " on 400 photographs of 40 people (ORL): whether all of it runs, and which way effects point.",
            "small": " on a subset of CelebA: whether the effects show with a hundredth of the paper's faces.",
            "paper": ".",
        }[settings.scale],
        scale=settings.scale,
        seeds=settings.seeds,
        settings=asdict(settings),
        data=sources.about(),
        command=command,
        claims=_claims(look, tables, figures),
        tables=[make(look, command) for k, make in ((1, _table_1), (2, _table_2)) if k in tables],
        pictures=[
            make(look, command)
            for k, make in ((1, _figure_1), (2, _figure_2), (4, _figure_4), (6, _figure_6))
            if k in figures
        ],
        differences=_differences(settings, sources),
        notes=_notes(sources),
        steps=found,
    )


class _Look:
    """Results by seed."""

    def __init__(self, settings: Settings, steps: Mapping[str, Done]) -> None:
        self.settings, self.steps = settings, steps

    def step(self, name: str, seed: int | None = None) -> Done:
        return self.steps[f"seed {self.settings.seeds[0] if seed is None else seed}: {name}"]

    def values(self, name: str, read: Callable[[dict[str, Any]], float]) -> tuple[float, ...]:
        return tuple(float(read(self.step(name, seed).result)) for seed in self.settings.seeds)

    def cell(self, network: str, size: tuple[int, int], what: str) -> tuple[float, ...]:
        """ "mean", "std" or "clean" of Table 1, in %."""
        return self.values(f"table {network} {times(size)}", lambda result: 100 * result[what])

    def accuracy(self, network: str) -> tuple[float, ...]:
        return self.values(f"verify {network}", lambda result: 100 * result["accuracy"])

    def tar(self, network: str, condition: str, far: float) -> tuple[float, ...]:
        def read(result: dict[str, Any]) -> float:
            entries = result["conditions"][condition]["tar_at_far"]
            return 100 * float(next(e["tar"] for e in entries if abs(e["far"] - far) < 1e-12))

        return self.values(f"roc {network}", read)

    @property
    def far(self) -> float:
        """The lowest false acceptance rate of Figure 6 that at least three pairs of different people can show."""
        n = self.step("roc A").result["conditions"]["clean"]["n_different"]
        return next((far for far in _FARS if far * n >= 3), _FARS[-1])

    def placement(self, size: tuple[int, int]) -> OcclusionMap:
        return OcclusionMap.load(self.step(f"map A {times(size)}").folder / "map.npz")

    @property
    def first_rows(self) -> list[str]:
        return [*TABLE_1, *([CONTROL] if self.settings.control else [])]


def _pretty(name: str) -> str:
    return name.replace("x", "×")


def _only(command: str, what: str) -> str:
    return f"{command} {what}" if what not in command else command


# -- tables ----------------------------------------------------------------------------------------------


def _table_1(look: _Look, command: str) -> Table:
    rows: dict[str, list[Number]] = {}
    for name in look.first_rows:
        paper: Sequence[tuple[float | None, float | None]] = TABLE_1.get(name, ((None, None),) * 3)
        clean = Number(look.cell(name, SIZES[0], "clean"), digits=1)
        rows["A, trained as long" if name == CONTROL else _pretty(name)] = [clean] + [
            Number(look.cell(name, size, "mean"), look.cell(name, size, "std"), *told)
            for size, told in zip(SIZES, paper, strict=True)
        ]
    images = sorted(
        {
            look.step(f"table {name} {times(SIZES[0])}", s).result["images"]
            for name in look.first_rows
            for s in look.settings.seeds
        }
    )
    return Table(
        "Table 1",
        "Accuracy in %, mean ± standard deviation over the locations of the occluder (1 − O), on held-out images "
        "that each network recognizes uncovered and that had no part in P; before it the share recognized uncovered.",
        ["network", "uncovered", *(f"O {_pretty(times(size))}" for size in SIZES)],
        rows,
        f"{images[0]} to {images[-1]} images a map (the paper: 1,000)."
        if len(images) > 1
        else f"{images[0]} images a map.",
        _only(command, "--table 1"),
    )


def _table_2(look: _Look, command: str) -> Table:
    rows = {
        _pretty(name): [
            Number(look.accuracy(name), look.values(f"verify {name}", lambda r: 100 * r["accuracy_std"]), *told),
            Number(look.values(f"verify {name}", lambda r: r["decidability"])),
            Number(look.values(f"verify {name}", lambda r: 100 * r["auc"])),
        ]
        for name, told in TABLE_2.items()
    }
    result = look.step("verify A").result
    where = "pairs of people who were not trained on" if look.settings.scale == "smoke" else "LFW's pairs"
    return Table(
        "Table 2",
        f"Accuracy in % on {where}, mean ± standard deviation over {len(result['folds'])} splits, each with the "
        "threshold of the others; decidability d′ (Eq. 8) and area under the ROC curve in %, which the paper does "
        "not give.",
        ["network", "accuracy", "d′", "AUC"],
        rows,
        f"{result['n_same']} pairs of one person and {result['n_different']} of two.",
        _only(command, "--table 2"),
    )


# -- orderings -------------------------------------------------------------------------------------------


def _above(name: str, a: Sequence[float], b: Sequence[float]) -> Comparison:
    return Comparison(name, tuple(x - y for x, y in zip(a, b, strict=True)))


def _claims(look: _Look, tables: set[int], figures: set[int]) -> list[Claim]:
    claims: list[Claim] = []
    trained = [name for name in TABLE_1 if name != "A"]
    placed = [name for name in trained if not name.endswith("R")]

    def mean(a: str, b: str, size: tuple[int, int]) -> Comparison:
        return _above(
            f"{_pretty(a)} above {_pretty(b)} under {_pretty(times(size))}",
            look.cell(a, size, "mean"),
            look.cell(b, size, "mean"),
        )

    def spread(a: str, b: str, size: tuple[int, int]) -> Comparison:
        return _above(
            f"{_pretty(a)} varies less than {_pretty(b)} under {_pretty(times(size))}",
            look.cell(b, size, "std"),
            look.cell(a, size, "std"),
        )

    if 1 in tables:
        grid = list(itertools.product(trained, SIZES))
        claims += [
            Claim(
                "Table 1: every network trained with occluders is more accurate under them than A",
                tuple(mean(n, "A", s) for n, s in grid),
            ),
            Claim(
                "Table 1: … and depends less on where the occluder is (standard deviation over locations)",
                tuple(spread(n, "A", s) for n, s in grid),
            ),
            Claim(
                "Table 1: occluders placed by P give more accurate networks than those placed at random (R)",
                tuple(mean(n, f"{n}R", s) for n, s in itertools.product(placed, SIZES)),
            ),
            Claim(
                "Table 1: … and less dependent on the location",
                tuple(spread(n, f"{n}R", s) for n, s in itertools.product(placed, SIZES)),
            ),
            Claim(
                "Table 1: the largest occluder in training, 40×40, is best under every occluder",
                tuple(mean("A40x40", n, s) for n, s in itertools.product(("A20x20", "A20x40"), SIZES)),
            ),
        ]
        if look.settings.control:
            claims.append(
                Claim(
                    "Beyond the paper: … which is not what training longer gives (against A, trained as long)",
                    tuple(mean(n, CONTROL, s) for n, s in itertools.product(placed, SIZES)),
                    beyond=True,
                )
            )
    if 2 in tables:
        ends = ("", "20x20", "20x40", "40x40")

        def pair(a: str, b: str) -> Comparison:
            return _above(f"{_pretty(a)} above {_pretty(b)}", look.accuracy(a), look.accuracy(b))

        claims += [
            Claim(
                "Table 2: the triplet loss improves on classification (B above A)",
                tuple(pair(f"B{e}", f"A{e}") for e in ends),
            ),
            Claim(
                "Table 2: the batch triplet loss improves on the triplet loss (C above B)",
                tuple(pair(f"C{e}", f"B{e}") for e in ends),
            ),
            Claim(
                "Table 2: both together are best: C20×40 above C, C20×20 and C40×40",
                tuple(pair("C20x40", f"C{e}") for e in ("", "20x20", "40x40")),
            ),
        ]
    if 4 in figures:
        gap = {n: look.values(f"verify {n}", lambda r: r["gap"]) for n in "ABC"}
        d = {n: look.values(f"verify {n}", lambda r: r["decidability"]) for n in "ABC"}
        claims.append(
            Claim(
                "Figure 4: the triplet loss moves the means apart but leaves more overlap; the batch triplet loss "
                "leaves less",
                (
                    _above("B's means further apart than A's", gap["B"], gap["A"]),
                    _above("B less decidable than A", d["A"], d["B"]),
                    _above("C more decidable than B", d["C"], d["B"]),
                ),
            )
        )
    if 6 in figures:
        far = look.far

        def at(a: str, b: str, condition: str) -> Comparison:
            return _above(
                f"{_pretty(a)} above {_pretty(b)}, {condition}, TAR in % at FAR {far:g}",
                look.tar(a, condition, far),
                look.tar(b, condition, far),
            )

        claims += [
            Claim(
                "Figure 6: networks trained with occluders accept more faces with sunglasses, with a scarf and "
                "without than A",
                tuple(at(n, "A", c) for n, c in itertools.product(FIGURE_6[1:], ("sunglasses", "scarf", "clean"))),
            ),
            Claim(
                "Figure 6: on clean faces A40×40 is a little below the two others",
                tuple(at(n, "A40x40", "clean") for n in ("A20x20", "A20x40")),
            ),
            Claim(
                "Figure 6: A20×20's occluder is too small for sunglasses and scarves",
                tuple(at(n, "A20x20", c) for n, c in itertools.product(("A20x40", "A40x40"), ("sunglasses", "scarf"))),
            ),
        ]
    return claims


# -- figures ---------------------------------------------------------------------------------------------


def _axes(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False))


def _bare(axes: Any) -> None:
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)


def _figure_1(look: _Look, command: str) -> Picture:
    figure, axes = _axes(3, 3, 8.4, 8.2)
    _bare(axes)
    for column, size in enumerate(SIZES):
        m = look.placement(size)
        mean = gray(m.mean_image)
        where = NoisyOccluder(
            size,
            m.distribution(TEMPERATURES[size]),
            noise=("gaussian",),
            level=(0.0, 0.0),
            intensity=(0.5, 0.5),
            seed=3,
        )
        covered = where(torch.from_numpy(mean)[None, None].float(), torch.tensor([column]))
        axes[0, column].imshow(covered[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        top = max(100 * float(m.values.max()), 1.0)
        shown = axes[1, column].imshow(
            100 * m.values, extent=extent(*m.centers), cmap="inferno", vmin=0, vmax=top, interpolation="nearest"
        )
        figure.colorbar(shown, ax=axes[1, column], shrink=0.8, format="%.0f %%")
        axes[2, column].imshow(gray(m.masked_mean()), cmap="gray")
        axes[0, column].set_title(f"{_pretty(times(size))}, {m.n_images} images")
    for row, text in enumerate(("mean face, occluder drawn from P", "O: error rate of A", "mean face masked by O")):
        axes[row, 0].set_ylabel(text)
    return Picture(
        "Figure 1",
        "Occlusion maps of A for the three occluders: bright where covering makes it fail. The paper's maps are "
        "bright in the middle of the face.",
        "Mean face with an occluder, occlusion maps of network A and the mean face masked by them",
        figure,
        _only(command, "--figure 1"),
    )


def _figure_2(look: _Look, command: str) -> Picture:
    kinds, columns = ("salt_and_pepper", "speckle", "gaussian"), 5
    figure, axes = _axes(3, columns, 8.4, 5.2)
    _bare(axes)
    m = look.placement((20, 40))
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
        _only(command, "--figure 2"),
    )


def _figure_4(look: _Look, command: str) -> Picture:
    figure, axes = _axes(1, 3, 9.6, 3.0)
    for ax, name, text in zip(
        axes[0], "ABC", ("A: classification", "B: triplet loss", "C: batch triplet loss"), strict=True
    ):
        result = look.step(f"verify {name}").result
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
        f"Scores of pairs of one person and of two, seed {look.settings.seeds[0]}, and the decidability d′ (Eq. 8). "
        "The paper shows A and B and d instead of cosines: there the triplet loss moves the means apart and widens "
        "both.",
        "Histograms of the scores of pairs for A, B and C",
        figure,
        _only(command, "--figure 4"),
    )


def _figure_6(look: _Look, command: str) -> Picture:
    conditions = ("clean", "sunglasses", "scarf")
    figure, axes = _axes(1, 3, 9.6, 3.6)
    first = look.step("roc A").result["conditions"]
    for ax, condition in zip(axes[0], conditions, strict=True):
        n = first[condition]["n_different"]
        grid = np.logspace(np.log10(max(1e-4, 1 / n)), 0, 200)
        for name in FIGURE_6:
            curves = []
            for seed in look.settings.seeds:
                found = look.step(f"roc {name}", seed).result["conditions"][condition]
                far, tar = np.array(found["far"]), np.array(found["tar"])
                curves.append([tar[far <= f * (1 + 1e-9)].max() for f in grid])
            ax.plot(grid, np.mean(curves, 0), color=_COLORS[name], label=_pretty(name), linewidth=1.5)
        ax.set_xscale("log")
        ax.set_ylim(0, 1.01)
        ax.set_title(f"{condition}: {first[condition]['n_same']} + {n} pairs", fontsize=10)
        ax.set_xlabel("false acceptance rate")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("true acceptance rate")
    axes[0, 0].legend(frameon=False, fontsize=8)
    real = "drawn on held-out people of ORL" if look.settings.scale == "smoke" else "photographs of AR"
    return Picture(
        "Figure 6",
        f"A clean reference against clean faces, sunglasses and scarves ({real}); mean over seeds of the TAR at each "
        "FAR. With n pairs of two people no FAR below 1/n can be seen: the axis begins there, the paper's at 10⁻⁴.",
        "ROC curves of four networks for clean faces, sunglasses and scarves",
        figure,
        _only(command, "--figure 6"),
    )


# -- words -----------------------------------------------------------------------------------------------


def _notes(sources: Sources) -> list[str]:
    notes = []
    if sources.left_out:
        names = ", ".join(sorted({entry.person for entry in sources.left_out}))
        notes.append(f"Left out of training, since LFW has them too: {names}.")
    if sources.unknown:
        notes.append(
            "The training set's people have numbers, not names, and no list was given of those whom LFW has too: if "
            "there are any, Table 2 flatters every network."
        )
    missing = sources.pairs[1].missing
    if missing:
        notes.append(f"{missing} listed pairs name images that are not there and are left out of Table 2 and Figure 4.")
    return notes


def _differences(settings: Settings, sources: Sources) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    faces, width = sources.train, dict(settings.network).get("width", 1.0)
    if settings.scale != "paper":
        found.append(
            (
                f"Training: {len(faces):,} images of {len(faces.people)} people, not 494,414 of 10,575 (and "
                f"{settings.share:.0%} of them kept out, not 10 %).",
                "Lower accuracy on people never seen (Table 2, Figure 6); few people are easier to tell apart, so "
                "maps are darker and Table 1's figures can be higher than the paper's. P of a dark map is nearly "
                "uniform: placed and random differ less.",
            )
        )
        found.append(
            (
                f"Maps over at most {settings.table_images} images, a center on every {settings.stride} pixels along "
                "each axis, not 1,000 and every pixel.",
                f"One image is {100 / max(settings.table_images, 1):.1f} points of a location's accuracy; differences "
                "below that are noise.",
            )
        )
    if width != 1.0:
        found.append((f"The network has {width:g} times the paper's channels.", "Speed, and less accuracy."))
    if dict(settings.network).get("batch_norm"):
        found.append(
            (
                "Batch normalization after each convolution, AdamW.",
                "They let a narrow network learn from few faces in minutes.",
            )
        )
    if settings.scale == "smoke":
        found.append(
            (
                "Pairs of ten held-out people of ORL for LFW; drawn sunglasses and a drawn mask for AR's scarf.",
                "Table 2 and Figure 6 show that the code runs; with ten people their orderings say little.",
            )
        )
    if settings.scale == "small":
        found.append(
            (
                "Ten people of AR at 60×40 pixels, enlarged, for AR's 126 people.",
                "Figure 6: a person is a tenth of everything.",
            )
        )
    found += [
        (
            "Optimizer, epochs, batch and jitter are ours; the last weights are judged.",
            "The paper does not tell them. No network was chosen by images that judge it.",
        ),
        (
            "Random places are normal about the center with a standard deviation of a quarter of the image.",
            "“A standard normal distribution” has no scale in the paper; another one moves the R rows.",
        ),
        ("The swept occluder is middle gray without noise.", "The paper does not say what it is filled with."),
    ]
    return found
