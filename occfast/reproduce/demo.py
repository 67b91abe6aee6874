"""The demo: Table 1 of trigueros2018 on the 400 ORL faces, in minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .experiment import Experiment
from .graph import Done
from .report import Report, duration, evaluations_of
from .trigueros2018.experiment import probe
from .trigueros2018.figures import photographs
from .trigueros2018.report import placement, report
from .trigueros2018.results import Results
from .trigueros2018.settings import CONTROL, SIZES, TABLE_1, Settings, pretty, times
from .trigueros2018.sources import Sources
from .trigueros2018.steps import plan, targets
from .values import Comparison, Finding


def prepare(
    output: str | Path = "demo",
    *,
    seeds: Sequence[int] = (0,),
    full: bool = False,
    stride: int | None = None,
    width: float | None = None,
    command: str = "occfast demo",
) -> Experiment:
    """Prepare the demo; ``prepare(...).run()`` writes ``report.html`` and ``report.json`` with every number.

    Args:
        output: folder of the report; finished steps are kept in its folder ``steps``.
        seeds: each seed is one complete run with its own split, weights, batches and occluders.
        full: train all networks of Table 1 and visit every pixel, which takes hours on a processor.
        stride: distance of neighboring positions in pixels; None: 4, or 1 if ``full``.
        width: channels of the network relative to the paper's; None: 0.25.
        command: shown in the report.

    Raises:
        ValueError: if a setting is invalid, or ``output`` holds an unfinished run of an earlier version.
    """
    output, changes = Path(output), dict[str, object]()
    old = next(output.glob("steps-*/network A.pt"), None)
    if old is not None and not (output / "report.json").exists():
        raise ValueError(
            f"output: {old.parent} holds an unfinished demo of an earlier version, which can't be resumed; delete it "
            "or choose another output"
        )
    if full:
        changes |= {"networks": tuple(TABLE_1)[1:], "stride": 1}
    if stride is not None:
        changes["stride"] = stride
    if width is not None:
        changes["network"] = (("batch_norm", True), ("width", width))
    return of(Settings.of("demo", seeds=tuple(seeds), **changes), output, output / "steps", command)


def of(settings: Settings, folder: Path, steps: Path, command: str) -> Experiment:
    """Return the experiment of some settings of scale "demo"."""
    sources = Sources("demo")
    graph = plan(settings, sources, steps)
    graph = graph.only(targets(graph, settings, settings.tables, settings.figures))
    return Experiment(graph, folder, True, lambda done: _report(settings, sources, done, command), probe(settings))


def _report(settings: Settings, sources: Sources, done: Sequence[Done], command: str) -> Report:
    made = report(settings, sources, done, command, settings.tables, settings.figures)
    results = Results(settings, {step.name: step for step in done}, sources)
    table, count = made.tables[0], sources.sizes.people * (settings.split or (0, 0, 0))[2]
    note = (
        f"{table.note} High mean: covering hurts little; small deviation: the location matters little. A20×40 is "
        "fine-tuned with 20×40 occluders placed by the map, A20×40R with occluders at random locations. “A, trained as "
        "long” has as many more epochs without occluders: the fair baseline. One image is "
        f"{100 / count:.2f} points of the column “uncovered”."
    )
    bars, maps, *paper = made.pictures
    return replace(
        made,
        title="What does a face recognizer look at, and what if that is covered?",
        lead=f"A network learned to tell {sources.sizes.people} people of the ORL faces apart. An occluder was moved "
        "over unseen faces of these people to find where covering hurts (the occlusion map), and the network was "
        "fine-tuned with noisy occluders placed there, as Sáez Trigueros, Meng and Hartnett proposed in 2018.",
        findings=findings(results),
        findings_note=_note(results, made),
        cards=_cards(results, made),
        tables=[replace(table, note=note, command=""), placement(results)],
        pictures=[*(replace(one, command="") for one in (bars, *paper, maps)), *photographs(results, sources)],
    )


def findings(results: Results) -> list[Finding]:
    """Compare networks trained with occluders with A, trained as long, and placed with random occluders."""
    found = []
    for name, size in ((f"A{times(size)}", size) for size in SIZES if f"A{times(size)}" in results.settings.rows):
        under = f"training with placed {pretty(times(size))} occluders"
        mean, std = (results.compare(name, CONTROL, size, key) for key in ("mean", "std"))
        found.append(_finding(under, "the mean accuracy under them", mean, pretty(CONTROL)))
        found.append(_finding(under, "the spread over their locations", std, pretty(CONTROL), falls=True))
        if f"{name}R" in results.settings.rows:
            under = f"placing {pretty(times(size))} occluders by P in training"
            mean, std = (results.compare(name, f"{name}R", size, key) for key in ("mean", "std"))
            found.append(_finding(under, "the mean accuracy under them", mean, "random places"))
            found.append(_finding(under, "the spread over their locations", std, "random places", falls=True))
    return found


def _finding(cause: str, what: str, found: Comparison, other: str, *, falls: bool = False) -> Finding:
    sign = -1 if falls else 1  # a positive difference of spreads is a smaller spread
    bounds = "without an interval"
    if found.interval is not None:
        bounds = "[{:+.2f}, {:+.2f}]".format(*sorted(sign * bound for bound in found.interval))
    amount = f"{sign * found.mean:+.2f} points {bounds} against {other}"
    if found.clear:
        verb = "raised" if sign * found.mean > 0 else "lowered"
        return Finding(f"{cause[0].upper()}{cause[1:]} {verb} {what}: {amount}.", found)
    return Finding(f"Whether {cause} changes {what} remains open: {amount}.", found)


def _note(results: Results, made: Report) -> str:
    seeds, env = results.settings.seeds, made.environment
    machine = f"{env['processor']}, {env['threads']} thread{'s' * (env['threads'] != 1)}"
    run = f"This run: seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {machine}."
    if len(seeds) > 1:
        return f"Brackets: 95 % interval over the {len(seeds)} seeds (Student's t). {run}"
    return (
        "Brackets: 95 % bootstrap interval over the images of the table, the same images for both networks. It states "
        "how far other photographs of these people would move a difference, not what another seed would: that trains "
        "other networks on another split, and so does another machine, which rounds differently. Several seeds "
        f"(--seeds 0,1,2) give intervals that cover both. {run}"
    )


def _cards(results: Results, made: Report) -> list[tuple[str, str]]:
    both = [results.step(name).result for name in ("map A 20x20", "table A 20x20")]
    held = sum(one["held"] for one in both)
    share = 100 * sum(one["clean"] * one["held"] for one in both) / held
    swept = sum(step.seconds for step in made.steps if evaluations_of(step))
    threads, rate = made.environment["threads"], made.evaluations / max(swept, 1e-9)
    return [
        (f"{share:.1f} %", f"of {held} unseen, uncovered faces recognized by A"),
        (f"{made.evaluations:,}", "occluded faces evaluated"),
        (f"{rate:,.0f} /s", f"occluded faces per second on {threads} thread{'s' * (threads != 1)}"),
        (duration(made.seconds), "for all steps"),
    ]
