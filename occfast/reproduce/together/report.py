"""The report on both papers together: one table to act on, and its orderings judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...evaluate.resampling import resampled_rates
from ...files import read_npz
from ..graph import Done
from ..report import Report, Table
from ..trigueros2018.judging import PairDraws, judged
from ..trigueros2018.sources import DOUBTFUL
from ..values import Claim, Comparison, Number
from .settings import AS_IS, COVERINGS, MASKS, TRAININGS, TogetherSettings
from .sources import TogetherSources

Floats = NDArray[np.float64]
#: False acceptance rate of AR's columns.
FAR = 1e-3
_LFW = ("clean", *COVERINGS)
_AR = ("clean", "sunglasses", "scarf")
#: Largest loss on LFW, in points, of a training that costs nothing on uncovered faces.
_LOSS = 0.3


def report(
    settings: TogetherSettings, sources: TogetherSources, found: Sequence[Done], command: str, tables: Iterable[int]
) -> Report:
    """Make the report of finished steps.

    Args:
        settings: of the run.
        sources: of the run.
        found: the finished steps.
        command: shown in the report.
        tables: 1 (trainings) and 2 (masks).
    """
    results, tables = _Results(settings, sources, {step.name: step for step in found}), set(tables)
    count = len(settings.seeds)
    return Report(
        paper="together",
        title="Both papers together: training with coverings, and masks, on a deployed recognizer",
        lead="A MobileFaceNet trained on CASIA-WebFace is trained further on faces with the noisy occluders of "
        "trigueros2018 placed by P, with drawn accessories, with the bands of pdsn-landmarks, and with all of them; "
        f"PDSN's masks are put on top. Judged on LFW and on AR's real sunglasses and scarves; {count} "
        f"seed{'s' if count != 1 else ''}.",
        scale="small",
        seeds=settings.seeds,
        settings=asdict(settings),
        data={**sources.about(), "choices": results.choices()},
        command=command,
        claims=[*(_training_claims(results) if 1 in tables else []), *(_mask_claims(results) if 2 in tables else [])],
        tables=[
            *([_trainings(results)] if 1 in tables else []),
            *([_without_doubtful(results)] if 1 in tables and results.doubtful is not None else []),
            *([_masks(results)] if 2 in tables else []),
        ],
        differences=_DIFFERENCES,
        steps=found,
    )


class _Results:
    """Results of the steps, by training and seed."""

    def __init__(self, settings: TogetherSettings, sources: TogetherSources, steps: Mapping[str, Done]) -> None:
        self.settings, self.sources, self.steps = settings, sources, steps
        self._rates: dict[tuple[str, str, int, bool], Floats] = {}

    def choices(self) -> dict[str, Any]:
        """Return what was tried and chosen."""
        names = ("choose rate", "choose weight")
        return {name: self.steps[name].result for name in names if name in self.steps}

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return self.settings.seeds

    def stored(self, training: str, seed: int, key: str) -> NDArray[Any]:
        """Read an array of a step "verify"; that of the recognizer as it is has no seed."""
        name = f"verify {AS_IS}" if training == AS_IS else f"seed {seed}: verify {training}"
        return read_npz(self.steps[name].folder / "scores.npz")[key.replace(":", "-")]

    # -- LFW ------------------------------------------------------------------------------------------------

    def accuracy(self, training: str, condition: str) -> tuple[float, ...]:
        """Return the accuracy on LFW in %, for each seed."""
        return tuple(100 * float(self.stored(training, seed, f"lfw {condition}").mean()) for seed in self.seeds)

    def accuracies(self, training: str, condition: str) -> Floats:
        """Return the accuracy in % in each resample of LFW's people for each seed, [R, S]."""
        correct = np.stack([self.stored(training, seed, f"lfw {condition}") for seed in self.seeds], 1)
        return 100 * self._lfw.accuracies(correct)

    @cached_property
    def _lfw(self) -> PairDraws:
        faces, conditions = self.sources.tested("lfw")
        people = faces.labels[conditions[0].protocol.index].numpy()
        return PairDraws(people, self.settings.resamples)

    # -- AR -------------------------------------------------------------------------------------------------

    @cached_property
    def doubtful(self) -> str | None:
        """The person of AR whose covered photographs seem to show somebody else; None if there is none."""
        return next((name for name in DOUBTFUL if name in self.sources.ar[0].people), None)

    def accepted(self, training: str, condition: str, *, everybody: bool = True) -> tuple[float, ...]:
        """Return the true acceptance rate on AR in % at :data:`FAR`, for each seed."""
        return tuple(float(self._accepted(training, condition, seed, everybody)[0]) for seed in self.seeds)

    def acceptance_draws(self, training: str, condition: str) -> Floats:
        """Return the same in each resample of AR's people for each seed, [R, S]."""
        return np.stack([self._accepted(training, condition, seed, True)[1:] for seed in self.seeds], 1)

    def _accepted(self, training: str, condition: str, seed: int, everybody: bool) -> Floats:
        key = training, condition, -1 if training == AS_IS else seed, everybody
        if key not in self._rates:
            faces, conditions = self.sources.tested("ar")
            protocol = next(one.protocol for one in conditions if one.name == condition)
            scores = self.stored(training, seed, f"ar {condition}").astype(np.float64)
            people, same = faces.labels[protocol.index].numpy(), protocol.same.numpy()
            if not everybody and self.doubtful is not None:
                kept = (people != faces.people.index(self.doubtful)).all(1)
                scores, people, same = scores[kept], people[kept], same[kept]
            rates = resampled_rates(scores, same, people, FAR, resamples=self.settings.resamples)
            self._rates[key] = 100 * rates
        return self._rates[key]

    # -- comparisons ------------------------------------------------------------------------------------------

    def compare(self, first: str, second: str, data: str, condition: str, plus: float = 0.0) -> Comparison:
        """Compare two trainings on "lfw" (accuracy) or "ar" (TAR), first + plus − second in points."""
        read: Callable[[str, str], tuple[float, ...]] = self.accuracy if data == "lfw" else self.accepted
        draw = self.accuracies if data == "lfw" else self.acceptance_draws
        seen = np.subtract(read(first, condition), read(second, condition)) + plus
        drawn = (draw(first, condition) - draw(second, condition)).mean(1) + plus
        more = f", with {plus:g} points more," if plus else ""
        name = f"{_title(first)}{more} above {_title(second)}, {data.upper()} {condition}"
        return judged(name, seen, drawn)

    # -- masks ----------------------------------------------------------------------------------------------

    def hits(self, training: str, masks: str, condition: str) -> NDArray[np.bool_]:
        """Tell which probes are found at rank 1 for each seed, [S, P]."""
        key = f"{masks} {condition}".replace(",", "")
        return np.stack(
            [read_npz(self.steps[f"seed {s}: masks {training}"].folder / "hits.npz")[key] for s in self.seeds]
        )

    def compare_masks(self, training: str, masks: str, condition: str) -> Comparison:
        """Compare a kind of masks with none, on AR's rank-1 in points, resampling people."""
        gain = 100.0 * (
            self.hits(training, masks, condition).astype(float) - self.hits(training, "no masks", condition)
        )
        faces, conditions = self.sources.tested("ar")
        protocol = next(one.protocol for one in conditions if one.name == condition)
        people = faces.labels[protocol.index[:, 1].unique()].numpy()
        _, person = np.unique(people, return_inverse=True)
        of_people = np.stack([np.bincount(person, one) for one in gain], 1) / np.bincount(person)[:, None]
        random = np.random.default_rng(0)
        counts = random.multinomial(
            len(of_people), np.full(len(of_people), 1 / len(of_people)), self.settings.resamples
        )
        drawn = (counts @ of_people.mean(1)) / len(of_people)
        name = f"{masks} above no masks, {_title(training)}, AR {condition}"
        return judged(name, gain.mean(1), drawn)


