"""Files of sweeps: the state of an unfinished one, and what it was made from."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DataError
from ..files import read_npz, remove, write_npz
from .evaluators.behavior import TOLERANCE
from .evaluators.incremental.evaluator import FUSED

_KIND = "occfast.sweep.checkpoint"
_LAYOUTS = ("", "contiguous", "channels_last", FUSED)
_OTHER = "delete it, name another file or pass resume=False"


@dataclass
class SweepState:
    """Results of a sweep so far.

    Attributes:
        total, squares: Sums over images of the scores and of their squares, float64 [targets * positions].
        image_sum: Sum of the images, float64 [C, H, W].
        per_image: Scores of each image, uint8 or float32 [n, targets * positions], in parts.
        indices: Numbers of the images used, int64 [n], in parts; None where an older version did not record them.
        partial: Scores of the block under way, float64 [occluders * targets * n, positions].
        next: Positions of that block, in the order of the sweep, that are done.
        seen: Images in finished blocks.
        used, skipped: Of those, images in the sums and misclassified images left out.
        seconds: Time spent so far.
        batch_size, layout, method: Choices of the scorer.
        digest: Hash of the images and labels so far.
        keep_per_image: Whether ``per_image`` is kept.
        tally: Counts of a method.
        further: (method, batch size, layout) for each occluder after the first.
        samples: Scores that "sampled" estimates from, in parts.
    """

    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    image_sum: NDArray[np.float64]
    per_image: list[NDArray[Any]] = field(default_factory=list)
    indices: list[NDArray[np.int64]] | None = field(default_factory=list)
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
    further: list[tuple[str, int, str]] = field(default_factory=list)
    samples: list[NDArray[Any]] = field(default_factory=list)

    def check(self, positions: int, targets: int, shape: list[int]) -> None:
        """Raise ValueError for a state that no sweep of so many positions and of images [C, H, W] can have."""
        table = targets * positions
        counts = (self.next, self.seen, self.used, self.skipped, self.batch_size)
        _expect(all(type(count) is int and count >= 0 for count in counts), "counts are not numbers of at least 0")
        _expect(self.used + self.skipped == self.seen, "used and skipped images are not those seen")
        _expect(type(self.seconds) in (int, float) and 0 <= self.seconds < float("inf"), "seconds are not a time")
        _expect(self.layout in _LAYOUTS, f"unknown layout {self.layout!r}")
        _expect(self.method in ("", "dense", "incremental"), f"unknown method {self.method!r}")
        _expect(isinstance(self.digest, str) and isinstance(self.keep_per_image, bool), "wrong types")
        _expect(isinstance(self.further, list), "choices for further occluders are not a list")
        for choice in self.further:
            _expect(isinstance(choice, (list, tuple)) and len(choice) == 3, "a further occluder has no three choices")
            _expect(choice[0] in ("", "dense", "incremental"), f"unknown method {choice[0]!r}")
            _expect(type(choice[1]) is int and choice[1] >= 0, "counts are not numbers of at least 0")
            _expect(choice[2] in _LAYOUTS, f"unknown layout {choice[2]!r}")
        numbers = isinstance(self.tally, dict) and all(type(value) in (int, float) for value in self.tally.values())
        _expect(numbers and np.isfinite(list(self.tally.values())).all(), "the tally is not made of numbers")
        arrays: list[tuple[Any, tuple[type, ...], list[int]]] = [
            (self.total, (np.float64,), [table]),
            (self.squares, (np.float64,), [table]),
            (self.image_sum, (np.float64,), shape),
            *((part, (np.uint8, np.float32), [self.used, table]) for part in self.per_image),
            *((part, (np.int64,), [self.used]) for part in self.indices or []),
            *((part, (np.uint8, np.float64), [len(part) if part.ndim else 0]) for part in self.samples),
        ]
        rows = 0
        if self.partial is not None:
            rows = len(self.partial) if self.partial.ndim else 0
            arrays.append((self.partial, (np.float64,), [rows, positions]))
        for array, dtypes, size in arrays:
            _expect(array.dtype in dtypes and list(array.shape) == size, f"an array is {array.dtype} {array.shape}")
            _expect(bool(np.isfinite(array).all()), "an array has NaN or infinity")
        _expect(self.next <= rows * positions and (self.partial is None or rows > 0), "positions exceed the block")


def _expect(condition: bool | np.bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


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


@dataclass(frozen=True)
class Fingerprint:
    """Origin of a sweep: it is continued, and a finished map is reused, only where this is the same.

    Attributes:
        settings: Arguments, weights and version of PyTorch, as JSON holds them.
        outputs: Outputs for a seeded image of noise, float64 [K]; None where two runs differ.
        images: Hash of the images and labels that a finished map is made of.
        seen: Number of these images, misclassified ones included.
        whole: Whether these are all images that there were.
    """

    settings: dict[str, Any]
    outputs: NDArray[np.float64] | None = None
    images: str = ""
    seen: int = 0
    whole: bool = True

    def about(self) -> dict[str, Any]:
        """Return all but the outputs, for JSON."""
        return {"settings": self.settings, "images": self.images, "seen": self.seen, "whole": self.whole}

    @classmethod
    def of(cls, about: dict[str, Any], outputs: NDArray[Any] | None) -> Fingerprint:
        """Return what :meth:`about` described. Raises KeyError, TypeError or ValueError for anything else."""
        made = cls(outputs=outputs, **{name: about[name] for name in ("settings", "images", "seen", "whole")})
        types = {"settings": dict, "images": str, "seen": int, "whole": bool}
        wrong = [name for name, kind in types.items() if type(getattr(made, name)) is not kind]
        if wrong or made.seen < 1 or (outputs is not None and outputs.dtype != np.float64):
            raise ValueError(f"the fingerprint has a wrong {wrong[0] if wrong else 'count or dtype'}")
        return made


def fingerprint(model: Callable[[Tensor], Tensor], settings: dict[str, Any], images: Tensor) -> Fingerprint:
    """Return what must be the same for a sweep to be resumed, but for the images themselves.

    Args:
        images: Some images; only their shape, dtype and device matter.
    """
    digest = hashlib.sha256()
    if isinstance(model, nn.Module):
        for name, tensor in model.state_dict().items():
            if isinstance(tensor, torch.Tensor):
                add_tensor(digest, name, tensor)
    stated = {**settings, "weights": digest.hexdigest()[:16], "torch": torch.__version__}
    probe = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(0))[None]
    return Fingerprint(json.loads(json.dumps(stated)), _outputs(model, probe.to(images.device, images.dtype)))


def add_tensor(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Add the name, the dtype, the shape and the numbers of a tensor to a digest."""
    plain = tensor.detach().cpu().contiguous()
    digest.update(f"{name}{plain.dtype}{list(plain.shape)}".encode())
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _outputs(model: Callable[[Tensor], Tensor], image: Tensor) -> NDArray[np.float64] | None:
    """Return the outputs for an image [1, C, H, W]; None if a sweep refuses them or two runs differ."""
    first, again = ([model(image.clone())] for _ in range(2))
    if not isinstance(first[0], Tensor) or not isinstance(again[0], Tensor):
        return None
    found, same = (outputs[0].detach().clone() for outputs in (first, again))
    if not found.is_floating_point() or not torch.equal(found, same) or not bool(found.isfinite().all()):
        return None
    return found.double().flatten().cpu().numpy()


