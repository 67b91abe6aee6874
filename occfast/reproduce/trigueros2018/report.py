"""The report of the trigueros2018 reproduction: tables, figures and the paper's orderings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np

from ...occlude.locations import LocationDistribution
from ...sweep import OcclusionMap
from ...train.augment import TEMPERATURES
from ..graph import Done
from ..report import Report, Table
from ..values import Claim, Comparison, Number
from .figures import CONDITIONS, bars, figure_1, figure_2, figure_4, figure_6, maps, only
from .results import Results, Size
from .settings import CONTROL, FIGURE_6, SIZES, TABLE_1, TABLE_2, Settings, pretty, times
from .sources import Sources
from .steps import FINER


def report(
    settings: Settings,
    sources: Sources,
    found: Sequence[Done],
    command: str,
    tables: Iterable[int],
    figures: Iterable[int],
) -> Report:
    """Make the report of finished steps.

    Args:
        settings: of the run.
        sources: of the run.
        found: the finished steps that the tables and figures need.
        command: shown in the report.
        tables: numbers of the paper's tables.
        figures: numbers of the paper's figures.
    """
    results = Results(settings, {step.name: step for step in found}, sources)
    tables, figures = set(tables), set(figures)
    text = {
        "demo": " on 400 photographs of 40 people (ORL).",
        "smoke": " on 400 photographs of 40 people (ORL): does everything run, and which way do the effects point?",
        "small": " on a subset of CelebA: do the effects show with a hundredth of the paper's faces?",
        "paper": ".",
    }[settings.scale]
    return Report(
        paper="trigueros2018",
        title=f"Occlusion maps and batch triplet loss: the paper beside occfast ({settings.scale})",
        lead="Sáez Trigueros, Meng and Hartnett, “Enhancing convolutional neural networks for face recognition with "
        f"occlusion maps and batch triplet loss” (2018), reproduced{text}",
        scale=settings.scale,
        seeds=settings.seeds,
        settings=asdict(settings),
        data=sources.about(),
        command=command,
        claims=[] if settings.scale == "demo" else _claims(results, tables, figures),
        tables=[
            *([table_1(results, command)] if 1 in tables else []),
            *([_places(results)] if 1 in tables and settings.scale != "demo" else []),
            *([_table_2(results, command)] if 2 in tables else []),
            *([_figure_6_numbers(results)] if 6 in figures else []),
        ],
        pictures=[
            *([bars(results), maps(results)] if 1 in tables else []),
            *(
                make(results, command)
                for k, make in ((1, figure_1), (2, figure_2), (4, figure_4), (6, figure_6))
                if k in figures
            ),
        ],
        differences=differences(settings, sources),
        notes=_notes(settings, sources),
        steps=found,
    )


# -- tables ----------------------------------------------------------------------------------------------


def table_1(results: Results, command: str) -> Table:
    """Return Table 1: accuracy under the three occluders."""
    rows: dict[str, list[Number]] = {}
    for name in results.settings.rows:
        paper: Sequence[tuple[float | None, float | None]] = TABLE_1.get(name, ((None, None),) * 3)
        clean = Number(results.cell(name, SIZES[0], "clean"), digits=1)
        rows[pretty(name)] = [clean] + [
            Number(results.cell(name, size, "mean"), results.cell(name, size, "std"), *printed)
            for size, printed in zip(SIZES, paper, strict=True)
        ]
    images = sorted(
        {
            results.step(f"table {name} {times(SIZES[0])}", s).result["images"]
            for name in results.settings.rows
            for s in results.settings.seeds
        }
    )
    return Table(
        "Table 1",
        "Accuracy in %, mean ± standard deviation over the locations of the occluder (1 − O), on held-out images that "
        + ("all networks recognize" if results.settings.same_images else "each network recognizes")
        + " uncovered and that P was not made from; in the first column the share of images recognized uncovered.",
        ["network", "uncovered", *(f"O {pretty(times(size))}" for size in SIZES)],
        rows,
        (
            f"{images[0]} to {images[-1]} images a map (the paper: 1,000)."
            if len(images) > 1
            else f"{images[0]} images a map."
        )
        + _finer(results),
        only(command, "--table 1"),
        best=True,
    )


def _finer(results: Results) -> str:
    """Tell what the stride changes, from the maps of some images at every second pixel; "" without them."""
    s = results.settings
    if not s.finer_images:
        return ""
    found = {}
    for name, size in itertools.product(FINER, SIZES):
        fine = results.map(f"finer {name} {times(size)}")
        coarse = results.map(f"table {name} {times(size)}")
        count = fine.n_images
        assert coarse.per_image is not None
        accuracy = 1 - coarse.per_image[:count].astype(np.float64).mean(0)
        found[name, size] = [
            100 * (v - w) for v, w in zip(fine.accuracy, (accuracy.mean(), accuracy.std()), strict=True)
        ]
    first, second = ([found[name, size] for size in SIZES] for name in FINER)
    apart = [[abs(v - w) for v, w in zip(a, b, strict=True)] for a, b in zip(first, second, strict=True)]
    mean, std = (max(abs(cell[k]) for cell in found.values()) for k in (0, 1))
    return (
        f" On {count} of the images of seed {s.seeds[0]}, {pretty(FINER[0])} and {pretty(FINER[1])} were also mapped "
        f"at every second pixel: means differ from those at every {s.stride} pixels by at most {mean:.2f} points and "
        f"standard deviations by at most {std:.2f}; the difference of the two networks by at most "
        f"{max(cell[0] for cell in apart):.2f} and {max(cell[1] for cell in apart):.2f}."
    )


def _places(results: Results) -> Table:
    """Return A's error where each placement puts occluders, expected over its distribution."""
    rows = {}
    for size in SIZES:
        values: dict[str, list[float]] = {}
        for seed in results.settings.seeds:
            m = OcclusionMap.load(results.step(f"map A {times(size)}", seed).folder / "map.npz")
            error = m.every_pixel()
            for title, placed in (
                ("uniform", LocationDistribution.uniform(m.grid.image)),
                ("R, σ = 0.5", LocationDistribution.normal(m.grid.image, 0.5)),
                ("R, σ = 0.25", LocationDistribution.normal(m.grid.image)),
                ("P", m.distribution(TEMPERATURES[size])),
                ("P, T/2", m.distribution(TEMPERATURES[size] / 2)),
            ):
                values.setdefault(title, []).append(100 * float((placed.probabilities.numpy() * error).sum()))
        rows[pretty(times(size))] = [Number(tuple(found)) for found in values.values()]
        columns = list(values)
    return Table(
        "Error of A where occluders are placed",
        "Error rate of A in %, expected over the distribution that places occluders in training: E_P[O] and E_R[O] of "
        "the maps that P is made from. R of the paper is “a standard normal distribution”, whose scale it does not "
        "state; σ is a fraction of the image's size.",
        ["occluder", *columns],
        rows,
    )


