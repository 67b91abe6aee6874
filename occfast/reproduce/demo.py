"""The main job on real faces, in minutes: base network, maps, placed occluders, maps again, a report.

What trigueros2018 does with half a million faces, on the 400 of ORL: train a network (A), see where covering a face
hurts it (Figure 1), fine-tune with noisy occluders placed there (Figure 2, Eq. 4) and measure what that gains
(Table 1).  :func:`run` does it step by step; each finished step is a file, so a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import checks
from .._version import __version__
from ..data import ORL
from ..errors import DataError
from ..files import write_atomically
from ..models import PaperNet, Preprocessing
from ..occlude.locations import LocationDistribution
from ..occlude.noisy import NoisyOccluder
from ..sweep import OcclusionMap, occlusion_map
from ..train import Augment, Epoch, Jitter, fit, predict
from ..train.augment import TEMPERATURES
from .trigueros2018.steps import CONTROL, TABLE_1

if TYPE_CHECKING:
    from rich.console import Console

#: Table 1, %: mean and standard deviation over locations, columns 20×20, 20×40, 40×40.
PAPER = TABLE_1


def occluder_name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


@dataclass(frozen=True)
class DemoSettings:
    """Everything that the demo's numbers depend on.

    Attributes:
        seed: of the split, the weights, the batches and the occluders.
        networks: the fine-tuned ones, named as in the paper's Table 1 (R: placed at random, else by P).
        width: of :class:`~occfast.models.PaperNet`; 1.0 is the paper's network.
        stride: distance of neighboring positions of the occluder, in pixels; the paper's is 1.
        split: images of each person for training, for the maps behind P, for the table (disjoint).
        people: the first so many of the 40.
        epochs, learning_rate: of the base network; fine_tune_epochs, fine_tune_learning_rate: of the others.
        batch_size: of training; map_batch_size: positions in a forward pass of a sweep; None: as
            the incremental sweep, which chooses without measuring, finds best.
        covered: share of the training images that get an occluder.
        level, intensity: ranges of the occluders' noise and color, on the scale where black is 0 and white 1.
    """

    seed: int = 0
    networks: tuple[str, ...] = ("A20x20", "A20x40", "A40x40", "A20x40R")
    width: float = 0.25
    stride: int = 4
    split: tuple[int, int, int] = (6, 2, 2)
    people: int = 40
    epochs: int = 60
    learning_rate: float = 4e-3
    fine_tune_epochs: int = 24
    fine_tune_learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    dropout: float = 0.4
    batch_size: int = 20
    map_batch_size: int | None = None
    covered: float = 1.0
    level: tuple[float, float] = (0.0, 0.3)
    intensity: tuple[float, float] = (0.0, 1.0)
    jitter: Jitter = field(default_factory=Jitter)

    def __post_init__(self) -> None:
        checks.seed(self.seed)
        unknown = [name for name in self.networks if name not in PAPER or name == "A"]
        if unknown or len(set(self.networks)) != len(self.networks):
            raise ValueError(f"networks: expected different ones of {', '.join(list(PAPER)[1:])}, got {self.networks}")
        if not 2 <= self.people <= 40:
            raise ValueError(f"people: expected 2 to 40, got {self.people}")
        if len(self.split) != 3:
            raise ValueError(f"split: expected three numbers of images, got {self.split}")
        if not self.width > 0:
            raise ValueError(f"width: expected a positive number, got {self.width}")
        checks.number(self.covered, "covered", 0.0, 1.0)

    @classmethod
    def full(cls, **changes: Any) -> DemoSettings:
        """All seven networks of Table 1 and a center on every pixel: hours on a processor."""
        return replace(cls(networks=tuple(PAPER)[1:], stride=1), **changes)

    def fingerprint(self) -> str:
        """Names the folder of the steps: other settings, versions or threads never reuse a result."""
        stated = [asdict(self), __version__, torch.__version__, torch.get_num_threads()]
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:12]


def run(
    settings: DemoSettings | None = None,
    output: str | Path = "demo",
    console: Console | None = None,
    *,
    fresh: bool = False,
) -> Path:
    """Run the demo; returns the path of ``report.html``, beside which ``report.json`` has every figure.

    Args:
        settings: by default those that take a few minutes on two cores.
        output: a folder, made if need be; ``steps-…`` in it keeps what is finished.
        console: where progress is shown; by default the standard error.
        fresh: forget the finished steps of these settings and start anew.

    Raises:
        DataError: the ORL faces are not installed, or a file is damaged.
        ValueError: settings that can't work.
    """
    from . import demo_report

    settings = settings or DemoSettings()
    folder = Path(output) / f"steps-{settings.fingerprint()}"
    if fresh and folder.exists():
        shutil.rmtree(folder)
    with _deterministic(), _Shown(console, _step_count(settings)) as shown:
        result = Demo(settings, folder, shown).run()
    report = demo_report.write(result, Path(output))
    return report


@dataclass
class Cost:
    """What one step took; ``evaluations`` are forward passes of an occluded face, 0 for training."""

    step: str
    seconds: float
    evaluations: int = 0


@dataclass
class Result:
    """What the report shows."""

    settings: DemoSettings
    images: Tensor  # uint8 [N, 1, 100, 100]
    labels: Tensor
    parts: tuple[Tensor, Tensor, Tensor]  # numbers of the images for training, P, the table
    placement_maps: dict[tuple[int, int], OcclusionMap]
    placements: dict[tuple[int, int], LocationDistribution]
    maps: dict[str, dict[tuple[int, int], OcclusionMap]]  # of the table, by network
    right: dict[str, Tensor]  # bool: which images of the table's part are right uncovered
    held_out: dict[str, float]  # accuracy uncovered on all images outside training
    histories: dict[str, list[Epoch]]
    costs: list[Cost]

    @property
    def clean(self) -> dict[str, float]:
        """Accuracy uncovered on the table's images, by network."""
        return {name: float(right.double().mean()) for name, right in self.right.items()}


