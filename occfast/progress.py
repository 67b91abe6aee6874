"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with (done, total or None).
Report = Callable[[int, "int | None"], None]
_LINE_EVERY = 30.0  # seconds between lines where there is no terminal


@contextmanager
def progress(title: str, unit: str, show: bool | Report, note: Callable[[], str] | None = None) -> Iterator[Report]:
    """Yields a function to call with (done, total or None); ``show`` False hides it, a function replaces it.

    On a terminal: a bar with the rate (``unit`` a second) and the time left, on the standard error; and what ``note``
    returns, if there is one.
    """
    if callable(show):
        yield show
    elif not show:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(title, unit, note) as report:
            yield report
    else:
        yield _lines(title, unit, note)


@contextmanager
def _bar(title: str, unit: str, note: Callable[[], str] | None) -> Iterator[Report]:
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
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        task = bars.add_task(title, total=None, rate="")
        started, first = time.perf_counter(), [-1]

        def report(done: int, total: int | None) -> None:
            if first[0] < 0:
                first[0] = done  # a resumed sweep did that much before
            elapsed = time.perf_counter() - started
            rate = _rate((done - first[0]) / elapsed, f" {unit}") if elapsed > 0.5 else ""
            text = ", ".join(filter(None, (note() if note else "", rate)))
            bars.update(task, completed=done, total=total, rate=text)

        yield report


def _rate(rate: float, unit: str = "") -> str:
    """A rate in words: epochs take many seconds each, positions come by the hundred a second."""
    return f"{1 / rate:,.1f} s each" if 0 < rate < 1 else f"{rate:,.0f}{unit}/s"


def _lines(title: str, unit: str, note: Callable[[], str] | None) -> Report:
    started = last = time.perf_counter()
    first = -1

    def report(done: int, total: int | None) -> None:
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
        beside = note() if note else ""
        text = f", {beside}" if beside else ""
        print(f"{title}: {done:,}{share} {unit}{text}, {_rate(rate)}{left}", file=sys.stderr, flush=True)

    return report
