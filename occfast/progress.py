"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with (done, total or None).
Report = Callable[[int, "int | None"], None]
#: What :func:`progress` yields: it takes a note to show beside that, too.
Shown = Callable[..., None]
_LINE_EVERY = 30.0  # seconds between lines where there is no terminal


@contextmanager
def progress(title: str, unit: str, show: bool | Report) -> Iterator[Shown]:
    """Yields a function to call with (done, total or None) and, where there is one, a short note; ``show`` False hides it, a function replaces it.

    On a terminal: a bar with the rate (``unit`` a second) and the time left, on the standard error.
    """
    if callable(show):
        yield lambda done, total, note="": show(done, total)
    elif not show:
        yield lambda done, total, note="": None
    elif sys.stderr.isatty():
        with _bar(title, unit) as report:
            yield report
    else:
        yield _lines(title, unit)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Shown]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        task = bars.add_task(title, total=None, rate="", note="")
        started, first = time.perf_counter(), [-1]

        def report(done: int, total: int | None, note: str = "") -> None:
            if first[0] < 0:
                first[0] = done  # a resumed sweep did that much before
            elapsed = time.perf_counter() - started
            rate = f"{(done - first[0]) / elapsed:,.0f} {unit}/s" if elapsed > 0.5 else ""
            bars.update(task, completed=done, total=total, rate=rate, note=note)

        yield report


def _lines(title: str, unit: str) -> Shown:
    started = last = time.perf_counter()
    first = -1

    def report(done: int, total: int | None, note: str = "") -> None:
        nonlocal last, first
        if first < 0:
            first = done
        now = time.perf_counter()
        if now - last < _LINE_EVERY:
            return
        last = now
        rate = (done - first) / (now - started)
        left = f", {(total - done) / rate:,.0f} s left" if total and rate > 0 else ""
        share = f" of {total:,}" if total else ""
        beside = f", {note}" if note else ""
        print(f"{title}: {done:,}{share} {unit}, {rate:,.0f}/s{left}{beside}", file=sys.stderr, flush=True)

    return report
