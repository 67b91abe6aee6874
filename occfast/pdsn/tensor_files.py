"""Files of tensors and plain values, written atomically and read without running code from them."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError
from ..files import write_atomically


def write(path: str | os.PathLike[str], kind: str, content: dict[str, Any]) -> Path:
    """Write tensors, numbers, strings, lists and dicts.

    Args:
        path: The file.
        kind: Name of the kind of file, checked by :func:`read`.
        content: Values by name.
    """
    buffer = io.BytesIO()
    torch.save({"kind": kind, **content}, buffer)
    return write_atomically(path, buffer.getvalue())


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Read a file written by :func:`write`, to the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file is damaged or of another kind.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise DataError(f"{path}: expected a regular file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes provoke many kinds of errors
        raise DataError(f"{path}: damaged or not a file of {kind} ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise DataError(f"{path}: not a file of {kind}")
    return content


def read_checkpoint(path: Path, kind: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Read the checkpoint of a training with these settings.

    Returns:
        The content, or None if there is no file.

    Raises:
        DataError: The file is damaged or of another kind.
        ValueError: It is the checkpoint of a training with other settings; the message names them.
    """
    if not path.exists():
        return None
    content = read(path, kind)
    try:
        mine, theirs = json.loads(json.dumps(settings)), dict(json.loads(content["settings"]))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a whole checkpoint ({error})") from error
    different = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if different:
        raise ValueError(
            f"checkpoint: {str(path)!r} is of another training, which differs in {', '.join(different)}; "
            "pass resume=False to start anew, or another path"
        )
    return content


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise DataError where the content of a checkpoint is not what was written."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DataError(f"{os.fspath(path)}: not a whole checkpoint ({reason})") from error
