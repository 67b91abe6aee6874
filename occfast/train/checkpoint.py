"""Checkpoints of training runs: files of tensors with the values of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import DataError
from ..models.tensor_files import read_tensors, write_tensors

_KIND = "occfast.checkpoint"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
    """Write the state of a run; see :meth:`occfast.train.engine.Engine.state`."""
    return write_tensors(path, tensors, {"kind": _KIND, **values})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote; raises as :func:`~occfast.models.tensor_files.read_tensors`."""
    tensors, values = read_tensors(path)
    if values.pop("kind", None) != _KIND:
        raise DataError(f"{path}: not a checkpoint of a training run")
    values.pop("version", None)
    return tensors, values
