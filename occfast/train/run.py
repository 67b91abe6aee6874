"""Folder of a run: its files, its lock, and checks before it is resumed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from .. import files
from ..errors import ProcessLost
from .checkpoint import load_checkpoint
from .log import SCORES, STEPS, VALIDATIONS
from .page import PAGE
from .recipe import Recipe, load

CHECKPOINT, BEST, LAST, RECIPE = "checkpoint.safetensors", "best.safetensors", "last.safetensors", "recipe.yaml"
SPLIT = "split.csv"
_HEADS = ("best-head.safetensors", "last-head.safetensors")
_LOCK = ".lock"
#: Keys that may differ when a run is resumed: where and how it runs, not its result.
_FREE = {
    "device": None,
    "data": ("root", "in_memory", "memory", "workers"),
    "validation": ("sets",),  # their names may not; pairs and images are compared with the checkpoint's
    "batch": ("accumulate",),
    "log": ("every", "tensorboard", "checkpoint"),
}


def claim(
    recipe: Recipe, output: Path, resume: bool, overwrite: bool
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Check the folder of a run, and return the state to resume from, or None for a new run.

    Raises:
        ValueError: If the folder holds a run and is neither to be resumed nor overwritten, or if the recipe differs.
        DataError: If the checkpoint is damaged.
    """
    if resume and overwrite:
        raise ValueError("overwrite: expected False together with resume=True, got True")
    path = output / CHECKPOINT
    if not resume:
        if not overwrite and (path.exists() or (output / RECIPE).exists()):
            raise ValueError(
                f"output: {output} holds a run already; continue it (--resume), replace it (--overwrite), or choose "
                "another folder"
            )
        return None
    if (output / RECIPE).exists():
        _check_recipe(recipe, load(output / RECIPE, trust=True), output)  # compared, not run
    return load_checkpoint(path) if path.exists() else None


def clear(output: Path) -> None:
    """Delete the files of an earlier run; other files stay."""
    names = [CHECKPOINT, BEST, LAST, RECIPE, SPLIT, STEPS, VALIDATIONS, SCORES, PAGE, *_HEADS]
    for path in [*(output / name for name in names), *output.glob("not-finite-*.txt")]:
        files.remove(path)
    shutil.rmtree(output / "tensorboard", ignore_errors=True)


def _check_recipe(recipe: Recipe, before: Recipe, output: Path) -> None:
    mine, theirs = asdict(recipe), asdict(before)
    names = [[part.title for part in each.sets] for each in (before, recipe)]
    for name, value in mine.items():
        free = _FREE.get(name, ())
        if free is None:
            continue
        old = theirs[name]
        if name == "validation":
            old, value = old | {"names of sets": names[0]}, value | {"names of sets": names[1]}
        pairs = {name: (old, value)}
        if isinstance(value, dict):
            pairs = {f"{name}.{key}": (old.get(key), value.get(key)) for key in {**old, **value} if key not in free}
        for key, (was, now) in pairs.items():
            if key == "epochs" and now > was and _extensible(recipe):
                continue
            if was != now:
                why = ""
                if key == "epochs":
                    why = " (it can only grow)"
                    if not _extensible(recipe):
                        why = (
                            " (the learning rate of every step depends on it, unless optimizer.schedule=constant and "
                            "optimizer.warmup=0)"
                        )
                advice = f"start a new run from its weights with start={output / LAST}"
                if before.start == recipe.start is not None and not Path(recipe.start).exists():
                    advice = f"{recipe.start}, which states it, is gone, continue with the recipe {output / RECIPE}"
                raise ValueError(
                    f"{key}: the run in {output} used {was!r}, which can't be changed{why}, got {now!r}; {advice}"
                )


def _extensible(recipe: Recipe) -> bool:
    """Return whether the steps of a run do not depend on the number of its epochs, so that more can follow."""
    return recipe.optimizer.schedule == "constant" and recipe.optimizer.warmup == 0


def locked(output: Path) -> contextlib.AbstractContextManager[files.Lock]:
    """Hold the lock of a folder, so that no second run writes into it; the system releases it if the process dies.

    Raises:
        ValueError: If another process holds it; the message names the process.
    """

    def busy(holder: str) -> Exception:
        return ValueError(f"output: {holder} is training in {output}; wait for it or choose another folder")

    return files.locked(output / _LOCK, busy)


@contextlib.contextmanager
def other_processes() -> Iterator[None]:
    """Turn the communication errors of a group of processes into ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        text = " ".join(str(error).split())
        known = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
        lost = isinstance(error, getattr(dist, "DistError", ())) or any(word in text for word in known)
        if size == 1 or isinstance(error, ProcessLost) or not lost:
            raise
        rank = os.environ.get("RANK", "?")
        raise ProcessLost(
            f"process {rank} of {size} lost another one ({text[:200]}); --resume continues from the last checkpoint, "
            "on any number of processes"
        ) from error
