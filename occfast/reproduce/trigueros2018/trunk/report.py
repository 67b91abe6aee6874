"""The report of the networks on a pretrained trunk: Table 2, its orderings judged, and Figure 4."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from ...graph import Done
from ...report import Report, Table
from ...values import Claim, Comparison, Number
from ..settings import TABLE_2, pretty
from .figures import choices_figure, figure_4, maps
from .results import TrunkResults
from .settings import LOSSES, STAGES, TrunkSettings
from .sources import TrunkSources
from .steps import named


def report(
    settings: TrunkSettings,
    sources: TrunkSources,
    found: Sequence[Done],
    command: str,
    tables: Iterable[int],
    figures: Iterable[int],
) -> Report:
    """Make the report of finished steps.

    Args:
        settings: of the run.
        sources: of the run.
        found: the finished steps.
        command: shown in the report.
        tables: 2 or nothing.
        figures: 4 or nothing.
    """
    tables, figures = set(tables), set(figures)
    protocol = sources.protocol("lfw")
    assert protocol.people is not None
    results = TrunkResults(
        settings, {step.name: step for step in found}, protocol.same.numpy(), protocol.people.numpy()
    )
    count = len(settings.seeds)
    return Report(
        paper="trigueros2018",
        title="Table 2 on a pretrained trunk: the paper beside occfast (trunk)",
        lead="Sáez Trigueros, Meng and Hartnett, “Enhancing convolutional neural networks for face recognition with "
        "occlusion maps and batch triplet loss” (2018): the twelve networks of Table 2 on the frozen convolutions of a "
        f"MobileFaceNet that was trained on the paper's data, CASIA-WebFace; {count} "
        f"seed{'s' if count != 1 else ''}.",
        scale="trunk",
        seeds=settings.seeds,
        settings=asdict(settings),
        data={**sources.about(), "choices": results.choices()},
        command=command,
        claims=[*(_table_claims(results) if 2 in tables else []), *(_figure_claims(results) if 4 in figures else [])],
        tables=[
            *([_table_2(results)] if 2 in tables else []),
            *([_figure_4_numbers(results)] if 4 in figures else []),
            _choices(results),
            *([_placement(results)] if settings.occluders else []),
        ],
        pictures=[
            *([figure_4(results)] if 4 in figures else []),
            choices_figure(results),
            *([maps(results)] if settings.occluders else []),
        ],
        differences=_differences(settings, sources),
        notes=_notes(sources),
        steps=found,
    )


# -- tables ----------------------------------------------------------------------------------------------


def _table_2(results: TrunkResults) -> Table:
    rows = {}
    for name, printed in TABLE_2.items():
        if name[1:] not in results.settings.ends:
            continue
        cells = []
        for number, stage in enumerate(STAGES):
            key = name if name[0] == "A" else named(name[0], name[1:], stage)
            accuracy = results.values(key, "accuracy", factor=100)
            spread = results.values(key, "accuracy_std", factor=100)
            cells.append(Number(accuracy, spread, *(printed if number == 0 else ())))
        rows[pretty(name)] = cells
    pairs = results.same
    return Table(
        "Table 2",
        "Accuracy in % on LFW's View 2, mean over seeds ± standard deviation over the splits, each with the threshold "
        "of the others [95 % interval over seeds]. A and the networks fine-tuned with occluders classify the people of "
        "the first set; the columns differ in the people of the triplet stage.",
        ["network", *STAGES.values()],
        rows,
        f"{int(pairs.sum())} pairs of one person and {int((~pairs).sum())} of two.",
    )


def _figure_4_numbers(results: TrunkResults) -> Table:
    rows = {}
    for key, label in _plain_networks():
        active = [found.get("active", ()) for found in results.facts("networks", key)]
        both = (tuple(100 * one[k] for one in active) if all(active) else () for k in (0, 1))
        training = (
            (results.values(key, "training", "networks", 100), results.values(key, "held", "networks", 100))
            if key == "A"
            else ((), ())
        )
        rows[label] = [
            *(Number(values, digits=1) for values in both),
            *(Number(values, digits=1) for values in training),
            Number(results.values(key, "decidability", "networks")),
            Number(results.values(key, "decidability")),
            *(Number(results.values(key, what), digits=3) for what in ("gap", "std_same", "std_different")),
        ]
    return Table(
        "Figure 4 in numbers",
        "Violating triplets in % of all triplets of a batch, in the first and the last epoch; accuracy of the "
        "classification in % on its training images and on held-out images of the same people; decidability d′ (Eq. 8) "
        "on pairs of the training people of A and on LFW; on LFW also the distance of the mean cosines of pairs of one "
        "person and of two, and the standard deviations of both.",
        [
            "network",
            "active, first",
            "active, last",
            "training",
            "held out",
            "d′, training people",
            "d′, LFW",
            "gap",
            "σ one person",
            "σ two people",
        ],
        rows,
        "Brackets: 95 % intervals over seeds.",
    )


def _plain_networks() -> list[tuple[str, str]]:
    found = [("A", "A")]
    return found + [(named(loss, "", stage), f"{loss}, {text}") for stage, text in STAGES.items() for loss in LOSSES]


def _choices(results: TrunkResults) -> Table:
    choices = results.choices()
    rows: dict[str, list[Number]] = {}

    def row(entry: dict[str, object], label: str, rate: float, epochs: int, covered: float | None = None) -> None:
        values = tuple(100 * float(value) for value in entry["accuracies"])  # type: ignore[attr-defined]
        share = () if covered is None else (100 * covered,)
        rows[label] = [Number((1e4 * rate,), digits=0), Number((epochs,), digits=0), Number(share, digits=0)]
        rows[label].append(Number(values))

    settings = results.settings
    base = next(one for one in choices["A"]["tried"] if one["epochs"] == choices["A"]["epochs"])
    row(base, "A", settings.base_rate, choices["A"]["epochs"])
    covered = choices.get("occluders", {"tried": []})
    for one in covered["tried"]:
        if one["covered"] == covered["covered"]:
            row(one, pretty(one["network"]), settings.fine_rate, settings.fine_epochs, one["covered"])
    stage = choices["B and C"]
    for one in stage["tried"]:
        if one["network"] not in LOSSES:  # A, to compare with
            continue
        chosen = stage["stage"][one["network"]][one["people"]]
        if (one["rate"], one["epochs"]) == (chosen["rate"], chosen["epochs"]):
            row(one, f"{one['network']}, {STAGES[one['people']]}", one["rate"], one["epochs"])
    tried = sum(len(choice["tried"]) for choice in choices.values())
    seeds = ", ".join(map(str, settings.choosing_seeds))
    return Table(
        "Choices",
        "Hyperparameters, chosen before LFW's pairs were read, and the accuracy in % of the chosen ones on the pairs "
        f"that they were chosen on (seeds {seeds}). Networks of the triplet stage with occluders take the values of "
        "the same loss and people without.",
        ["network", "learning rate, 10⁻⁴", "epochs", "covered images, %", "accuracy when chosen"],
        rows,
        f"The best of {tried} candidates in all, by network; report.json has the accuracy of each.",
    )


def _placement(results: TrunkResults) -> Table:
    rows = {}
    for name in results.settings.occluders:
        found = results.steps[f"map A {name}"].result
        rows[pretty(name)] = [
            Number((100 * found["mean"],), (100 * found["std"],)),
            Number((found["images"],), digits=0),
            Number((found["evaluations"],), digits=0),
        ]
    return Table(
        "Maps for P",
        "Accuracy of A in % under an occluder, mean ± standard deviation over its locations, on held-out images that A "
        "recognizes uncovered; sampled maps.",
        ["occluder", "accuracy of A", "images", "occluded images"],
        rows,
    )


# -- orderings -------------------------------------------------------------------------------------------


def _table_claims(results: TrunkResults) -> list[Claim]:
    claims: list[Claim] = []
    ends, occluders = results.settings.ends, results.settings.occluders

    def several(a: str, b: str, stage: str) -> tuple[Comparison, ...]:
        pairs = [(_key(a, end, stage), _key(b, end, stage)) for end in ends]
        each = [
            results.compare(f"{pretty(a + end)} above {pretty(b + end)}", [pair])
            for end, pair in zip(ends, pairs, strict=True)
        ]
        mean = [results.compare(f"{a} above {b}, mean of the {len(ends)}", pairs)] if occluders else []
        return (*each, *mean)

    for stage, text in STAGES.items():
        claims += [
            Claim(f"Table 2: {what}, trained on {text}", several(a, b, stage), stage != "same")
            for a, b, what in (
                ("B", "A", "the triplet loss improves on classification"),
                ("C", "B", "the batch triplet loss improves on the triplet loss"),
                ("C", "A", "the batch triplet loss improves on classification"),
            )
        ]
        if "20x40" in occluders:
            others = [end for end in ends if end != "20x40"]
            best = [
                results.compare(
                    f"C20×40 above {pretty(f'C{end}')}", [(_key("C", "20x40", stage), _key("C", end, stage))]
                )
                for end in others
            ]
            claims.append(Claim(f"Table 2: both together are best, trained on {text}", tuple(best), stage != "same"))
    beside = [
        results.compare(f"A above {pretty(f'A{end}')}", [("A", f"A{end}")])
        if end == "40x40"
        else results.compare(f"{pretty(f'A{end}')} above A", [(f"A{end}", "A")])
        for end in occluders
    ]
    if beside:
        text = "Table 2: small and medium occluders in training help A on faces without occluders, large ones do not"
        claims.append(Claim(text, tuple(beside)))
    return claims


def _key(network: str, end: str, stage: str) -> str:
    return f"{network}{end}" if network == "A" else named(network, end, stage)


def _figure_claims(results: TrunkResults) -> list[Claim]:
    claims = []
    for stage, text in STAGES.items():
        b, c = named("B", "", stage), named("C", "", stage)
        claims.append(
            Claim(
                "Figure 4: the triplet loss moves the means apart but leaves more overlap; the batch triplet loss "
                f"leaves less; trained on {text}",
                (
                    results.compare("B's means further apart than A's (0.01)", [(b, "A")], "gap"),
                    results.compare("B's pairs of one person spread more than A's (σ, 0.01)", [(b, "A")], "std_same"),
                    results.compare(
                        "B's pairs of two people spread more than A's (σ, 0.01)", [(b, "A")], "std_different"
                    ),
                    results.compare("B less decidable than A (d′)", [(b, "A")], "decidability", sign=-1),
                    results.compare("C more decidable than B (d′)", [(c, b)], "decidability"),
                ),
                stage != "same",
            )
        )
    return claims


# -- words -----------------------------------------------------------------------------------------------


def _notes(sources: TrunkSources) -> list[str]:
    notes = []
    if sources.left_out:
        names = ", ".join(sorted({entry.person for entry in sources.left_out}))
        notes.append(f"Left out of training because LFW has them too: {names}.")
    if missing := sources.protocol("lfw").missing:
        notes.append(f"{missing} listed pairs name missing images and are left out.")
    return notes


def _differences(settings: TrunkSettings, sources: TrunkSources) -> list[tuple[str, str]]:
    train, others, choosing = sources.faces("train"), sources.faces("others"), sources.faces("choosing")
    covered = [
        (
            f"Each training image has {settings.draws} drawn occluder{'s' if settings.draws != 1 else ''} of each "
            "size, the same in all epochs and seeds, placed by P from one A that is in no table; occluders keep the "
            f"paper's pixels on faces of 112×96. The trunk's precision on them is {settings.precision}.",
            "Less variety than a new occluder in every epoch. Intervals do not cover the choice of P.",
        )
    ] * bool(settings.occluders)
    return [
        (
            "The convolutions are those of a MobileFaceNet trained on CASIA-WebFace with another loss. They are "
            f"frozen: networks differ in a last layer of {settings.feature_size} numbers alone. The paper trains its "
            "ten convolutions in both stages.",
            "Whatever a loss or an occluder changes in the convolutions is missing. Effects can be smaller than the "
            "paper's; the whole MobileFaceNet's own accuracy is not reached, since the layer is trained on few people.",
        ),
        (
            f"A learns to classify {len(train.people)} people ({len(train):,} images, {settings.share:.0%} held out), "
            "not 10,575.",
            "Few people can be memorized: the table of Figure 4 has the accuracy on training images and the share of "
            "triplets that are left to learn from.",
        ),
        (
            f"The triplet stage is run on the same people, as in the paper, on {len(others.people)} others "
            f"({len(others):,} images), and on all.",
            "It tells what the loss does from what the data does.",
        ),
        *covered,
        (
            "RGB, 112×96, a similarity transform; no mirroring in training or testing.",
            "What the trunk expects; the paper's faces are gray, 100×100.",
        ),
        (
            f"Hyperparameters were chosen on {len(sources.protocol('choosing').same):,} pairs of "
            f"{len(choosing.people)} people whom no network is trained on. Photographs are others than LFW's; the "
            "people are in LFW too.",
            "The paper does not say how it chose. LFW's pairs were read once, after the choice.",
        ),
        ("The split of the images of A is the same for all seeds.", "Intervals over seeds do not cover it."),
    ]


__all__ = ["report"]
