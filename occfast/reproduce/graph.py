"""An experiment as a graph of steps, each of which runs once.

A finished step is a folder named by a hash of everything that its result depends on: its settings, the steps that it
needs, the data, the versions. A run that was stopped or killed therefore continues at the step at hand (and within it,
if the step keeps checkpoints), and a run with other settings repeats only the steps that they affect.

With several processes (``torchrun``, or any launcher that sets its environment variables) each process runs the graph:
steps that train run in all of them together, the others are divided among them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..data import FaceDataset
from ..errors import DataError, ProcessLost
from ..files import read_json, remove, write_atomically
from ..progress import Report as Progress
from .processes import Heartbeat, ProcessGroup

DONE, BEGUN = "done.json", "begun.json"
_KIND = "occfast.step"
#: Up to this many images of a data set are hashed; of a larger one, this many evenly spaced ones.
_HASHED = 512


@dataclass(frozen=True)
class Work:
    """The expected cost of a step, known before anything runs.

    Attributes:
        flops: floating-point operations (a multiplication and an addition count as two) of plain dense computation.
        images: number of training images, occluder positions or embedded images.
        kind: "train", "sweep", "embed", or "other", whose time is not predicted.
        disk: size of the step's files in bytes.
        speedup: known speed relative to dense forward passes (sweeps).
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
        name: name of the step.
        folder: folder with its files.
        result: its result, as read from JSON.
        seconds: time that it took, summed over interrupted attempts.
        device: device that it ran on, in words.
        processes: number of processes that it ran on.
        finished: date and time in ISO 8601.
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
    """The folder, inputs and device of a running step.

    Attributes:
        folder: the step's own folder; files of an interrupted attempt are still there.
        needs: the finished steps that it needs, by name.
        device: "cpu" or "cuda:N".
        progress: whether to show progress.
    """

    folder: Path
    needs: Mapping[str, Done]
    device: str
    progress: bool


