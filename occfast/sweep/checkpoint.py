"""The state of an unfinished sweep on disk."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import DataError
from ..files import read_npz, write_npz

_KIND = "occfast.sweep.checkpoint"


@dataclass
class SweepState:
    """All that a sweep has earned so far.

    ``seen`` images were taken from the source in finished blocks; ``partial`` holds the scores of the
    block under way, of which the first ``next`` positions, in the order of the sweep, are done. ``tally`` counts what
    a method counts, ``samples`` are the scores that an estimate is made from.
    """

    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    image_sum: NDArray[np.float64]
    per_image: list[NDArray[Any]] = field(default_factory=list)
    partial: NDArray[np.float64] | None = None
    next: int = 0
    seen: int = 0
    used: int = 0
    skipped: int = 0
    seconds: float = 0.0
    batch_size: int = 0
    layout: str = ""
    method: str = ""
    digest: str = ""
    keep_per_image: bool = True
    tally: dict[str, float] = field(default_factory=dict)
    samples: list[NDArray[Any]] = field(default_factory=list)


_COUNTS = (
    "next",
    "seen",
    "used",
    "skipped",
    "seconds",
    "batch_size",
    "layout",
    "method",
    "digest",
    "keep_per_image",
    "tally",
)


def fingerprint(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a sweep to be resumed: the settings and the network's weights."""
    digest = hashlib.sha256()
    if isinstance(model, nn.Module):
        for name, tensor in model.state_dict().items():
            if isinstance(tensor, torch.Tensor):
                plain = tensor.detach().cpu().contiguous()
                digest.update(f"{name}{plain.dtype}{list(plain.shape)}".encode())
                digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return {**settings, "weights": digest.hexdigest()[:16], "torch": torch.__version__}


class Checkpoint:
    """One file that holds a :class:`SweepState`; ``stamp`` says whose it is."""

    def __init__(self, path: Path, every: float = 30.0, *, resume: bool = True) -> None:
        self.path, self.resume = path, resume
        self.every = every  # seconds
        self.stamp: dict[str, Any] = {}
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.every

    def save(self, state: SweepState) -> None:
        """Write atomically. A full disk costs the checkpoint, never the sweep: it is a warning."""
        self._last = time.monotonic()
        content: dict[str, Any] = {
            "kind": _KIND,
            "stamp": json.dumps(self.stamp),
            "counts": json.dumps({name: getattr(state, name) for name in _COUNTS}),
            "total": state.total,
            "squares": state.squares,
            "image_sum": state.image_sum,
        }
        if state.partial is not None:
            content["partial"] = state.partial
        if state.per_image:
            content["per_image"] = np.concatenate(state.per_image)
        if state.samples:
            content["samples"] = np.concatenate(state.samples)
        try:
            write_npz(self.path, **content)
        except OSError as error:
            warnings.warn(f"checkpoint: {error}; the sweep goes on", RuntimeWarning, stacklevel=2)

    def load(self) -> SweepState | None:
        """The state that was saved, None if there is no file.

        Raises:
            DataError: If the file is damaged.
            ValueError: If it belongs to other settings or weights; the message names what differs.
        """
        path = self.path
        if not self.resume:
            return None
        try:
            content = read_npz(path)
        except FileNotFoundError:
            return None
        if str(content.get("kind", "")) != _KIND:
            raise DataError(f"{path}: not a checkpoint of a sweep")
        try:
            theirs = json.loads(str(content["stamp"]))
            counts = json.loads(str(content["counts"]))
            state = SweepState(
                total=content["total"],
                squares=content["squares"],
                image_sum=content["image_sum"],
                partial=content.get("partial"),
                per_image=[content["per_image"]] if "per_image" in content else [],
                samples=[content["samples"]] if "samples" in content else [],
                **{name: counts[name] for name in _COUNTS},
            )
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not a whole checkpoint ({error})") from error
        mine = json.loads(json.dumps(self.stamp))
        different = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if different:
            shown = ", ".join(f"{name} {theirs.get(name)!r} there and {mine.get(name)!r} here" for name in different)
            raise ValueError(f"checkpoint: {str(path)!r} is of another sweep: {shown}; delete it or name another")
        return state

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