def _table_2(results: Results, command: str) -> Table:
    rows = {
        pretty(name): [
            Number(
                results.accuracy(name), results.values(f"verify {name}", lambda r: 100 * r["accuracy_std"]), *printed
            ),
            Number(results.values(f"verify {name}", lambda r: r["decidability"])),
            Number(results.values(f"verify {name}", lambda r: 100 * r["auc"])),
        ]
        for name, printed in TABLE_2.items()
    }
    result = results.step("verify A").result
    pairs = "pairs of people not seen in training" if results.settings.scale == "smoke" else "LFW's pairs"
    return Table(
        "Table 2",
        f"Accuracy in % on {pairs}, mean ± standard deviation over {len(result['folds'])} splits, each with the "
        "threshold of the others; decidability d′ (Eq. 8) and area under the ROC curve in %, which the paper does "
        "not state.",
        ["network", "accuracy", "d′", "AUC"],
        rows,
        f"{result['n_same']} pairs of one person and {result['n_different']} of two.",
        only(command, "--table 2"),
    )


def _figure_6_numbers(results: Results) -> Table:
    """Return the true acceptance rates of Figure 6 with and without the doubtful person."""
    far, doubtful = results.far, results.doubtful
    variants = [True] if doubtful is None else [True, False]
    rows = {
        pretty(name): [
            Number(results.tar(name, condition, all_people=everyone))
            for everyone in variants
            for condition in CONDITIONS
        ]
        for name in FIGURE_6
    }
    columns = [f"{c}{'' if everyone else f', without person {doubtful}'}" for everyone in variants for c in CONDITIONS]
    note = "" if doubtful is None else f"The covered photographs of person {doubtful} seem to show somebody else."
    return Table(
        "Figure 6 in numbers",
        f"True acceptance rate in % at a false acceptance rate of {far:g}, by the condition of the query.",
        ["network", *columns],
        rows,
        note,
        best=True,
    )