def _title(training: str) -> str:
    return AS_IS if training == AS_IS else TRAININGS[training].title


# -- tables ----------------------------------------------------------------------------------------------


def _trainings(results: _Results) -> Table:
    rows = {}
    for name in (AS_IS, *TRAININGS):
        once = slice(0, 1) if name == AS_IS else slice(None)
        rows[_title(name)] = [
            *(Number(results.accuracy(name, condition)[once]) for condition in _LFW),
            *(Number(results.accepted(name, condition)[once], digits=1) for condition in _AR),
        ]
    return Table(
        "Table 1",
        "Which training, and what it costs on uncovered faces: accuracy in % on LFW's View 2, uncovered and with a "
        f"drawn covering on the second image; true acceptance rate in % at a false acceptance rate of {FAR:g} on AR, "
        "a neutral reference against other light, real sunglasses and real scarves. Brackets: 95 % intervals over "
        "seeds; verdicts are over seeds and people.",
        ["training", *(f"LFW {name}" for name in _LFW), *(f"AR {name}" for name in _AR)],
        rows,
        best=True,
    )


def _without_doubtful(results: _Results) -> Table:
    rows = {}
    for name in (AS_IS, *TRAININGS):
        once = slice(0, 1) if name == AS_IS else slice(None)
        rows[_title(name)] = [
            Number(results.accepted(name, condition, everybody=False)[once], digits=1) for condition in _AR
        ]
    return Table(
        f"AR without person {results.doubtful}",
        "The columns of AR without the person whose covered photographs seem to show somebody else.",
        ["training", *(f"AR {name}" for name in _AR)],
        rows,
        best=True,
    )


