"""An experiment as a graph of steps, each of which is done once.

A finished step is a folder named by the hash of all that went into it: its settings, the steps that it needs, the data
it reads, the versions.  So a run that was stopped or killed goes on at the step at hand (and within it, where the step
keeps checkpoints), and a run with other settings computes again only what they change.

Under ``torchrun`` every process runs the graph: steps that train run in all of them together, the others are dealt out.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..data import FaceDataset
from ..errors import DataError
from ..files import read_json, write_atomically

DONE, BEGUN = "done.json", "begun.json"
_KIND = "occfast.step"
#: A data set up to so many images is hashed whole, of a larger one so many images are.
_HASHED = 512


@dataclass(frozen=True)
class Work:
    """What a step is expected to take, known before anything runs.

    Attributes:
        flops: floating-point operations (a multiplication and an addition are two) of plain dense computing.
        images: training images, positions of an occluder, or embedded images.
        kind: "train", "sweep", "embed", or "other", for which no time is predicted.
        disk: bytes that it leaves.
        speedup: how many times as fast as a dense forward pass the work is known to be done (sweeps).
    """

    flops: float = 0.0
    images: int = 0
    kind: str = "other"
    disk: int = 0
    speedup: float = 1.0


@dataclass(frozen=True)
class Done:
    """A finished step.

    Attributes:
        folder: with its files.
        result: what it found, as JSON has it.
        seconds: it took, over all its parts if it was stopped.
        device, processes: that it ran on.
        finished: date and time.
    """

    name: str
    folder: Path
    result: dict[str, Any]
    seconds: float
    device: str
    processes: int
    finished: str


@dataclass(frozen=True)
class StepContext:
    """Where and with what a step works.

    Attributes:
        folder: its own; what an interrupted attempt left there is still there.
        needs: the steps that it asked for, by name.
        device: "cpu" or "cuda:N".
        show: whether to show progress.
    """

    folder: Path
    needs: Mapping[str, Done]
    device: str
    show: bool


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: unique in its graph.
        make: does the work in its folder; what it returns must go into JSON.
        settings: all that the result depends on beside ``needs`` and ``data``; must go into JSON.
        needs: names of steps before it.
        data: names of the data sets that it reads.
        together: all processes run it together (training), else one does.
        work: see there.
    """

    name: str
    make: Callable[[StepContext], dict[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    together: bool = False
    work: Work = field(default_factory=Work)


class Graph:
    """Steps in an order in which each comes after those it needs.

    Args:
        steps: with different names.
        root: folder of the steps.
        fingerprints: for each data set that is named by a step, a function that gives its :func:`fingerprint`.

    Raises:
        ValueError: two steps of one name, or a step that needs one that doesn't come before it.
    """

    def __init__(self, steps: Iterable[Step], root: Path, fingerprints: Mapping[str, Callable[[], str]]) -> None:
        self.steps: dict[str, Step] = {}
        for step in steps:
            if step.name in self.steps:
                raise ValueError(f"steps: two are named {step.name!r}")
            if missing := [name for name in step.needs if name not in self.steps]:
                raise ValueError(f"steps: {step.name!r} needs {missing[0]!r}, which does not come before it")
            self.steps[step.name] = step
        self.root = root.resolve()  # recipes name other steps' files, wherever the run is resumed from
        self._fingerprints, self._known = dict(fingerprints), dict[str, str]()
        self._keys: dict[str, str] = {}

    def only(self, targets: Iterable[str]) -> Graph:
        """These steps and all that they need."""
        wanted = set(targets)
        if unknown := wanted - self.steps.keys():
            raise ValueError(f"steps: there is no step {sorted(unknown)[0]!r}")
        for name in reversed(list(self.steps)):
            if name in wanted:
                wanted.update(self.steps[name].needs)
        return Graph((step for name, step in self.steps.items() if name in wanted), self.root, self._fingerprints)

    def spread(self) -> Graph:
        """The same steps, each of them done by one process: several at once instead of one on all."""
        steps = (replace(step, together=False) for step in self.steps.values())
        return Graph(steps, self.root, self._fingerprints)

    def data(self, name: str) -> str:
        """The fingerprint of a data set, taken once."""
        if name not in self._known:
            self._known[name] = self._fingerprints[name]()
        return self._known[name]

    def key(self, name: str) -> str:
        """The hash of all that goes into a step, 64 hexadecimal digits."""
        if name not in self._keys:
            step = self.steps[name]
            stated = {
                "name": name,
                "settings": step.settings,
                "needs": {other: self.key(other) for other in step.needs},
                "data": {other: self.data(other) for other in step.data},
                "versions": [__version__, torch.__version__],
            }
            self._keys[name] = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
        return self._keys[name]

    def folder(self, name: str) -> Path:
        """Where a step works."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
        return self.root / f"{readable}-{self.key(name)[:12]}"

    def done(self, name: str) -> Done | None:
        """A step's result, if it is finished.  Raises DataError where its file is damaged."""
        path = self.folder(name) / DONE
        if not path.exists():
            return None
        content = read_json(path)
        try:
            if content["kind"] != _KIND or content["key"] != self.key(name):
                raise DataError(f"{path}: not the result of the step {name!r}; delete its folder to do it again")
            return Done(
                name,
                path.parent,
                content["result"],
                float(content["seconds"]),
                content["device"],
                int(content["processes"]),
                content["finished"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not a whole result ({error}); delete its folder to do it again") from error

    def levels(self) -> list[list[Step]]:
        """Steps that need nothing of each other, together."""
        depth: dict[str, int] = {}
        for name, step in self.steps.items():
            depth[name] = 1 + max((depth[other] for other in step.needs), default=-1)
        return [[self.steps[n] for n in depth if depth[n] == k] for k in range(max(depth.values(), default=-1) + 1)]

    # -- running ---------------------------------------------------------------------------------------

    def run(self, device: str = "auto", *, show: bool = True, say: Callable[[str], None] | None = None) -> list[Done]:
        """Do what is not done yet; the results of all steps, in order.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:N"; of several processes each takes the GPU of its own number.
            show: progress within steps.
            say: is told a line before and after each step.

        Raises:
            ValueError: another run is at work in the same folder; and what steps raise.
        """
        tell = say or (lambda text: None)
        team = ProcessGroup.of_torchrun()
        place = team.device(device)
        if place.startswith("cuda"):
            torch.cuda.set_device(torch.device(place))
        with _alone(self.root) if team.rank == 0 else contextlib.nullcontext():
            if team.size == 1:  # one process can as well keep the order of the list, which a reader follows
                for name in self.steps:
                    self._do(self.steps[name], place, team, show, tell)
            else:
                for level in self.levels():
                    alone = [step for step in level if not step.together]
                    for step in team.share(alone):
                        self._do(step, place, team, show, tell)
                    self._wait(alone)  # else those who are done early would time out in the first exchange of gradients
                    for step in level:
                        if step.together:
                            self._do(step, place, team, show and team.rank == 0, tell)
                            self._wait([step])
            found = [self.done(name) for name in self.steps]
        assert all(found)
        return [one for one in found if one is not None]

    def _do(self, step: Step, device: str, team: ProcessGroup, show: bool, tell: Callable[[str], None]) -> None:
        if self.done(step.name) is not None:
            return
        main = not step.together or team.rank == 0
        folder = self.folder(step.name)
        folder.mkdir(parents=True, exist_ok=True)
        needs = {name: self.done(name) for name in step.needs}
        if missing := [name for name, one in needs.items() if one is None]:
            raise DataError(f"{self.root}: the result of the step {missing[0]!r} is gone")
        if main:
            tell(f"{step.name} …")
        before = float(read_json(folder / BEGUN)["seconds"]) if (folder / BEGUN).exists() else 0.0
        start = time.perf_counter()
        try:
            with contextlib.nullcontext() if step.together else _unaccompanied():
                result = step.make(StepContext(folder, {k: v for k, v in needs.items() if v is not None}, device, show))
        except BaseException:
            if main:  # so that the cost of a step that was stopped is known; a kill loses this part of it
                spent = before + time.perf_counter() - start
                with contextlib.suppress(OSError):
                    write_atomically(folder / BEGUN, json.dumps({"seconds": spent}).encode())
            raise
        seconds = before + time.perf_counter() - start
        if not main:
            return
        content = {
            "kind": _KIND,
            "name": step.name,
            "key": self.key(step.name),
            "settings": step.settings,
            "needs": {name: self.key(name) for name in step.needs},
            "data": {name: self.data(name) for name in step.data},
            "versions": {"occfast": __version__, "torch": torch.__version__},
            "seconds": seconds,
            "device": describe(device),
            "processes": team.size if step.together else 1,
            "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
            "result": result,
        }
        write_atomically(folder / DONE, (json.dumps(content, indent=1) + "\n").encode())
        (folder / BEGUN).unlink(missing_ok=True)
        tell(f"{step.name}: {_brief(result)}{seconds:.1f} s")

    def _wait(self, steps: Sequence[Step]) -> None:
        """Until they are done, by whichever process: torchrun ends all if one fails."""
        pause = 0.05
        while any(not (self.folder(step.name) / DONE).exists() for step in steps):
            time.sleep(pause)
            pause = min(5.0, 1.5 * pause)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of ``torchrun``, or this one alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of_torchrun(cls) -> ProcessGroup:
        """From the environment that it sets."""
        return cls(
            *(int(os.environ.get(name, alone)) for name, alone in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        )

    def device(self, asked: str) -> str:
        """What this process computes on."""
        from .. import checks

        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        if asked == "cuda":
            asked = f"cuda:{self.local_rank}"
        return str(checks.device(asked))

    def share(self, steps: Sequence[Step]) -> list[Step]:
        """Which of these steps are this process': the longest first, each to whoever has least to do."""
        load = [0.0] * self.size
        mine = []
        for step in sorted(steps, key=lambda step: -step.work.flops / step.work.speedup):
            rank = load.index(min(load))
            load[rank] += step.work.flops / step.work.speedup
            if rank == self.rank:
                mine.append(step)
        return mine


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"output: another run is at work in {root}; wait for it or choose another folder"
            ) from error
        yield


@contextlib.contextmanager
def _unaccompanied() -> Iterator[None]:
    """Without what torchrun sets: a step that one process does must not wait for the others if it trains something."""
    names = [n for n in os.environ if n.endswith(("RANK", "WORLD_SIZE")) or n.startswith(("MASTER_", "TORCHELASTIC_"))]
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)


def _brief(result: Mapping[str, Any]) -> str:
    text = result.get("brief")
    return f"{text}, " if isinstance(text, str) and text else ""


def describe(device: str) -> str:
    """What a device is, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() != 1 else ''}"


def fingerprint(faces: FaceDataset) -> str:
    """What tells a data set from another: its names, people, landmarks and alignment, and the pixels of its images.

    Of more than 512 images, 512 evenly spread ones are read; an image replaced among the others is not seen.
    """
    digest = hashlib.sha256()
    alignment = None if faces.alignment is None else faces.alignment.as_dict()
    digest.update(json.dumps([list(faces.names), list(faces.people), alignment]).encode())
    digest.update(faces.labels.contiguous().numpy().tobytes())
    if faces.landmarks is not None:
        digest.update(faces.landmarks.double().contiguous().numpy().tobytes())
    count = min(len(faces), _HASHED)
    for k in torch.linspace(0, len(faces) - 1, count, dtype=torch.float64).round().long().tolist():
        digest.update(faces[k].image.contiguous().numpy().tobytes())
    return digest.hexdigest()


# -- prediction ------------------------------------------------------------------------------------------