def placement(results: Results) -> Table:
    """Return numbers of the maps for P and of P, on the first seed."""
    rows = {}
    for size in SIZES:
        m = results.map(f"map A {times(size)}")
        p = m.distribution(TEMPERATURES[size])
        peak = float(p.probabilities.max()) * p.probabilities.numel()
        numbers = (TEMPERATURES[size], 100 * float(m.values.max()), p.entropy, peak)
        mean, std = (100 * value for value in m.accuracy)
        rows[pretty(times(size))] = [Number((mean,), (std,)), *(Number((number,)) for number in numbers)]
    return Table(
        "Placement",
        "Maps of A on the images for P: accuracy and largest error rate in %; entropy of P in bits and its peak as a "
        "multiple of uniform.",
        ["occluder", "accuracy of A", "T", "largest error", "entropy of P", "peak of P"],
        rows,
    )


# -- orderings -------------------------------------------------------------------------------------------


def _claims(results: Results, tables: set[int], figures: set[int]) -> list[Claim]:
    return [
        *(_table_1_claims(results) if 1 in tables else []),
        *(_table_2_claims(results) if 2 in tables else []),
        *(_figure_4_claims(results) if 4 in figures else []),
        *(_figure_6_claims(results) if 6 in figures else []),
    ]


def _table_1_claims(results: Results) -> list[Claim]:
    trained = [name for name in TABLE_1 if name != "A"]
    placed = [name for name in trained if not name.endswith("R")]

    def mean(a: str, b: str, size: Size) -> Comparison:
        return results.compare(a, b, size)

    def spread(a: str, b: str, size: Size) -> Comparison:
        return results.compare(a, b, size, "std")

    grid = list(itertools.product(trained, SIZES))
    claims = [
        Claim(
            "Table 1: every network trained with occluders is more accurate under them than A",
            tuple(mean(n, "A", s) for n, s in grid),
        ),
        Claim(
            "Table 1: … and depends less on where the occluder is (standard deviation over locations)",
            tuple(spread(n, "A", s) for n, s in grid),
        ),
        *_placement_claims(results),
        Claim(
            "Table 1: the largest occluder in training, 40×40, is best under every occluder",
            tuple(mean("A40x40", n, s) for n, s in itertools.product(("A20x20", "A20x40"), SIZES)),
        ),
    ]
    rows = results.settings.rows
    if results.settings.control:
        claims.append(
            Claim(
                "Beyond the paper: networks trained with placed occluders are more accurate than A, trained as "
                "long without occluders",
                tuple(mean(n, CONTROL, s) for n, s in itertools.product(placed, SIZES)),
                beyond=True,
            )
        )
    if halves := [name for name in rows if name.endswith("half")]:
        claims += [
            Claim(
                "Beyond the paper: covering half of the training images rather than all of them costs less accuracy on "
                "uncovered images",
                tuple(
                    results.difference(
                        f"{pretty(n)} above {pretty(whole)}, uncovered", [((n, SIZES[0]), (whole, SIZES[0]))], "clean"
                    )
                    for n in halves
                    for whole in (n.removesuffix("half"),)
                ),
                beyond=True,
            ),
            Claim(
                "Beyond the paper: … and loses accuracy under occluders",
                tuple(
                    results.difference(
                        f"{pretty(whole)} above {pretty(n)}, mean over the three occluders",
                        [((whole, s), (n, s)) for s in SIZES],
                    )
                    for n in halves
                    for whole in (n.removesuffix("half"),)
                ),
                beyond=True,
            ),
        ]
    return claims