def _masks(results: _Results) -> Table:
    rows = {
        f"{_title(training)}; {masks}": [
            Number(tuple(100 * results.hits(training, masks, condition).mean(1)), digits=1) for condition in _AR[1:]
        ]
        for training in results.settings.masked
        for masks in ("no masks", *MASKS)
    }
    return Table(
        "Table 2",
        "PDSN's masks on top: rank-1 in % of AR's covered photographs among everybody's neutral one, by features, with "
        "the covered rows known.",
        ["training; masks", *(f"AR {name}" for name in _AR[1:])],
        rows,
        best=True,
    )


# -- orderings -------------------------------------------------------------------------------------------


def _training_claims(results: _Results) -> list[Claim]:
    coverings = _AR[1:]
    one_paper = ("noisy", "bands")
    return [
        Claim(
            "Training with coverings accepts more faces under real coverings than training on uncovered ones",
            tuple(
                results.compare(name, "uncovered", "ar", condition)
                for name in TRAININGS
                if name != "uncovered"
                for condition in coverings
            ),
            beyond=True,
        ),
        Claim(
            "All three coverings together are better under real coverings than those of one paper",
            tuple(results.compare("all", name, "ar", c) for name in one_paper for c in coverings),
            beyond=True,
        ),
        Claim(
            "With features kept, all three are better under real coverings than the methods of both papers",
            tuple(results.compare("kept", name, "ar", c) for name in one_paper for c in coverings),
            beyond=True,
        ),
        Claim(
            f"… and lose at most {_LOSS:g} points on LFW",
            (results.compare("kept", AS_IS, "lfw", "clean", _LOSS),),
            beyond=True,
        ),
        Claim(
            f"Training with coverings loses at most {_LOSS:g} points on LFW",
            tuple(results.compare(name, AS_IS, "lfw", "clean", _LOSS) for name in TRAININGS if name != "kept"),
            beyond=True,
        ),
    ]


def _mask_claims(results: _Results) -> list[Claim]:
    return [
        Claim(
            f"With PDSN's masks more covered faces are recognized ({_title(training)})",
            tuple(results.compare_masks(training, masks, c) for masks in MASKS for c in _AR[1:]),
            beyond=True,
        )
        for training in results.settings.masked
    ]


_DIFFERENCES = [
    (
        "Neither paper: a MobileFaceNet trained on CASIA-WebFace with another loss is trained further, all its layers, "
        "on 616 people.",
        "It says what to do with a recognizer that one has, not which of the papers is right.",
    ),
    (
        "P comes from the verification map of the recognizer as it is: the share of pairs that are rejected at the "
        "threshold of FMR 1e-3.",
        "trigueros2018 takes the error rate of a classifier.",
    ),
    (
        "AR's photographs are 42×30 pixels, enlarged; half of the training images are reduced to that resolution.",
        "Acceptance on AR is lower than that of sharp photographs.",
    ),
    (
        "Learning rate and weight of the distillation are chosen on pairs of people whom nobody is trained on, who are "
        "in LFW too by other photographs; one seed.",
        "Nothing of LFW's photographs or of AR is read before the choice.",
    ),
    ("PDSN's masks know which rows AR's coverings hide.", "An upper bound of what a segmentation would give."),
]

__all__ = ["report"]
