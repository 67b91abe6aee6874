"""Progress of long work: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Function that is called with (done, total), total being None where it is not known.
Report = Callable[[int, "int | None"], None]
_FIRST_LINE = 10.0  # seconds until the first line where there is no terminal
_LINE_EVERY = 30.0  # seconds between further lines


def printable(text: str) -> str:
    """Return a text without characters that control a terminal, which names of files may hold.

    They are shown as in Python's ``repr``; so are those that UTF-8 can't hold. Line ends stay.
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Return a text as :func:`printable` does, with line ends shown as well: a name in a sentence, say."""
    return printable(text).replace("\n", "\\n")


@contextmanager
def progress(title: str, unit: str, show: bool | Report, note: Callable[[], str] | None = None) -> Iterator[Report]:
    """Report progress on the standard error: a bar with the rate and the time left on a terminal, else lines.

    Args:
        title: Name of the work.
        unit: Plural of what is counted, "positions" say.
        show: False hides it; a function replaces it.
        note: Function that returns more text to show, read at each update.

    Yields:
        A function to call with (done, total or None).
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
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    except ImportError:  # as where only PyTorch and NumPy are installed
        yield _lines(title, unit, note)
        return
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
                first[0] = done  # done by a run before, if this one was resumed
            elapsed = time.perf_counter() - started
            rate = _rate((done - first[0]) / elapsed, f" {unit}") if elapsed > 0.5 else ""
            text = ", ".join(filter(None, (note() if note else "", rate)))
            bars.update(task, completed=done, total=total, rate=text)

        yield report


def _rate(rate: float, unit: str = "") -> str:
    """Return a rate as text: seconds for each epoch, but positions for each second."""
    return f"{1 / rate:,.1f} s each" if 0 < rate < 1 else f"{rate:,.0f}{unit}/s"


def time_text(seconds: float) -> str:
    """Return a time as text: seconds up to an hour, then hours and minutes."""
    minutes = round(seconds / 60)
    return f"{seconds:,.0f} s" if seconds < 3600 else f"{minutes // 60:,} h {minutes % 60} min"


def _lines(title: str, unit: str, note: Callable[[], str] | None) -> Report:
    started = time.perf_counter()
    last = started - _LINE_EVERY + _FIRST_LINE
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
        left = f", {time_text((total - done) / rate)} left" if total and rate > 0 else ""
        share = f" of {total:,}" if total else ""
        beside = note() if note else ""
        text = f", {beside}" if beside else ""
        print(f"{title}: {done:,}{share} {unit}{text}, {_rate(rate)}{left}", file=sys.stderr, flush=True)

    return report