#: Placements that P is compared with, by the end of the networks' names.
_RANDOM = {
    "R": "at random (R, σ = 0.25)",
    "Rwide": "at random (R, σ = 0.5)",
    "U": "uniformly",
    "Rhalf": "at random (R, σ = 0.25), half of the images covered",
}


def _placement_claims(results: Results) -> list[Claim]:
    """Return the paper's claim on P for each placement that may be meant by R, then those on half the temperature."""
    rows = results.settings.rows
    claims = []
    for end, text in _RANDOM.items():
        own = "half" if end == "Rhalf" else ""
        pairs = [
            (f"A{times(size)}{own}", f"A{times(size)}{end}")
            for size in SIZES
            if f"A{times(size)}{end}" in rows and f"A{times(size)}{own}" in rows
        ]
        if pairs:
            claims += _both(results, "Table 1: occluders placed by P", f"those placed {text}", pairs)
    cool = [(f"A{times(size)}cool", f"A{times(size)}") for size in SIZES if f"A{times(size)}cool" in rows]
    if cool:
        at_half = "Beyond the paper: occluders placed by P at half the temperature, T/2,"
        claims += _both(results, at_half, "those placed by P at T", cool, beyond=True)
        claims += _both(results, at_half, f"those placed {_RANDOM['R']}", [(a, f"{b}R") for a, b in cool], beyond=True)
    return claims


def _both(
    results: Results, subject: str, others: str, pairs: Sequence[tuple[str, str]], *, beyond: bool = False
) -> list[Claim]:
    """Return a claim on the means of Table 1 and one on the standard deviations.

    Each has one comparison for each pair of networks, over their three cells: a cell alone is noisier.
    """
    over = "mean over the three occluders"
    means = [
        results.difference(f"{pretty(a)} above {pretty(b)}, {over}", [((a, s), (b, s)) for s in SIZES])
        for a, b in pairs
    ]
    spreads = [
        results.difference(
            f"{pretty(a)} varies less than {pretty(b)}, {over}", [((b, s), (a, s)) for s in SIZES], "std"
        )
        for a, b in pairs
    ]
    return [
        Claim(f"{subject} give more accurate networks than {others}", tuple(means), beyond),
        Claim(f"{subject} make networks depend less on the location than {others}", tuple(spreads), beyond),
    ]


