"""Full disks, read-only folders, and two writers of one output."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .commands import half_written, listing
from .kills import LONGEST, Reference

SIZE = 2 << 20
#: Bytes that are free on the small disk when a command starts.
FREE = (0, 4 << 10, 24 << 10, 64 << 10, 160 << 10, 400 << 10)


def own_mounts() -> bool:
    """Give this process its own table of mounts; return whether it may mount small disks in it."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    new_mounts = 0x00020000
    if ctypes.CDLL(None, use_errno=True).unshare(new_mounts) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Mount a disk of 2 MiB."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(place: Path, free: int) -> Path:
    """Write a file that leaves so many bytes free, in pages of 4 KiB."""
    filler = place / "filler"
    with filler.open("wb") as file:
        state = os.statvfs(place)
        file.write(bytes(max(0, state.f_bavail * state.f_frsize - free)))
    return filler


def _one_line(said: str) -> bool:
    """Whether the output is free of tracebacks and says in its last line what happened."""
    lines = said.strip().splitlines()
    return "Traceback" not in said and bool(lines) and lines[-1].startswith("occfast: ")


def full(reference: Reference, number: int, chance: random.Random, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a command on a disk that fills up, then give it space and resume it."""
    mounted = own_mounts()
    name, findings, refused = reference.command.name, [], 0
    for k in range(number):
        free = FREE[k] if k < len(FREE) else chance.randrange(0, SIZE // 2)
        place = reference.work / "disk" / f"{name.replace(' ', '-')}-{k}"
        with small_disk(place) if mounted else contextlib.nullcontext():
            folder = place / "out"
            folder.mkdir(parents=True)
            filler = _fill(place, free) if mounted else None
            limit = contextlib.nullcontext() if mounted else _largest_file(max(free, 4 << 10))
            with limit:
                child = reference.start(folder, "disk", resume=False)
            status = child.wait(LONGEST)
            where = f"{free} bytes free"
            if status is None:
                child.kill(group=True)
                findings.append(f"{where}: no end")
                continue
            refused += status != 0
            if status != 0 and not _one_line(child.said()):
                findings.append(f"{where}: status {status}: {child.said()[-400:]}")
            findings += [f"{where}: {what}" for what in half_written(folder, reference.command.family)]
            if filler is not None:
                filler.unlink()
            child = reference.start(folder, "disk", resume=status != 0)
            if status != 0 and child.wait(LONGEST) != 0:
                findings.append(f"{where}: not resumed: {child.said()[-400:]}")
                continue
            child.wait(LONGEST)
            if (what := reference.difference(folder)) is not None:
                findings.append(f"{where}: {what}")
            findings += [f"{where}: litter {path}" for path in sorted(listing(folder) - reference.files)]
    for finding in findings:
        say(f"{name}, full disk: {finding}")
    how = "tmpfs of 2 MiB" if mounted else "RLIMIT_FSIZE"
    return {"command": name, "disks": number, "how": how, "refused": refused, "findings": findings}


@contextlib.contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let children write no larger file: a full disk for those who may not mount one."""
    handler, before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def read_only(reference: Reference, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a command whose output can't be written: it must say so at once, in one line."""
    name, findings = reference.command.name, []
    place = reference.work / "read-only" / name.replace(" ", "-")
    mounted = own_mounts()
    if not mounted and os.geteuid() == 0:
        return {"command": name, "folders": 0, "how": "not possible", "findings": []}
    with small_disk(place) if mounted else contextlib.nullcontext():
        folder = place / "out"
        folder.mkdir(parents=True)
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        else:
            folder.chmod(0o555)
        started = time.monotonic()
        child = reference.start(folder, "read-only", resume=False)
        status = child.wait(LONGEST)
        seconds = time.monotonic() - started
        if status not in (1, 2) or not _one_line(child.said()):
            findings.append(f"status {status}: {child.said()[-400:]}")
        if listing(folder):
            findings.append(f"files: {sorted(listing(folder))}")
        if not mounted:
            folder.chmod(0o755)
    for finding in findings:
        say(f"{name}, read-only folder: {finding}")
    how = "tmpfs mounted read-only" if mounted else "permissions"
    share = round(seconds / reference.seconds, 2)
    return {"command": name, "folders": 1, "how": how, "share_of_a_run": share, "findings": findings}


def two_writers(reference: Reference, times: int, chance: random.Random, say: Callable[[str], None]) -> dict[str, Any]:
    """Start a command twice in one output: each is refused in one line or ends well, and the results are whole."""
    name, findings, refused = reference.command.name, [], 0
    for k in range(times):
        folder = reference.work / "writers" / f"{name.replace(' ', '-')}-{k}"
        folder.mkdir(parents=True)
        first = reference.start(folder, "first", resume=False)
        first.wait(chance.uniform(0.0, 0.7) * reference.seconds)
        second = reference.start(folder, "second", resume=bool(reference.command.resume))
        statuses = [child.wait(LONGEST) for child in (first, second)]
        for child, status in zip((first, second), statuses, strict=True):
            if status != 0 and not (status == 2 and _one_line(child.said())):
                findings.append(f"status {status}: {child.said()[-400:]}")
        refused += statuses.count(2)
        if 0 not in statuses:
            findings.append(f"both were refused: {first.said()[-200:]} {second.said()[-200:]}")
            continue
        if (what := reference.difference(folder)) is not None:
            findings.append(what)
        findings += [f"litter {path}" for path in sorted(listing(folder) - reference.files)]
    for finding in findings:
        say(f"{name}, two writers: {finding}")
    return {"command": name, "pairs": times, "refused": refused, "findings": findings}
