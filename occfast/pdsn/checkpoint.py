"""Files of tensors and plain values: written atomically, read without running any code in them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError
from ..files import write_atomically


def write(path: str | os.PathLike[str], kind: str, content: dict[str, Any]) -> Path:
    """Tensors, numbers, strings, lists and dicts under a name of the kind of file."""
    buffer = io.BytesIO()
    torch.save({"kind": kind, **content}, buffer)
    return write_atomically(path, buffer.getvalue())


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """What :func:`write` wrote, on the CPU; DataError if it is damaged or of another kind."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever damaged bytes provoke
        raise DataError(f"{path}: damaged or not a file of {kind} ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise DataError(f"{path}: not a file of {kind}")
    return content


def resume(path: Path, kind: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A checkpoint of these settings, None if there is no file; ValueError if it is of others: it says which."""
    if not path.exists():
        return None
    content = read(path, kind)
    mine, theirs = json.loads(json.dumps(settings)), json.loads(content["settings"])
    different = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if different:
        raise ValueError(
            f"checkpoint: {str(path)!r} is of another training ({', '.join(different)} differ); "
            "delete it or name another"
        )
    return content
