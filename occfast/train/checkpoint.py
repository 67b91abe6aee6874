"""A run's state in one file that is never left half written, and holds no pickle.

The file is a safetensors archive: every tensor under its name, everything else as JSON in its metadata.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..files import write_atomically

_KIND = "occfast.checkpoint"


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], about: dict[str, Any]) -> Path:
    """Write a safetensors file atomically, with ``about`` as JSON under "occfast" in its metadata.

    Raises OSError where the disk is full; an old file is then kept.
    """
    from safetensors.torch import save

    # clone: safetensors refuses tensors that share memory, as tied weights do.
    dense = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in any order, and equal content should be equal files.
    return write_atomically(path, save(dense, {"occfast": json.dumps(about, sort_keys=True)}))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a safetensors file, and what :func:`write_tensors` noted about them; {} for another's file.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, cut off, or something else.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("occfast", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, dict(about)  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from error


def save_checkpoint(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
    """Write a run's state: see :meth:`occfast.train.engine.Engine.state`."""
    return write_tensors(path, tensors, {"kind": _KIND, **values})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_checkpoint` wrote.  Raises as :func:`read_tensors`."""
    tensors, values = read_tensors(path)
    if values.pop("kind", None) != _KIND:
        raise DataError(f"{path}: not a checkpoint of a training run")
    return tensors, values


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a ``.safetensors``, ``.pt`` or ``.pth`` file.

    Of the last two nothing but tensors and plain containers is unpickled.  A prefix ``module.`` that all names have
    (DataParallel) is taken off, and a state dict inside another dict (``state_dict``, ``model`` or arcface_torch's
    ``state_dict_backbone``) is found.

    Raises:
        FileNotFoundError, DataError: as :func:`read_tensors`.
    """
    if Path(path).suffix == ".safetensors":
        state, _ = read_tensors(path)
    else:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {os.fspath(path)}")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what a damaged archive provokes is not one kind
            raise DataError(f"{path}: not a file of weights ({' '.join(str(error).split())[:200]})") from error
        for key in ("state_dict_backbone", "state_dict", "model"):
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
        if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
            raise DataError(f"{path}: expected a state dict: names and tensors")
        state = dict(content)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state
