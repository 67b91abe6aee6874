"""Mutated files for every parser, in one process each: errors that no page documents, hangs, memory, crashes."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import mutate, outcome
from tests.fuzz.parsers import Target

CPU_SECONDS = 1.0  # for one file
MEMORY = 200 << 20  # above what the process had before
#: Events of Python that no parser may cause, besides opening a file to write.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.mkdir", "os.remove")
_ADDRESSES = 6 << 30  # a bound for what would end the machine
_EVERY = 500  # files between two looks at the memory
_MOST = 100_000  # bytes of a file


class _Hang(BaseException):
    """A file took too long; no handler of Exception catches it."""


def fuzz(
    name: str, target: Target, inputs: int, until: float, seed: int, keep: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Give a parser so many mutated files, or as many as fit until a time of ``time.monotonic``.

    A child process does the work; when it dies, the file that it was reading is kept and the next child goes on.
    """
    keep.mkdir(parents=True, exist_ok=True)
    shared = mmap.mmap(-1, _MOST + 64)
    done, findings, outcomes, slowest, peak, cpu, part = 0, [], 0, 0.0, 0, 0.0, 0
    while done < inputs and len(findings) < 8 and (part == 0 or time.monotonic() < until):
        part += 1
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(read)
                result = _child(target, inputs - done, until, f"{seed} {name} {part}", shared)
                os.write(write, repr(result).encode())
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        count, length = struct.unpack("<QQ", shared[:16])
        content = shared[16 : 16 + length]
        if answer and status == 0:
            found: dict[str, Any] = eval(answer, {"inf": float("inf")})
            done += found["inputs"]
            outcomes, slowest = max(outcomes, found["outcomes"]), max(slowest, found["slowest"])
            peak, cpu = max(peak, found["peak"]), cpu + found["cpu"]
            if found["finding"] is None:
                continue
            kind = found["finding"]
            content = found["content"]
        else:
            done += count
            kind = f"the process ended with {status}"
        path = keep / f"{re.sub('[^a-z]+', '-', name)}-{len(findings)}"
        path.write_bytes(content)
        findings.append({"what": kind[-1500:], "file": path.name, "bytes": len(content)})
        say(f"{name}: FOUND {path}: {kind[-1500:]}")
    rate = round(done / cpu) if cpu else 0
    say(
        f"{name}: {done:,} files, {outcomes} outcomes, {rate:,} a CPU second, slowest {slowest:.2f} s, "
        f"{peak >> 20} MiB, {len(findings)} findings"
    )
    return {
        "parser": name,
        "inputs": done,
        "wanted": inputs,
        "outcomes": outcomes,
        "inputs_per_cpu_second": rate,
        "slowest_cpu_seconds": round(slowest, 3),
        "peak_mib": peak >> 20,
        "findings": findings,
    }


def _child(target: Target, inputs: int, until: float, seed: str, shared: mmap.mmap) -> dict[str, Any]:
    chance = random.Random(seed)
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    work = Path(tempfile.mkdtemp(prefix="occfast-torture-", dir=place))
    try:
        return _run(target, inputs, until, chance, shared, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(
    target: Target, inputs: int, until: float, chance: random.Random, shared: mmap.mmap, work: Path
) -> dict[str, Any]:
    inside = False

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if not inside:
            return
        if event in FORBIDDEN or (event == "open" and "w" in str(arguments[1]) and str(work) not in str(arguments[0])):
            raise RuntimeError(f"forbidden: {event} {arguments}")

    def late(*_: object) -> None:
        raise _Hang

    shared[:16] = bytes(16)
    warnings.simplefilter("ignore")
    for content in target.seeds:  # imports what it imports, before the limits
        with contextlib.suppress(*target.errors):
            target.parse(content, work)
    sys.addaudithook(watch)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESSES, used + _ADDRESSES))
    signal.signal(signal.SIGPROF, late)
    signal.signal(signal.SIGALRM, late)
    base, peak = _high_water(reset=True), 0
    corpus, seen, recent = list(target.seeds), set[str](), []
    result: dict[str, Any] = {"finding": None, "content": b"", "slowest": 0.0}
    begun = time.process_time()
    count = 0
    while count < inputs and result["finding"] is None and (count % 64 or time.monotonic() < until):
        content = target.mutate(chance, chance.choice(corpus), corpus, mutate)[:_MOST]
        count += 1
        shared[:16] = struct.pack("<QQ", count, len(content))
        shared[16 : 16 + len(content)] = content
        recent.append(content)
        started = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, 60)
            try:
                inside = True
                target.parse(content, work)
                ended = outcome(None)
            except target.errors as error:
                ended = outcome(error)
            finally:
                inside = False
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _Hang:
            result |= {"finding": f"more than {CPU_SECONDS} s of the processor", "content": content}
            continue
        except BaseException:
            result |= {"finding": traceback.format_exc(), "content": content}
            continue
        result["slowest"] = max(result["slowest"], time.process_time() - started)
        if ended not in seen and len(corpus) < 300:
            seen.add(ended)
            corpus.append(content)
        if count % _EVERY == 0:
            used = _high_water(reset=True) - base
            peak = max(peak, used)
            if used > MEMORY:
                greedy = _greediest(target, recent, work)
                if greedy is not None:
                    result |= {"finding": f"{greedy[0] >> 20} MiB of memory", "content": greedy[1]}
            recent.clear()
    peak = max(peak, _high_water() - base)
    return {**result, "inputs": count, "outcomes": len(seen), "peak": peak, "cpu": time.process_time() - begun}


def _greediest(target: Target, contents: list[bytes], work: Path) -> tuple[int, bytes] | None:
    """Return the memory and the file that takes more than the limit by itself, or None."""
    worst = (0, b"")
    for content in contents:
        base = _resident()
        _high_water(reset=True)
        with contextlib.suppress(*target.errors):
            target.parse(content, work)
        worst = max(worst, (_high_water() - base, content))
    return worst if worst[0] > MEMORY else None


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _high_water(*, reset: bool = False) -> int:
    """Return the largest resident size so far, in bytes; then begin anew from the present one."""
    text = Path("/proc/self/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert match is not None
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return int(match[1]) << 10
