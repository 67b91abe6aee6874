"""Long fuzzing of every parser, outside the tests: ``python -m tests.fuzz --seconds 60``.

Files are mutated at random from small ones that are read; those that reach an outcome not seen before are kept and
mutated further. Each parser runs in a process of its own under limits of memory and of time for a file. Whatever is
not an error that the documentation names is a finding, as are starting a program, opening a file to write or a connection; its file is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from tests.fuzz.parsers import targets

MEMORY = 3 << 30  # of address space above what is there when it begins
SECONDS = 5  # for one file
NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 4095, 32767, 65535, 65536, 2**24, 2**29 - 1, 2**31 - 1, 2**32 - 1)
_VALUE = re.compile(r"""0x[0-9a-f]+|[0-9]+|b?'.*?'|b?".*?\"""")
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.mkdir", "os.remove")


def mutate(random: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to eight edits: bits, bytes, numbers, cuts, repeats, pieces of other files."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        at = random.randrange(len(out) + 1)
        kind = random.randrange(9)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = random.randrange(256)
        elif kind == 2:
            number = random.choice(NUMBERS)
            size = random.choice((1, 2, 4, 8))
            order = random.choice(("little", "big"))
            out[at : at + size] = (number % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
        elif kind == 3:
            del out[at : at + random.choice((1, 2, 4, 16, 200))]
        elif kind == 4:
            out[at:at] = random.randbytes(random.choice((1, 2, 4, 16)))
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            begin = random.randrange(len(out) + 1)
            out[at:at] = out[begin : begin + random.choice((1, 4, 32))] * random.choice((1, 2, 50))
        elif kind == 7:
            other = random.choice(others)
            begin = random.randrange(len(other) + 1)
            out[at:at] = other[begin : begin + random.choice((4, 32, 300))]
        else:
            out[at:at] = str(random.choice(NUMBERS)).encode() * random.choice((1, 1, 30))
    return bytes(out[:100_000])


def outcome(error: Exception | None) -> str:
    """Return the kind of an outcome: the message without its numbers, and its cause."""
    if error is None:
        return "read"
    return f"{type(error.__cause__).__name__} {_VALUE.sub('#', str(error))[-80:]}"


def fuzz(name: str, seconds: float, seed: int, folder: Path) -> int:
    """Fuzz one parser; returns the number of findings, whose files are kept in ``folder``."""
    target = targets()[name]
    chance = random.Random(seed)
    work = Path(tempfile.mkdtemp(prefix="occfast-fuzz-"))
    inside = False

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if not inside:
            return
        if event in FORBIDDEN or (event == "open" and "w" in str(arguments[1]) and str(work) not in str(arguments[0])):
            raise RuntimeError(f"forbidden: {event} {arguments}")

    for content in target.seeds:  # imports what it imports, before the limits and the watch
        with contextlib.suppress(*target.errors):
            target.parse(content, work)
    sys.addaudithook(watch)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    warnings.simplefilter("ignore")
    corpus, seen, findings, runs, slowest = list(target.seeds), set[str](), 0, 0, 0.0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        content = target.mutate(chance, chance.choice(corpus), corpus, mutate)
        runs += 1
        begun = time.monotonic()
        try:
            inside = True
            signal.alarm(SECONDS)
            try:
                target.parse(content, work)
                ended = outcome(None)
            except target.errors as error:
                ended = outcome(error)
            finally:
                signal.alarm(0)
                inside = False
        except BaseException:
            findings += 1
            path = folder / f"{name}-{seed}-{runs}"
            path.write_bytes(content)
            print(f"{name}: FOUND {path}\n{traceback.format_exc()}", flush=True)
            if findings > 5:
                break
            continue
        slowest = max(slowest, time.monotonic() - begun)
        if ended not in seen and len(corpus) < 500:
            seen.add(ended)
            corpus.append(content)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:10} {runs:8,} files, {len(seen):4} outcomes, slowest {slowest:.2f} s, peak {peak:,.0f} MiB, "
        f"{findings} findings",
        flush=True,
    )
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parsers", nargs="*", help=f"default: all of {', '.join(targets())}")
    parser.add_argument("--seconds", type=float, default=60, help="for each parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()), help="folder for files that are findings"
    )
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    bad = 0
    for name in options.parsers or targets():
        process = multiprocessing.get_context("fork").Process(
            target=lambda name=name: sys.exit(min(fuzz(name, options.seconds, options.seed, options.keep), 100))
        )
        process.start()
        process.join()
        if process.exitcode:
            bad += 1
            if process.exitcode < 0 or process.exitcode > 100:
                print(f"{name}: CRASH, exit status {process.exitcode}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