class Demo:
    """One run: its data, its networks and where its finished steps lie."""

    def __init__(self, settings: DemoSettings, folder: Path, shown: _Shown) -> None:
        self.settings, self.folder, self.shown = settings, folder, shown
        self.costs: list[Cost] = []
        self.histories: dict[str, list[Epoch]] = {}

    def run(self) -> Result:
        s = self.settings
        train, first, second = self.parts
        base = self.network("A", None, None)
        placement_maps = {size: self.map("A", base, size, first, "for P") for size in TEMPERATURES}
        placements = {size: placement_maps[size].distribution(t) for size, t in TEMPERATURES.items()}
        networks = {"A": base, CONTROL: self.network(CONTROL, base, None)}
        for name in s.networks:
            networks[name] = self.network(name, base, occluder(s, name, placements))
        maps = {
            name: {size: self.map(name, network, size, second, "for the table") for size in TEMPERATURES}
            for name, network in networks.items()
        }
        return Result(
            s,
            self.images,
            self.labels,
            (train, first, second),
            placement_maps,
            placements,
            maps,
            right={name: self.right(network, second) for name, network in networks.items()},
            held_out={
                name: float(self.right(network, torch.cat([first, second])).double().mean())
                for name, network in networks.items()
            },
            histories=self.histories,
            costs=self.costs,
        )

    # -- data ------------------------------------------------------------------------------------------

    @cached_property
    def _faces(self) -> ORL:
        return ORL()

    @cached_property
    def images(self) -> Tensor:
        return self._faces.images[: 10 * self.settings.people]

    @cached_property
    def labels(self) -> Tensor:
        return self._faces.labels[: 10 * self.settings.people]

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of the images for training, for P and for the table: no image is in two of them."""
        train, first, second = (
            part[part < 10 * self.settings.people]
            for part in self._faces.split(self.settings.split, self.settings.seed)
        )
        return train, first, second

    # -- networks --------------------------------------------------------------------------------------

    def network(self, name: str, base: PaperNet | None, cover: NoisyOccluder | None) -> PaperNet:
        """Train (from ``base``, or from new weights) or fetch what was trained."""
        s, path = self.settings, self.folder / f"network {name}.pt"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            network = PaperNet(s.people, width=s.width, batch_norm=True, dropout=s.dropout)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        label = f"train {name}" if base is None else f"fine-tune {name}"
        if path.exists():
            saved = _load(path)
            network.load_state_dict(saved["weights"])
            epochs = [Epoch(**epoch) for epoch in saved["epochs"]]
            seconds = float(saved["seconds"])
        else:
            if base is not None:
                network.load_state_dict(base.state_dict())
            count = s.epochs if base is None else s.fine_tune_epochs
            start = time.perf_counter()
            with self.shown.task(label, "epochs") as report:
                history = fit(
                    network,
                    self.images[self.parts[0]],
                    self.labels[self.parts[0]],
                    epochs=count,
                    batch_size=s.batch_size,
                    seed=s.seed if base is None else s.seed + 1,
                    learning_rate=s.learning_rate if base is None else s.fine_tune_learning_rate,
                    weight_decay=s.weight_decay,
                    transform=Augment(seen, s.jitter, cover),
                    on_epoch=lambda epoch: report(epoch.number, count),
                )
            epochs, seconds = history.epochs, time.perf_counter() - start
            content = {"weights": network.state_dict(), "epochs": [asdict(e) for e in epochs], "seconds": seconds}
            buffer = io.BytesIO()
            torch.save(content, buffer)
            write_atomically(path, buffer.getvalue())
        self.histories[name] = epochs
        self.costs.append(Cost(label, seconds))
        self.shown.done(label, seconds, f"loss {epochs[-1].loss:.3f} in the last of {len(epochs)} epochs")
        network.eval()
        return network

    def right(self, network: PaperNet, part: Tensor) -> Tensor:
        """Which uncovered images of a part the network gets right: bool [len(part)]."""
        # The batches in which occlusion_map looks at them: a tie can't fall differently.
        return predict(network, seen(self.images[part]), batch_size=16).argmax(1) == self.labels[part]

    # -- maps ------------------------------------------------------------------------------------------

    def map(self, name: str, network: PaperNet, size: tuple[int, int], part: Tensor, use: str) -> OcclusionMap:
        s, label = self.settings, f"map {name}, {occluder_name(size)}, {use}"
        path = self.folder / f"{label}.npz"
        if path.exists():
            result = OcclusionMap.load(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.shown.task(label, "positions") as report:
                result = occlusion_map(
                    network,
                    seen(self.images[part]),
                    self.labels[part],
                    occluder=size,
                    stride=s.stride,
                    batch_size=s.map_batch_size,
                    progress=report,
                    checkpoint=path.with_suffix(".checkpoint"),
                )
            result.save(path)
        mean, std = result.accuracy
        self.costs.append(Cost(label, result.seconds, result.n_evaluations))
        self.shown.done(label, result.seconds, f"accuracy {100 * mean:.2f} ± {100 * std:.2f} % over locations")
        return result


#: How images become what the network takes: middle gray is 0, black -2, white 2; channels_last.
seen = Preprocessing((100, 100), "gray", mean=0.5, std=0.25)


def occluder(
    settings: DemoSettings, name: str, placements: dict[tuple[int, int], LocationDistribution]
) -> NoisyOccluder:
    """The occluder that the network of that name is fine-tuned with, e.g. "A20x40R": 20×40, placed at random."""
    height, width = name.removeprefix("A").removesuffix("R").split("x")
    size = (int(height), int(width))
    return NoisyOccluder(
        size,
        "normal" if name.endswith("R") else placements[size],
        level=settings.level,
        intensity=settings.intensity,
        p=settings.covered,
        seed=settings.seed + 1,
    )


def compare(result: Result, name: str, other: str, size: tuple[int, int]) -> dict[str, float | int]:
    """Network ``name`` against ``other`` under an occluder: differences of Table 1's mean and standard deviation, and
    the paired mean difference over the images that both get right uncovered, with its standard error (all in %).
    """
    first, second = result.maps[name][size], result.maps[other][size]
    both = result.right[name] & result.right[other]
    paired = _by_image(first, result.right[name])[both] - _by_image(second, result.right[other])[both]
    return {
        "mean": 100 * (first.accuracy[0] - second.accuracy[0]),
        "std": 100 * (first.accuracy[1] - second.accuracy[1]),
        "paired_mean": 100 * float(paired.mean()),
        "paired_standard_error": 100 * float(paired.std(ddof=1) / len(paired) ** 0.5),
        "images": len(paired),
    }


def _by_image(m: OcclusionMap, right: Tensor) -> NDArray[np.float64]:
    # Accuracy over locations of each image; NaN where the image is wrong uncovered and was left out.
    out = np.full(len(right), np.nan)
    assert m.per_image is not None
    out[right.numpy()] = 1 - m.per_image.reshape(len(m.per_image), -1).mean(1, dtype=np.float64)
    return out


# -- running ---------------------------------------------------------------------------------------------


def _step_count(settings: DemoSettings) -> int:
    networks = 2 + len(settings.networks)
    return networks + len(TEMPERATURES) * (1 + networks)


def _load(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # what a damaged archive provokes is not one kind
        raise DataError(f"{path}: damaged; delete it, or start anew with --fresh") from error
    return content


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class _Shown:
    """Progress on a console: a bar for the whole, a bar for the step, and a line for each finished step."""

    def __init__(self, console: Console | None, steps: int) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = console or RichConsole(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.whole = self.bars.add_task("demo", total=steps, rate="")

    def __enter__(self) -> _Shown:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    @contextmanager
    def task(self, label: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
        task, start = self.bars.add_task(label, total=None, rate=""), time.perf_counter()

        def report(done: int, total: int | None) -> None:
            rate = done / max(time.perf_counter() - start, 1e-9)
            self.bars.update(task, completed=done, total=total, rate=f"{rate:,.1f} {unit}/s")

        try:
            yield report
        finally:
            self.bars.remove_task(task)

    def done(self, label: str, seconds: float, text: str) -> None:
        self.bars.advance(self.whole)
        self.line(f"{label}: {text} [dim]({seconds:.1f} s)[/dim]")

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)