def different_outputs(
    one: NDArray[np.float64] | None, other: NDArray[np.float64] | None, dtype: torch.dtype
) -> float | None:
    """Return by how much outputs differ relative to the largest, None where rounding explains it."""
    if one is None or other is None:
        return None
    if one.shape != other.shape:
        return float("inf")
    largest = float(np.abs(one).max(initial=0.0)) or 1.0
    found = float(np.abs(one - other).max(initial=0.0)) / largest
    return found if found > TOLERANCE.get(dtype, 1e-4) else None


class Checkpoint:
    """File of an unfinished sweep.

    Args:
        path: The file.
        every: Seconds between updates.
        resume: Whether to continue from what the file holds.
    """

    def __init__(self, path: Path, every: float = 30.0, *, resume: bool = True) -> None:
        self.path, self.resume = path, resume
        self.every = every
        self.origin = Fingerprint({})
        self._last = time.monotonic()
        self._mine: tuple[int, int] | None = None

    def due(self) -> bool:
        """Return whether the last update is long enough ago."""
        return time.monotonic() - self._last >= self.every

    def save(self, state: SweepState) -> None:
        """Write the state atomically. A full disk costs the checkpoint, never the sweep: it raises a warning."""
        self._last = time.monotonic()
        content: dict[str, Any] = {
            "kind": _KIND,
            "stamp": json.dumps(self.origin.settings),
            "counts": json.dumps({**{name: getattr(state, name) for name in _COUNTS}, "further": state.further}),
            "total": state.total,
            "squares": state.squares,
            "image_sum": state.image_sum,
        }
        if self.origin.outputs is not None:
            content["outputs"] = self.origin.outputs
        if state.partial is not None:
            content["partial"] = state.partial
        if state.indices is not None:
            content["indices"] = np.concatenate([np.zeros(0, np.int64), *state.indices])
        if state.per_image:
            content["per_image"] = np.concatenate(state.per_image)
        if state.samples:
            content["samples"] = np.concatenate(state.samples)
        try:
            write_npz(self.path, **content)
            self._mine = self._identity()
        except OSError as error:
            warnings.warn(f"checkpoint: {error}; the sweep continues", RuntimeWarning, stacklevel=2)

    def read(self) -> dict[str, NDArray[Any]] | None:
        """Return the content of the file: a checkpoint's or a map's. None if there is no file.

        Raises:
            DataError: The file is damaged or something else.
        """
        try:
            content = read_npz(self.path)
        except FileNotFoundError:
            return None
        if str(content.get("kind", "")) not in (_KIND, "occfast.OcclusionMap"):
            raise DataError(f"{self.path}: not a checkpoint of a sweep; delete it or name another file")
        return content

    def load(
        self, content: dict[str, NDArray[Any]], positions: int, targets: int, shape: list[int], dtype: torch.dtype
    ) -> SweepState:
        """Return the state that a checkpoint holds.

        Args:
            content: From :meth:`read`.
            positions, targets: Of each image in the resumed sweep.
            shape, dtype: Of its images, [C, H, W].

        Raises:
            DataError: The file is damaged.
            ValueError: It belongs to other settings, weights or outputs; the message names what differs.
        """
        try:
            theirs = json.loads(str(content["stamp"]))
            counts = json.loads(str(content["counts"]))
            state = SweepState(
                total=content["total"],
                squares=content["squares"],
                image_sum=content["image_sum"],
                partial=content.get("partial"),
                per_image=[content["per_image"]] if "per_image" in content else [],
                indices=[content["indices"]] if "indices" in content else None,
                samples=[content["samples"]] if "samples" in content else [],
                **{name: counts[name] for name in _COUNTS},
                further=counts.get("further", []),  # files of earlier versions have none
            )
            _expect(isinstance(theirs, dict), "the settings are not an object")
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(f"{self.path}: not a complete checkpoint ({_reason(error)})") from error
        self.require(Fingerprint(theirs, content.get("outputs")), dtype)
        try:
            state.check(positions, targets, shape)
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.path}: not a complete checkpoint ({_reason(error)})") from error
        self._mine = self._identity()
        return state

    def require(self, theirs: Fingerprint, dtype: torch.dtype) -> None:
        """Raise ValueError unless a fingerprint from the file is that of this sweep; the message names differences."""
        mine = self.origin.settings
        names = sorted(
            name for name in mine.keys() | theirs.settings.keys() if mine.get(name) != theirs.settings.get(name)
        )
        if names:
            shown = ", ".join(
                f"{name} {theirs.settings.get(name)!r} there and {mine.get(name)!r} here" for name in names
            )
            raise ValueError(f"checkpoint: {str(self.path)!r} is of another sweep: {shown}; {_OTHER}")
        is_module = mine.get("weights") != hashlib.sha256().hexdigest()[:16]
        if theirs.outputs is None and self.origin.outputs is not None and not is_module:
            raise ValueError(
                f"checkpoint: {str(self.path)!r} holds no outputs of its model, and a function has no weights to "
                f"compare (a version of occfast before 0.1.0 wrote it); {_OTHER}"
            )
        if theirs.outputs is not None and theirs.outputs.dtype != np.float64:
            raise DataError(f"{self.path}: not a complete checkpoint (outputs are {theirs.outputs.dtype})")
        difference = different_outputs(self.origin.outputs, theirs.outputs, dtype)
        if difference is not None:
            raise ValueError(
                f"checkpoint: {str(self.path)!r} is of another model: outputs for a test image differ by "
                f"{difference:.2g} of the largest; {_OTHER}"
            )

    def shared(self, count: int) -> list[CheckpointPart]:
        """Return parts for several maps: the file is deleted when all of them have been removed."""
        left = set(range(count))
        return [CheckpointPart(self, number, left) for number in range(count)]

    def remove(self) -> None:
        """Delete the file, unless it has been replaced by something else."""
        if self._mine is not None and self._identity() == self._mine:
            remove(self.path)

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


@dataclass
class CheckpointPart:
    """Share of one of several maps in a checkpoint."""

    whole: Checkpoint
    number: int
    left: set[int]

    def remove(self) -> None:
        """Delete the file if this is the last part."""
        self.left.discard(self.number)
        if not self.left:
            self.whole.remove()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
