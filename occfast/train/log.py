"""Logs of a run: CSV files, score distributions and TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..files import write_atomically
from ..losses import TripletStats
from ..packages import require
from .engine import Engine, Step

STEPS, VALIDATIONS, SCORES = "steps.csv", "validations.csv", "scores.jsonl"


class Log:
    """Log files in the folder of a run.

    ``steps.csv`` holds means since the previous row, ``validations.csv`` the result of each validation, and
    ``scores.jsonl`` the score distributions (histograms of the distances of pairs of one person and of two) of each
    validation that computes features. TensorBoard's files hold all of them.

    Args:
        folder: Folder of the run.
        done: Number of steps with which a resumed run begins; rows of later steps are removed.
        tensorboard: Also write TensorBoard's files.

    Raises:
        MissingPackage: If TensorBoard is not installed.
        OSError: If the disk is full.
    """

    def __init__(self, folder: Path, done: int = 0, tensorboard: bool = True) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in (STEPS, VALIDATIONS):
            _keep_rows(folder / name, done)
        _keep_lines(folder / SCORES, done)
        self._board: Any = None
        if tensorboard:
            require("log.tensorboard=true", "tensorboard", extra="train")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else 0)

    def step(self, row: dict[str, float]) -> None:
        """Write a row of ``steps.csv``; ``row["step"]`` is the number of steps done."""
        self._row(STEPS, row, "train")

    def validation(self, row: dict[str, float], scores: TripletStats | None) -> None:
        """Write a row of ``validations.csv``, and score distributions if there are any."""
        if scores is not None:
            row = row | {"decidability": float(scores.pair_decidability)}
            line = {
                "step": row["step"],
                "edges": scores.histogram_edges.tolist(),
                "positive": scores.histogram_positive.tolist(),
                "negative": scores.histogram_negative.tolist(),
                "decidability": row["decidability"],
            }
            with (self.folder / SCORES).open("a") as file:
                file.write(json.dumps(line) + "\n")
        self._row(VALIDATIONS, row, "validation")
        if scores is not None:
            self.distributions(int(row["step"]), scores, "validation")

    def distributions(self, step: int, scores: TripletStats, tag: str) -> None:
        """Write score distributions for TensorBoard."""
        if self._board is None:
            return
        edges = scores.histogram_edges.tolist()
        for name, counts in (("same", scores.histogram_positive), ("different", scores.histogram_negative)):
            share = counts.double().cpu()
            middle = [(a + b) / 2 for a, b in pairwise(edges)]
            self._board.add_histogram_raw(
                f"{tag}/distance of {name} person",
                min=edges[0],
                max=edges[-1],
                num=int(share.sum()),
                sum=sum(float(n) * m for n, m in zip(share, middle, strict=True)),
                sum_squares=sum(float(n) * m * m for n, m in zip(share, middle, strict=True)),
                bucket_limits=edges[1:],
                bucket_counts=share.tolist(),
                global_step=step,
            )

    def _row(self, name: str, row: dict[str, float], tag: str) -> None:
        path = self.folder / name
        header = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if header:
                writer.writeheader()
            writer.writerow(row)
        if self._board is not None:
            for key, value in row.items():
                if key != "step":
                    self._board.add_scalar(f"{tag}/{key}", value, int(row["step"]))

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_rows(path: Path) -> list[dict[str, float]]:
    """Read the rows of ``steps.csv`` or ``validations.csv``; return none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _keep_rows(path: Path, done: int) -> None:
    """Remove what a run wrote after its last checkpoint, such as a line cut off by a kill."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        rows = [row for row in reader if len(row) == len(header) and float(row[0]) <= done]
    if not done:
        path.unlink()
        return
    out = io.StringIO(newline="")
    csv.writer(out).writerows([header, *rows])
    write_atomically(path, out.getvalue().encode())


def _keep_lines(path: Path, done: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n") and json.loads(line)["step"] <= done:
            kept.append(line)
    write_atomically(path, "".join(kept).encode()) if done else path.unlink()


class Meter:
    """Means since the last row, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, steps
        self.images, self.text, self.validation = 0, "", ""
        self._clock = time.perf_counter()

    def add(self, step: Step) -> None:
        """Add a step."""
        self.sums += torch.stack([step.loss.double(), step.right.double(), torch.ones_like(step.loss).double()])
        self.images += step.images

    def row(self, step: Step, engine: Engine) -> dict[str, float]:
        """Return means over all processes, and reset them."""
        sums = engine.accelerator.reduce(self.sums) if engine.world > 1 else self.sums
        loss, right, steps = sums.tolist()
        images, now = self.images * engine.world, time.perf_counter()
        row = {
            "step": float(step.number + 1),
            "epoch": float(step.epoch + 1),
            "loss": loss / steps,
            "accuracy": right / images,
            "learning_rate": step.learning_rate,
            "gradient_norm": float(step.gradient_norm),
            "images_per_s": images / (now - self._clock),
        }
        self.text = ", ".join(
            filter(None, (f"loss {row['loss']:.4f}", f"accuracy {100 * row['accuracy']:.1f} %", self.validation))
        )
        self.sums.zero_()
        self.images, self._clock = 0, now
        return row

    def state(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint."""
        return {"sums": self.sums.tolist(), "images": self.images}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self.images = int(state["images"])
