"""Lines of progress where there is no terminal."""

import itertools

import pytest

from occfast import progress as module


@pytest.mark.parametrize(
    ("seconds", "done", "unit", "said"),
    [
        (40.0, 1, "epochs", "training: 2 of 24 epochs, 40.0 s each, 880 s left"),
        (40.0, 9_000, "positions", "training: 9,001 of 90,000 positions, 225/s, 360 s left"),
        (12.0, 900, "positions", "training: 901 of 90,000 positions, 75/s, 1,188 s left"),
        (12.0, 12, "positions", "training: 13 of 90,000 positions, 1/s, 25 h 0 min left"),
    ],
)
def test_slow_rates_are_said_as_seconds_each(
    seconds: float, done: int, unit: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.chain([0.0, 0.0], itertools.repeat(seconds))  # started; the first report; a later one
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    with module.progress("training", unit, True) as report:
        report(1, 24 if done == 1 else 90_000)  # so much was done by a run before
        report(1 + done, 24 if done == 1 else 90_000)
    assert capsys.readouterr().err.strip() == said


def test_nothing_is_written_in_the_first_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with module.progress("training", "epochs", True) as report:
        report(0, 10)
        report(9, 10)
    assert capsys.readouterr().err == ""


def test_progress_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(module.sys.modules, "rich.console", None)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    clock = itertools.chain([0.0, 0.0], itertools.repeat(40.0))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    with module.progress("training", "epochs", True) as report:
        report(0, 10)
        report(5, 10)
    assert capsys.readouterr().err.startswith("training: 5 of 10 epochs")
