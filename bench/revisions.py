"""``python -m bench.revisions BASE``: the speed of this checkout relative to another revision of the project.

    python -m bench.revisions v0.1                     # a tag, branch or commit
    python -m bench.revisions main -k occluder         # the rows of `python -m bench` that pytest's -k selects
    python -m bench.revisions main --parts sweep --pairs 20

Two processes, one for each revision, hold the same row and take turns, in the order A B B A: a machine whose speed
drifts slows down both. The rows are those of ``python -m bench``, and the exact sweep of ``bench.sweep`` with all
optimizations. Rows of peers and of plain PyTorch run the same code in both and show the noise.

``speed`` is the geometric mean over the pairs of the base's time divided by this checkout's (above 1: faster now), with
a 95 % interval from the pairs. Both revisions run with the packages of this environment.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from bench.harness import RESULTS, ROOT, caption, environment, write

DRIVER = Path(__file__).with_name("revision_driver.py")
PARTS = ["rows", "sweep"]
DEFAULT = "occfast and not dense or plain_pytorch and 8"


class Process:
    """Process of one revision, which offers its rows one after another and times calls when it is told to."""

    def __init__(self, tree: Path, select: str, parts: list[str]) -> None:
        ours, theirs = socket.socketpair()
        arguments = [sys.executable, "-P", str(DRIVER), str(theirs.fileno()), select, *parts]
        self.process = subprocess.Popen(
            arguments,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self._channel = ours.makefile("rw")

    def ask(self, word: str) -> Any:
        """Send one word and return the answer, or None if the process has no further row."""
        self._channel.write(word + "\n")
        self._channel.flush()
        return self.answer()

    def answer(self) -> Any:
        """Wait for the next answer: a row's name or seconds, or None at the end."""
        line = self._channel.readline()
        if not line and self.process.wait() != 0:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} failed")  # type: ignore[arg-type]
        return json.loads(line) if line else None


def checkout(revision: str, folder: Path) -> Path:
    """Clone the project into ``folder`` at ``revision`` and return its tree."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "-q", "--detach", revision], check=True)
    return folder


def commit(tree: Path) -> str:
    """Return the commit of a tree, with "+" if files differ from it."""
    run = ["git", "-C", str(tree)]
    name = subprocess.run([*run, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run([*run, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")


def row(name: str, base: list[float], here: list[float]) -> dict[str, Any]:
    """Summarize one row from the seconds of each pair."""
    logs = np.log(np.asarray(base) / np.asarray(here))
    half = float(student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5)
    middle = float(logs.mean())
    return {
        "row": name,
        "speed": round(float(np.exp(middle)), 3),
        "interval": [round(float(np.exp(middle - half)), 3), round(float(np.exp(middle + half)), 3)],
        "pairs": len(base),
        "base_seconds": statistics.median(base),
        "seconds": statistics.median(here),
    }


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{caption(result)}. Base {result['base']}, this checkout {result['here']}.",
        "",
        "| row | pairs | base | now | speed now / base |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for r in result["rows"]:
        low, high = r["interval"]
        lines.append(
            f"| {r['row']} | {r['pairs']} | {r['base_seconds'] * 1e3:.3f} ms | {r['seconds'] * 1e3:.3f} ms "
            f"| {r['speed']:.2f} [{low:.2f}, {high:.2f}] |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.revisions", description=__doc__.splitlines()[0])
    parser.add_argument("base", help="revision to compare with: a commit, tag or branch")
    parser.add_argument("-k", default=DEFAULT, help=f"rows of python -m bench, as in pytest (default: {DEFAULT!r})")
    parser.add_argument("--pairs", type=int, default=10, help="pairs of calls of each row (default: 10)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: both")
    parser.add_argument("--output", type=Path, default=RESULTS / "revisions.json")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error(f"--pairs must be at least 2, not {options.pairs}")
    with tempfile.TemporaryDirectory(prefix="occfast-base-") as folder:
        tree = checkout(options.base, Path(folder) / "base")
        rows: list[dict[str, Any]] = []
        result = {**environment(), "base": commit(tree), "here": commit(ROOT), "rows": rows}
        base, here = (Process(t, options.k, options.parts) for t in (tree, ROOT))
        offers = base.answer(), here.answer()
        while None not in offers:
            if offers[0] != offers[1]:
                raise SystemExit(f"the revisions' rows differ: {offers[0]!r} and {offers[1]!r}; select others with -k")
            times: dict[Process, list[float]] = {base: [], here: []}
            for pair in range(options.pairs):
                for process in (base, here) if pair % 2 == 0 else (here, base):
                    times[process].append(process.ask("time"))
            rows.append(row(offers[0], times[base], times[here]))
            low, high = rows[-1]["interval"]
            print(f"{offers[0]:<64} {rows[-1]['speed']:5.2f} [{low:.2f}, {high:.2f}]", flush=True)
            write(options.output, result, markdown(result))
            offers = base.ask("next"), here.ask("next")
        if offers != (None, None):
            raise SystemExit(f"only one revision has the row {offers[0] or offers[1]!r}; select others with -k")
    print(f"speed: seconds of {result['base']} / seconds of {result['here']}; written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
