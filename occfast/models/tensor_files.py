"""Files of tensors: weights, checkpoints, and the state dicts of other programs.

Ours are safetensors archives: tensors by name, and everything else as JSON in the metadata. They hold no pickle and
are never left half written.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..errors import DataError
from ..files import write_atomically

#: Keys under which files of other programs nest a state dict.
_CONTAINERS = (
    "state_dict_backbone",
    "state_dict",
    "model_state_dict",
    "net_state_dict",
    "model",
    "net",
    "network",
    "backbone",
)
#: Prefixes that wrappers put before all names: DataParallel and torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")


class HoldsObjects(DataError):
    """A pickle holds other objects than tensors and plain containers."""


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], about: dict[str, Any]) -> Path:
    """Write a safetensors file atomically.

    Args:
        path: File to write; an old file is kept if writing fails.
        tensors: Tensors by name; they may share memory.
        about: JSON values, stored under "occfast" in the metadata, together with the version of occfast.

    Raises:
        OSError: If the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save

    # clone: safetensors refuses tensors that share memory, as tied weights do.
    dense = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in any order, and equal content should be equal files.
    metadata = {"occfast": json.dumps({"version": __version__, **about}, sort_keys=True)}
    return write_atomically(path, save(dense, metadata))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file.

    Returns:
        Its tensors, and what :func:`write_tensors` stored about them; {} for files of other programs.

    Raises:
        FileNotFoundError: If the file does not exist.
        DataError: If it is damaged, cut off or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, _about(file.metadata())  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: {_damage(Path(path), error)}") from error


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_tensors` stored about the tensors, without the tensors; raises as :func:`read_tensors`."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            return _about(file.metadata())
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: {_damage(Path(path), error)}") from error


def _about(metadata: dict[str, str] | None) -> dict[str, Any]:
    return dict(json.loads((metadata or {}).get("occfast", "{}")))


def _damage(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        first = file.read(4)
    if path.suffix == ".onnx" or first[:2] == b"\x08\x03":
        other = "ONNX"
    elif first == b"PK\x03\x04":
        other = "a PyTorch file, .pt or .pth"
    elif first[:1] == b"\x80":
        other = "a pickle"
    else:
        return f"not a whole .safetensors file ({error})"
    return f"not a .safetensors file (this looks like {other})"


def check_kinds(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
    """Refuse weights whose numbers are of another kind than a network's, which ``load_state_dict`` casts in silence.

    Any precision of floating point is taken. Complex numbers would lose their imaginary part, and integers are
    quantized: without their scale they mean other weights.

    Args:
        own: The network's ``state_dict``.
        given: Weights by name; other names than those of ``own``, and what is no tensor, are left to the caller.

    Raises:
        ValueError: naming the first such weight.
    """
    for name, tensor in own.items():
        other = given.get(name)
        if isinstance(other, Tensor) and _kind(other) != _kind(tensor):
            expected, got = (str(t.dtype).removeprefix("torch.") for t in (tensor, other))
            raise ValueError(f"{name} has dtype {got}, expected {expected}")


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "float"
    return "bool" if tensor.dtype == torch.bool else "int"


def may_be_pickle(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as those of ``torch.save`` and pickle."""
    with Path(path).open("rb") as file:
        first = file.read(4)
    return first == b"PK\x03\x04" or first[:1] == b"\x80"


def _innermost(content: Any, source: str) -> dict[str, Tensor]:
    """Return the state dict inside what a file holds."""
    while isinstance(content, dict) and not _is_state_dict(content):
        known = [content[key] for key in _CONTAINERS if isinstance(content.get(key), dict)]
        names = [key for key, value in content.items() if isinstance(value, dict) and _is_state_dict(value)]
        if not known and len(names) > 1:
            raise DataError(
                f"{source}: expected one state dict, got several: {', '.join(map(str, names))[:200]}; save the wanted "
                "one alone"
            )
        if not known and not names:
            shown = ", ".join(map(str, content))[:200] or "nothing"
            raise DataError(f"{source}: expected a state dict: names and tensors, got {shown}")
        content = known[0] if known else content[names[0]]
    if not isinstance(content, dict):
        raise DataError(f"{source}: expected a state dict: names and tensors, got {type(content).__name__}")
    return content


def _is_state_dict(value: dict[Any, Any]) -> bool:
    return bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights in a ``.safetensors``, ``.pt`` or ``.pth`` file.

    Only tensors and plain containers are unpickled from the last two. A state dict inside other dictionaries is found
    under ``state_dict``, ``model``, ``net_state_dict``, ``backbone``, arcface_torch's ``state_dict_backbone`` and
    similar keys, and under any other key if it is the only one. The prefixes of DataParallel (``module.``) and
    torch.compile (``_orig_mod.``) are removed if all names have them; :func:`~occfast.models.load_into` removes others
    that the network does not have.

    Raises:
        FileNotFoundError, DataError: As :func:`read_tensors`.
    """
    if Path(path).suffix == ".safetensors":
        state, _ = read_tensors(path)
    else:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {os.fspath(path)}")
        if Path(path).suffix == ".onnx":
            raise DataError(f"{path}: not a file of weights (this looks like ONNX)")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what a damaged archive provokes is not one kind
            if isinstance(error, pickle.UnpicklingError) and (other := re.search(r"GLOBAL (\S+)", str(error))):
                raise HoldsObjects(f"{path}: not a file of weights (it holds a Python object, {other[1]})") from error
            if not may_be_pickle(path):
                raise DataError(f"{path}: not a file of weights (neither an archive of PyTorch nor a pickle)") from None
            raise DataError(f"{path}: not a file of weights ({' '.join(str(error).split())[:200]})") from error
        state = dict(_innermost(content, str(path)))
    while prefix := next((p for p in _WRAPPERS if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
