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


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file atomically.  Raises OSError where the disk is full; an old file is then kept."""
    from safetensors.torch import save

    # clone: safetensors refuses tensors that share memory, as tied weights do.
    dense = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return write_atomically(path, save(dense, metadata))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, cut off, or something else.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from error


def save_checkpoint(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
    """Write a run's state: see :meth:`occfast.train.engine.Engine.state`."""
    return write_tensors(path, tensors, {"kind": _KIND, "values": json.dumps(values)})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_checkpoint` wrote.  Raises as :func:`read_tensors`."""
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != _KIND:
        raise DataError(f"{path}: not a checkpoint of a training run")
    try:
        values: dict[str, Any] = json.loads(metadata["values"])
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: not a whole checkpoint ({error})") from error
    return tensors, values


def read_state_dict(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata of a ``.safetensors`` file, or the weights of a ``.pt`` or ``.pth`` file.

    Of the latter nothing but tensors and plain containers is unpickled.  A prefix ``module.`` that all names have
    (DataParallel) is taken off, and a state dict inside another dict (``state_dict``, ``model`` or arcface_torch's
    ``state_dict_backbone``) is found.

    Raises:
        FileNotFoundError, DataError: as :func:`read_tensors`.
    """
    metadata: dict[str, str] = {}
    if Path(path).suffix == ".safetensors":
        state, metadata = read_tensors(path)
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
    return state, metadata
