"""The report of the trigueros2018 reproduction: tables, figures and the paper's orderings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from ...train.augment import TEMPERATURES
from ..graph import Done
from ..report import Report, Table
from ..values import Claim, Comparison, Number
from .figures import bars, figure_1, figure_2, figure_4, figure_6, maps, only
from .results import Results, Size
from .settings import CONTROL, FIGURE_6, SIZES, TABLE_1, TABLE_2, Settings, pretty, times
from .sources import Sources


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
    results = Results(settings, {step.name: step for step in found})
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
        tables=[make(results, command) for k, make in ((1, table_1), (2, _table_2)) if k in tables],
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
        "Accuracy in %, mean ± standard deviation over the locations of the occluder (1 − O), on held-out images "
        "that each network recognizes uncovered and that P was not made from; in the first column the share of images "
        "recognized uncovered.",
        ["network", "uncovered", *(f"O {pretty(times(size))}" for size in SIZES)],
        rows,
        f"{images[0]} to {images[-1]} images a map (the paper: 1,000)."
        if len(images) > 1
        else f"{images[0]} images a map.",
        only(command, "--table 1"),
        best=True,
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


def _above(name: str, a: Sequence[float], b: Sequence[float]) -> Comparison:
    return Comparison(name, tuple(x - y for x, y in zip(a, b, strict=True)))


def _claims(results: Results, tables: set[int], figures: set[int]) -> list[Claim]:
    claims: list[Claim] = []
    trained = [name for name in TABLE_1 if name != "A"]
    placed = [name for name in trained if not name.endswith("R")]

    def mean(a: str, b: str, size: Size) -> Comparison:
        return results.compare(a, b, size)

    def spread(a: str, b: str, size: Size) -> Comparison:
        return results.compare(a, b, size, "std")

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
        if results.settings.control:
            claims.append(
                Claim(
                    "Beyond the paper: networks trained with placed occluders are more accurate than A, trained as "
                    "long without occluders",
                    tuple(mean(n, CONTROL, s) for n, s in itertools.product(placed, SIZES)),
                    beyond=True,
                )
            )
    if 2 in tables:
        ends = ("", "20x20", "20x40", "40x40")

        def pair(a: str, b: str) -> Comparison:
            return _above(f"{pretty(a)} above {pretty(b)}", results.accuracy(a), results.accuracy(b))

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
        gap = {n: results.values(f"verify {n}", lambda r: r["gap"]) for n in "ABC"}
        d = {n: results.values(f"verify {n}", lambda r: r["decidability"]) for n in "ABC"}
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
        far = results.far

        def at(a: str, b: str, condition: str) -> Comparison:
            return _above(
                f"{pretty(a)} above {pretty(b)}, {condition}, TAR in % at FAR {far:g}",
                results.tar(a, condition, far),
                results.tar(b, condition, far),
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
                f"One image is {100 / max(count, 1):.1f} points of a location's accuracy; smaller differences are "
                "noise.",
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
                "Ten people of AR at 60×40 pixels, enlarged, instead of AR's 126 people.",
                "Figure 6: each person is a tenth of the result.",
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
            "Random locations are normally distributed about the center with a standard deviation of a quarter of the "
            "image.",
            "“A standard normal distribution” has no scale in the paper; another scale changes the R rows.",
        ),
        ("The occluder of the maps is middle gray without noise.", "The paper does not state its fill."),
    ]
    return found