def _table_2_claims(results: Results) -> list[Claim]:
    ends = ("", "20x20", "20x40", "40x40")

    def pair(a: str, b: str) -> Comparison:
        return results.compare_pairs(f"{pretty(a)} above {pretty(b)}", a, b)

    return [
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


def _figure_4_claims(results: Results) -> list[Claim]:
    return [
        Claim(
            "Figure 4: the triplet loss moves the means apart but leaves more overlap; the batch triplet loss leaves "
            "less",
            (
                results.compare_pairs("B's means further apart than A's", "B", "A", "gap"),
                results.compare_pairs("B less decidable than A (d′)", "A", "B", "decidability"),
                results.compare_pairs("C more decidable than B (d′)", "C", "B", "decidability"),
            ),
        )
    ]


def _figure_6_claims(results: Results) -> list[Claim]:
    far = results.far

    def at(a: str, b: str, condition: str) -> Comparison:
        name = f"{pretty(a)} above {pretty(b)}, {condition}, TAR in % at FAR {far:g}"
        return results.compare_tar(name, a, b, condition)

    return [
        Claim(
            "Figure 6: networks trained with occluders accept more faces with sunglasses, with a scarf and without "
            "than A",
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


# -- words -----------------------------------------------------------------------------------------------


def _notes(settings: Settings, sources: Sources) -> list[str]:
    notes: list[str] = []
    if settings.scale == "demo":
        return notes
    if sources.left_out:
        names = ", ".join(sorted({entry.person for entry in sources.left_out}))
        notes.append(f"Left out of training because LFW has them too: {names}.")
    if sources.unknown:
        notes.append(
            "The people of the training set have numbers instead of names, and no list of those in LFW was given. If "
            "there are any, Table 2 is too high for every network."
        )
    missing = sources.pairs[1].missing
    if missing:
        notes.append(f"{missing} listed pairs name missing images and are left out of Table 2 and Figure 4.")
    return notes


def differences(settings: Settings, sources: Sources) -> list[tuple[str, str]]:
    """List the differences from the paper and what they explain."""
    found: list[tuple[str, str]] = []
    faces, width = sources.train, dict(settings.network).get("width", 1.0)
    if settings.scale != "paper":
        held = "10 %" if settings.split is None else ""
        out = f" (and {settings.share:.0%} of them held out, not {held})" if held else ""
        images = len(faces) if settings.split is None else settings.split[0] * len(faces.people)
        found.append(
            (
                f"Training: {images:,} images of {len(faces.people)} people, not 494,414 of 10,575{out}.",
                "Lower accuracy on people never seen (Table 2, Figure 6). Few people are easier to tell apart, so "
                "maps are darker and the numbers of Table 1 can be higher than the paper's: compare the direction of "
                "changes, not their size. P of a dark map is nearly uniform, so placed and random differ less.",
            )
        )
        count = settings.table_images if settings.split is None else settings.split[2] * len(faces.people)
        found.append(
            (
                f"Maps over at most {count} images, a center on every {settings.stride} pixels along "
                "each axis (P interpolates between them), not 1,000 and every pixel.",
                f"One image is {100 / max(count, 1):.1f} points of a location's accuracy; the intervals include it.",
            )
        )
    if settings.same_images:
        found.append(
            (
                "Table 1 is measured on images that all its networks recognize uncovered, the same for all.",
                "Differences between networks are paired. The paper does not say whether each network has its own.",
            )
        )
    if settings.precision != "fp32":
        found.append(
            (
                "Networks are trained in mixed precision (bfloat16); maps and features are in float32.",
                "Speed on processors that have it; weights differ from those of float32 as those of another seed.",
            )
        )
    if width != 1.0:
        found.append((f"The network has {width:g} times the paper's channels.", "Speed, and lower accuracy."))
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
                "Pairs of ten held-out people of ORL instead of LFW; drawn sunglasses and a drawn mask instead of AR.",
                "Table 2 and Figure 6 show that the code runs; with ten people their orderings mean little.",
            )
        )
    if settings.scale == "small":
        found.append(
            (
                "100 people of AR at 42×30 pixels, enlarged, instead of AR's 126 people at full resolution; half of "
                "all training images are reduced to that resolution and enlarged, occluders included.",
                "Accuracy on AR is lower than the paper's. All networks, A too, are trained that way; on sharp faces "
                "(Tables 1 and 2) they are less accurate for it.",
            )
        )
    if missing := [pretty(name) for name in TABLE_1 if name not in settings.rows]:
        found.append((f"Not trained here: {', '.join(missing)}.", "Time; occfast demo --full trains them."))
    found += [
        (
            "Faces are aligned by five landmarks that a detector found, or that come with the data.",
            "Where a face lies in its image differs by some pixels.",
        ),
        (
            "Optimizer, epochs, batch and jitter are ours; the last weights are evaluated.",
            "The paper does not state them. No network was chosen by the images that evaluate it.",
        ),
        (
            "Every training image of a network with occluders is covered, but in rows that say otherwise.",
            "The paper does not state the share; covering all of them costs accuracy on uncovered faces.",
        ),
        (
            "In the triplet stage dropout is bypassed and batch normalization is in training mode, on batches of few "
            "people with several images each.",
            "The paper does not state it; such batches are less varied than those of the classification.",
        ),
        (
            "Random locations (R) are normally distributed about the center with a standard deviation of a quarter of "
            "the image" + (", and in other rows of half the image or uniform." if "A40x40U" in settings.rows else "."),
            "“A standard normal distribution” has no scale in the paper; another scale changes the R rows.",
        ),
        ("The occluder of the maps is middle gray without noise.", "The paper does not state its fill."),
    ]
    return found
