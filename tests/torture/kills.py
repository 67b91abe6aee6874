"""SIGKILL at random moments; each run is resumed until it is done and compared with an uninterrupted one."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .commands import Command, half_written, listing
from .processes import Child

LONGEST = 600.0  # seconds of one start


@dataclass
class Tally:
    """What kills of a command led to.

    Attributes:
        command: Name of the command.
        seconds: Time of an uninterrupted run, and ``operations`` its number of file operations.
        kills: SIGKILLs that hit a running command: ``at_operations`` just before a file operation, the others at
            random times; ``whole_group`` with all programs that it had started.
        runs: Runs that were killed at least once and resumed to their end.
        differences: Runs whose results differ from the uninterrupted ones.
        losses: Runs that could not be resumed.
        half_written: Files under a final name that were not whole after a kill.
        litter: Files that an uninterrupted run does not leave.
        findings: Descriptions of all of these.
    """

    command: str
    seconds: float = 0.0
    operations: int = 0
    kills: int = 0
    at_operations: int = 0
    whole_group: int = 0
    runs: int = 0
    differences: int = 0
    losses: int = 0
    half_written: int = 0
    litter: int = 0
    findings: list[str] = field(default_factory=list)

    def found(self, kind: str, what: str) -> None:
        """Count a finding and describe it."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.findings.append(f"{kind}: {what}"[:600])


class Reference:
    """An uninterrupted run."""

    def __init__(self, command: Command, work: Path) -> None:
        self.command, self.work = command, work
        self.folder = work / "whole" / command.name.replace(" ", "-")
        self.folder.mkdir(parents=True)
        started = time.monotonic()
        child = Child(command.words(self.folder, resume=False), work, self.folder, self.log("whole"), self.environment)
        status = child.wait(LONGEST)
        self.seconds = time.monotonic() - started
        if status != 0:
            raise RuntimeError(f"{command.name}: the uninterrupted run ended with {status}: {child.said()[-3000:]}")
        self.operations, self.files = child.operations(), listing(self.folder)

    @property
    def environment(self) -> dict[str, str]:
        return self.command.environment

    def log(self, name: str) -> Path:
        return self.work / f"{self.command.name.replace(' ', '-')}-{name}.log"

    def start(self, folder: Path, name: str, *, resume: bool, at: int | None = None) -> Child:
        """Start the command for another output folder."""
        words = self.command.words(folder, resume=resume)
        return Child(words, self.work, folder, self.log(name), self.environment, at)

    def difference(self, folder: Path) -> str | None:
        """Return how the results in a folder differ, or None."""
        try:
            self.command.compare(folder, self.folder)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None


def attack(
    reference: Reference,
    wanted: int,
    chance: random.Random,
    say: Callable[[str], None],
    until: float,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Kill a command ``wanted`` times, or until the time is up; return the tally."""
    command = reference.command
    tally = Tally(command.name, round(reference.seconds, 2), reference.operations)
    number = 0
    while tally.kills < wanted and time.monotonic() < until:
        number += 1
        folder = reference.work / "killed" / f"{command.name.replace(' ', '-')}-{number}"
        folder.mkdir(parents=True)
        before = len(tally.findings)
        _one(reference, folder, min(wanted - tally.kills, chance.randint(1, command.most)), chance, tally)
        if len(tally.findings) > before:
            say(f"{command.name}: {tally.findings[-1]}")
            if keep is not None:
                shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    say(
        f"{command.name}: {tally.kills} kills in {tally.runs} runs, {tally.differences} differences, {tally.losses} "
        f"losses, {tally.half_written} half-written files, {tally.litter} files of litter"
    )
    return asdict(tally)


def _one(reference: Reference, folder: Path, planned: int, chance: random.Random, tally: Tally) -> None:
    """Kill one run ``planned`` times, or as often as it can be hit, resume it to its end, and compare."""
    command, kills, missed, left = reference.command, 0, 0, []
    while True:
        resume = kills > 0
        trying = kills < planned and missed < 4
        at = chance.randint(1, max(2, reference.operations)) if trying and chance.random() < 0.6 else None
        child = reference.start(folder, "killed", resume=resume, at=at)
        if trying and at is None:
            # Towards the end of a resumed run there is less to hit.
            child.wait(chance.uniform(0.0, reference.seconds) * chance.choice((1.0, 0.3)))
            group = command.family == "build" and chance.random() < 0.5
            if child.poll() is None:
                child.kill(group=group)
                tally.whole_group += group
                left.append(child)
        status = child.wait(LONGEST)
        if status == -9:
            kills += 1
            tally.kills += 1
            tally.at_operations += at is not None
            for what in half_written(folder, command.family):
                tally.found("half_written", f"after kill {kills} ({'operation ' + str(at) if at else 'time'}): {what}")
            continue
        if status is None:
            child.kill(group=True)
            return tally.found("losses", f"no end within {LONGEST:.0f} s after {kills} kills")
        if status != 0:
            return tally.found("losses", f"status {status} after {kills} kills: {child.said()[-400:]}")
        if trying:  # it ended before the moment that was chosen
            missed += 1
            if kills == 0 and missed < 4:
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                continue
        break
    for child in left:  # compilers that outlived their parent
        child.kill(group=True)
    tally.runs += kills > 0
    if (what := reference.difference(folder)) is not None:
        tally.found("differences", f"after {kills} kills: {what}")
    for path in sorted(listing(folder) - reference.files):
        tally.found("litter", f"after {kills} kills: {path}")
    for path in sorted(reference.files - listing(folder)):
        tally.found("differences", f"after {kills} kills: {path} is missing")