@dataclass(frozen=True)
class Step:
    """One step of a graph.

    Attributes:
        name: unique in its graph.
        make: does the work in the step's folder and returns a result that JSON can hold. An entry "brief" is shown
            when the step is done.
        settings: everything else that the result depends on; JSON must be able to hold it.
        needs: names of the steps that must be finished first.
        data: names of the data sets that it reads.
        together: whether all processes run it together (training); otherwise one process does.
        work: expected cost.
    """

    name: str
    make: Callable[[StepContext], dict[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    together: bool = False
    work: Work = field(default_factory=Work)


class Graph:
    """Steps, each listed after the steps that it needs.

    Args:
        steps: steps with different names.
        root: folder that holds the folders of the steps.
        fingerprints: for each data set that a step names, a function that returns its :func:`fingerprint`.

    Raises:
        ValueError: if two steps share a name, or a step needs one that is not listed before it.
    """

    def __init__(self, steps: Iterable[Step], root: Path, fingerprints: Mapping[str, Callable[[], str]]) -> None:
        self.steps: dict[str, Step] = {}
        for step in steps:
            if step.name in self.steps:
                raise ValueError(f"steps: two are named {step.name!r}")
            if missing := [name for name in step.needs if name not in self.steps]:
                raise ValueError(f"steps: {step.name!r} needs {missing[0]!r}, which is not listed before it")
            self.steps[step.name] = step
        self.root = root.resolve()  # recipes hold paths of other steps' files; the working directory may change
        self._fingerprints, self._known = dict(fingerprints), dict[str, str]()
        self._keys: dict[str, str] = {}

    def only(self, targets: Iterable[str]) -> Graph:
        """Return a graph of the named steps and everything that they need."""
        wanted = set(targets)
        if unknown := wanted - self.steps.keys():
            raise ValueError(f"steps: there is no step {sorted(unknown)[0]!r}")
        for name in reversed(list(self.steps)):
            if name in wanted:
                wanted.update(self.steps[name].needs)
        return Graph((step for name, step in self.steps.items() if name in wanted), self.root, self._fingerprints)

    def spread(self) -> Graph:
        """Return a graph of the same steps, each run by one process: several at once instead of one on all."""
        steps = (replace(step, together=False) for step in self.steps.values())
        return Graph(steps, self.root, self._fingerprints)

    def data(self, name: str) -> str:
        """Return the fingerprint of a data set; it is computed once."""
        if name not in self._known:
            self._known[name] = self._fingerprints[name]()
        return self._known[name]

    def key(self, name: str) -> str:
        """Return the hash of everything that a step depends on: 64 hexadecimal digits."""
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
        """Return the folder of a step."""
        return self.root / f"{_readable(name)}-{self.key(name)[:12]}"

    def done(self, name: str) -> Done | None:
        """Read the result of a step; None if it is not finished. Raises DataError if its file is damaged."""
        path = self.folder(name) / DONE
        if not path.exists():
            return None
        content = read_json(path)
        try:
            if content["kind"] != _KIND or content["key"] != self.key(name):
                raise DataError(f"{path}: not the result of the step {name!r}; delete its folder to repeat the step")
            return Done(
                name,
                path.parent,
                content["result"],
                float(content["seconds"]),
                content["device"],
                int(content["processes"]),
                content["finished"],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: incomplete result ({error}); delete its folder to repeat the step") from error

    def levels(self) -> list[list[Step]]:
        """Group the steps so that no step needs another one of its group."""
        depth: dict[str, int] = {}
        for name, step in self.steps.items():
            depth[name] = 1 + max((depth[other] for other in step.needs), default=-1)
        return [[self.steps[n] for n in depth if depth[n] == k] for k in range(max(depth.values(), default=-1) + 1)]

    # -- unfinished work -------------------------------------------------------------------------------

    def unfinished(self) -> list[str]:
        """List the steps that an earlier run of these settings began and did not finish."""
        if not self.root.is_dir():
            return []
        folders = {name: self.folder(name) for name in self.steps}
        return [name for name, folder in folders.items() if folder.is_dir() and not (folder / DONE).exists()]

    def outdated(self) -> list[Path]:
        """List unfinished folders of these steps that other versions of occfast or PyTorch began."""
        names = {_readable(name): name for name in self.steps}
        found = []
        for folder in sorted(self.root.glob("*-" + "[0-9a-f]" * 12)) if self.root.is_dir() else []:
            name = names.get(folder.name[:-13])
            if name is None or folder == self.folder(name) or (folder / DONE).exists():
                continue
            begun = read_json(folder / BEGUN) if (folder / BEGUN).exists() else {}
            if begun.get("versions") != _versions():
                found.append(folder)
        return found

    def forget(self) -> None:
        """Delete the folders of all steps, finished or not, and those of :meth:`outdated`."""
        for folder in [*map(self.folder, self.steps), *self.outdated()]:
            shutil.rmtree(folder, ignore_errors=True)

    # -- running ---------------------------------------------------------------------------------------

    def run(self, device: str = "auto", *, progress: bool | Progress = True, resume: bool | None = True) -> list[Done]:
        """Run all steps that are not finished and return the results of all steps, in order.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:N"; with several processes each takes the GPU of its own number.
            progress: True shows a line for each step and progress within steps on the standard error; a function
                is called with (finished steps, all steps) instead; False shows nothing.
            resume: True continues unfinished steps and keeps finished ones; False deletes the folders of all these
                steps first; None keeps finished steps and raises an error if there are unfinished ones.

        Raises:
            ValueError: if another run works in the same folder; if unfinished steps of another version lie there, or
                unfinished steps at all and ``resume`` is None.
            ProcessLost: if another process of the run failed or died.
        """
        group = ProcessGroup.from_environment()
        place = group.device(device)
        if place.startswith("cuda"):
            torch.cuda.set_device(torch.device(place))
        with _alone(self.root, group.rank), Heartbeat(self.root, group) as heartbeat:
            if group.rank == 0:
                self._check_unfinished(resume)
            heartbeat.meet()
            run = _Run(self, group, heartbeat, place, progress)
            if group.size == 1:  # keeps the order of the list, which a reader follows
                for step in self.steps.values():
                    run.step(step)
            else:
                for level in self.levels():
                    alone = [step for step in level if not step.together]
                    for step in group.share(alone):
                        run.step(step)
                    run.wait(alone)  # otherwise idle processes would time out in the first exchange of gradients
                    for step in level:
                        if step.together:
                            run.step(step)
                            run.wait([step])
            found = [self.done(name) for name in self.steps]
        assert all(found)
        return [one for one in found if one is not None]

    def _check_unfinished(self, resume: bool | None) -> None:
        if resume is False:
            self.forget()
        elif outdated := self.outdated():
            raise ValueError(
                f"output: {outdated[0]} was begun by another version of occfast or PyTorch and can't be resumed; "
                "overwrite it (--overwrite), or choose another output"
            )
        elif resume is None and (unfinished := self.unfinished()):
            raise ValueError(
                f"output: {self.root} holds an unfinished run, stopped in the step {unfinished[0]!r}; continue it "
                "(--resume) or start anew (--overwrite)"
            )


@dataclass
class _Run:
    """One call of :meth:`Graph.run`."""

    graph: Graph
    group: ProcessGroup
    heartbeat: Heartbeat
    device: str
    progress: bool | Progress

    def step(self, step: Step) -> None:
        """Run a step unless it is finished."""
        graph, main = self.graph, not step.together or self.group.rank == 0
        folder = graph.folder(step.name)
        if graph.done(step.name) is not None:
            if main:
                remove(folder / BEGUN)  # a kill just after the result
            self.report()
            return
        if step.together:
            self.heartbeat.meet()  # joining a process group would wait for a dead process for half an hour
        folder.mkdir(parents=True, exist_ok=True)
        needs = {name: done for name in step.needs if (done := graph.done(name)) is not None}
        if missing := [name for name in step.needs if name not in needs]:
            raise DataError(f"{graph.root}: the result of the step {missing[0]!r} is gone")
        before = _seconds(folder / BEGUN)
        if main:
            self.say(f"{step.name} …")
            _begin(folder, before)
        start = time.perf_counter()
        shown = self.progress is True and main
        try:
            with self.heartbeat.watching() if step.together else _unaccompanied():
                result = step.make(StepContext(folder, needs, self.device, shown))
        except BaseException as error:
            if main:  # the cost of an interrupted attempt counts; a kill loses this part of it
                with contextlib.suppress(OSError):
                    _begin(folder, before + time.perf_counter() - start)
            if step.together and isinstance(error, RuntimeError):
                self.heartbeat.check()  # a lost process rather than its traceback
            raise
        if not main:
            return
        seconds = before + time.perf_counter() - start
        content = {
            "kind": _KIND,
            "name": step.name,
            "key": graph.key(step.name),
            "settings": step.settings,
            "needs": {name: graph.key(name) for name in step.needs},
            "data": {name: graph.data(name) for name in step.data},
            "versions": _versions(),
            "seconds": seconds,
            "device": describe(self.device),
            "processes": self.group.size if step.together else 1,
            "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
            "result": result,
        }
        write_atomically(folder / DONE, (json.dumps(content, indent=1) + "\n").encode())
        remove(folder / BEGUN)
        self.say(f"{step.name}: {_brief(result)}{seconds:.1f} s")
        self.report()

    def wait(self, steps: Sequence[Step]) -> None:
        """Wait until these steps are finished, by whichever process. Raises ProcessLost if that can't happen."""
        pause = 0.05
        while True:
            last = self.heartbeat.alone  # asked before looking: a process finishes after its steps
            waiting = [step.name for step in steps if not (self.graph.folder(step.name) / DONE).exists()]
            if not waiting:
                return
            self.heartbeat.check()
            if last:
                raise ProcessLost(f"all other processes ended without {waiting[0]!r}; start all with one command")
            time.sleep(pause)
            pause = min(2.0, 1.5 * pause)

    def say(self, text: str) -> None:
        if self.progress is True:
            print(text, file=sys.stderr, flush=True)

    def report(self) -> None:
        if callable(self.progress):
            finished = sum((self.graph.folder(name) / DONE).exists() for name in self.graph.steps)
            self.progress(finished, len(self.graph.steps))


def _begin(folder: Path, seconds: float) -> None:
    content = {"seconds": seconds, "versions": _versions()}
    write_atomically(folder / BEGUN, json.dumps(content).encode())


def _seconds(path: Path) -> float:
    """Return the time of interrupted attempts at a step."""
    before = read_json(path).get("seconds", 0.0) if path.exists() else 0.0
    if isinstance(before, bool) or not isinstance(before, int | float):
        raise DataError(f"{path}: expected seconds, got {before!r:.80}; delete its folder to repeat the step")
    return float(before)


def _versions() -> dict[str, str]:
    return {"occfast": __version__, "torch": torch.__version__}


def _readable(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


@contextlib.contextmanager
def _alone(root: Path, rank: int) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / (".lock" if rank == 0 else f".lock-{rank}")).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"output: another run is using {root}; wait for it or choose another output") from error
        yield


@contextlib.contextmanager
def _unaccompanied() -> Iterator[None]:
    """Hide the variables of ``torchrun``: training within a step of one process must not wait for the others."""
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
    """Return a device in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() != 1 else ''}"


def fingerprint(faces: FaceDataset) -> str:
    """Hash a data set: its names, people, landmarks and alignment, and the pixels of its images.

    Of more than 512 images only 512, evenly spaced, are read; a change of the pixels of others is not noticed.
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
