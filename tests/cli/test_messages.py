"""What every command says when it is interrupted, warns or can't write."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import pytest

from occfast import cli


def run(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Run the command line where a command ends with an error; return the exit status."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(130)])  # Typer turns the one into the other
def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    assert run(monkeypatch, error) == 130
    assert capsys.readouterr().err == "occfast: interrupted\n"


def test_errors_of_the_system_have_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, OSError(errno.EACCES, "Permission denied", "out/x")) == 2
    assert run(monkeypatch, OSError(errno.EROFS, "out/y could not be written: Read-only file system")) == 2
    assert run(monkeypatch, FileNotFoundError("there is no file z")) == 2
    assert capsys.readouterr().err == (
        "occfast: out/x: Permission denied\n"
        "occfast: out/y could not be written: Read-only file system\n"
        "occfast: there is no file z\n"
    )


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    from occfast.files import locked

    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"file/out: can't be written: Not a directory"),
        locked(tmp_path / "file" / "out" / ".lock", ValueError),
    ):
        pass


def test_warnings_are_one_line_without_code() -> None:
    own = str(Path(cli.__file__).parent / "map.py")
    assert cli._warning("odd\x1b", UserWarning, own, 3) == "occfast: warning: odd\\x1b\n"
    others = cli._warning("odd", FutureWarning, "/elsewhere/x.py", 3)
    assert others == warnings.formatwarning("odd", FutureWarning, "/elsewhere/x.py", 3)
