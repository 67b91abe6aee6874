"""Mask generators: networks that find the features corrupted by an occlusion (pdsn-landmarks, 3.2)."""

from __future__ import annotations

import json
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..errors import DataError
from ..files import remove
from ..models.tensor_files import check_kinds
from ..progress import Report
from ..progress import progress as show_progress
from . import tensor_files as files
from .base import Base, as_base, as_float, frozen
from .regions import Regions, paint

_KIND = "mask generators"
_CHECKPOINT = "unfinished mask generators"


class MaskGenerator(nn.Sequential):
    """Mask generator ``M = sigmoid(BN(PReLU(conv(|f(x) - f(x′)|))))``: [N, C, H, W] to masks of that shape in (0, 1).

    Args:
        channels: Number of channels C of the base's maps.
        kernel: Size of the convolution kernel, odd.
    """

    def __init__(self, channels: int, kernel: int = 3) -> None:
        if checks.integer(kernel, "kernel", 1) % 2 == 0:
            raise ValueError(f"kernel: expected an odd number, got {kernel}")
        super().__init__(
            OrderedDict(
                conv=nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False),
                prelu=nn.PReLU(channels),
                norm=nn.BatchNorm2d(channels),
                sigmoid=nn.Sigmoid(),
            )
        )


class Generators(nn.Module):
    """Mask generators, one for each region, each with its own batch-norm statistics.

    Args:
        regions: The regions.
        channels: Number of channels of the base's maps.
        kernel: Size of the convolution kernels, odd.
        base: Fingerprint of the base network.

    Attributes:
        regions: The regions.
        base: Fingerprint of the base network that they were trained with.
        history: One entry for each epoch, including those before a resumption.
    """

    def __init__(self, regions: Regions, channels: int, *, kernel: int = 3, base: str = "") -> None:
        super().__init__()
        self.regions, self.channels, self.kernel, self.base = regions, channels, kernel, base
        self.each = nn.ModuleList(MaskGenerator(channels, kernel) for _ in regions.names)
        self.history: list[GeneratorEpoch] = []

    def forward(self, difference: Tensor, region: Tensor) -> Tensor:
        """Compute the mask of each pair.

        Args:
            difference: ``|f(x) - f(x′)|``, float [N, C, H, W].
            region: Number of the region of each pair, int64 [N].

        Returns:
            Masks in (0, 1), float [N, C, H, W].
        """
        order = region.argsort(stable=True)
        counts = torch.bincount(region, minlength=len(self.each)).tolist()
        parts = difference[order].split(counts)
        masks = torch.cat([each(part) for each, part in zip(self.each, parts, strict=True) if len(part)])
        return masks[order.argsort()]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write weights, regions and the fingerprint of the base, atomically."""
        content = {
            "about": json.dumps(
                {
                    "channels": self.channels,
                    "kernel": self.kernel,
                    "base": self.base,
                    "history": [asdict(epoch) for epoch in self.history],
                }
            ),
            "regions": self.regions.to_json(),
            "state": self.state_dict(),
        }
        return files.write(path, _KIND, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Generators:
        """Read a file written by :meth:`save`, without running code from it.

        Raises:
            FileNotFoundError: There is no such file.
            DataError: The file is damaged or something else.
        """
        content = files.read(path, _KIND)
        try:
            about = json.loads(content["about"])
            regions = Regions.from_json(content["regions"], str(path))
            loaded = cls(regions, about["channels"], kernel=about["kernel"], base=about["base"])
            check_kinds(loaded.state_dict(), content["state"])
            loaded.load_state_dict(content["state"])
            loaded.history = [GeneratorEpoch(**epoch) for epoch in about["history"]]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DataError(f"{path}: damaged file of mask generators ({error})") from error
        return loaded.eval()


class PDSNLoss(NamedTuple):
    """Terms of the loss (Eq. 3), scalars: ``total`` = ``classification`` + λ ``difference``."""

    total: Tensor
    classification: Tensor
    difference: Tensor


def pdsn_loss(base: Base, masks: Tensor, clean: Tensor, covered: Tensor, labels: Tensor, weight: float) -> PDSNLoss:
    """Compute the loss of pairs of clean and occluded images under their masks (Eqs. 1 to 3).

    Args:
        base: Base network with a head.
        masks: Masks M, float [N, C, H, W].
        clean: Maps f(x) of the clean images, float [N, C, H, W].
        covered: Maps f(x′) of the occluded images, float [N, C, H, W].
        labels: Class of each pair, int64 [N].
        weight: Weight λ of the difference.
    """
    clean, covered = masks * clean, masks * covered
    difference = (clean - covered).abs().mean()
    logits = base.logits(torch.cat([clean, covered]), labels.repeat(2))
    classification = F.cross_entropy(logits, labels.repeat(2))  # the mean over both halves of the batch
    return PDSNLoss(classification + weight * difference, classification, difference)


@dataclass
class GeneratorEpoch:
    """Results of an epoch.

    Attributes:
        number: Number of the epoch, from 1.
        train_loss: Mean training loss.
        accuracy: Validation accuracy of masked clean and occluded images, for each region.
        difference: Mean absolute difference of the masked maps, for each region.
        loss: Validation loss, for each region.
        seconds: Duration.
    """

    number: int
    train_loss: float
    accuracy: list[float]
    difference: list[float]
    loss: list[float]
    seconds: float


@dataclass
class _Progress:
    """Best values of each region so far, and the number of epochs since the last improvement."""

    accuracy: list[float]
    difference: list[float]
    loss: list[float]
    stale: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, regions: int) -> _Progress:
        return cls([-math.inf] * regions, [math.inf] * regions, [math.inf] * regions, [0] * regions)

    def update(self, epoch: GeneratorEpoch) -> list[int]:
        """Add an epoch; returns the regions whose loss is the lowest so far."""
        better = []
        for k in range(len(self.stale)):
            accuracy, difference = epoch.accuracy[k], epoch.difference[k]
            # A difference lower by 1 %, or any higher accuracy, is an improvement.
            gained = accuracy > self.accuracy[k] or difference < 0.99 * self.difference[k]
            self.stale[k] = 0 if gained else self.stale[k] + 1
            self.accuracy[k] = max(self.accuracy[k], accuracy)
            self.difference[k] = min(self.difference[k], difference)
            if epoch.loss[k] < self.loss[k]:
                self.loss[k] = epoch.loss[k]
                better.append(k)
        return better


def cover(images: Tensor, boxes: Tensor, intensity: Tensor) -> Tensor:
    """Occlude one box of each image with a uniform intensity; the images are not modified.

    Args:
        images: uint8, or floating point in [0, 1], [N, C, H, W].
        boxes: (top, left, bottom, right) of each box, int64 [N, 4].
        intensity: Gray level of each box, float [N] in [0, 1].

    Returns:
        Occluded images x′, float [N, C, H, W].
    """
    images = as_float(images)
    box = paint(boxes.to(images.device), (images.shape[2], images.shape[3]))[:, None]
    return torch.where(box, intensity.to(images)[:, None, None, None], images)


class TrainingOptions(TypedDict, total=False):
    """Keyword arguments of :func:`train_generators` that :func:`~occfast.pdsn.build_dictionary` passes on."""

    validation: tuple[Tensor, Tensor] | None
    validation_boxes: Tensor | None
    weight: float
    epochs: int
    patience: int
    learning_rate: float
    kernel: int
    checkpoint: str | os.PathLike[str] | None
    resume: bool
    checkpoint_every: float
    on_epoch: Callable[[GeneratorEpoch], None] | None


def train_generators(
    base: nn.Module,
    regions: Regions,
    images: Tensor,
    labels: Tensor,
    *,
    validation: tuple[Tensor, Tensor] | None = None,
    boxes: Tensor | None = None,
    validation_boxes: Tensor | None = None,
    weight: float = 10.0,
    epochs: int = 40,
    patience: int = 3,
    batch_size: int = 60,
    learning_rate: float = 1e-3,
    intensity: tuple[float, float] = (0.0, 1.0),
    kernel: int = 3,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    checkpoint_every: float = 60.0,
    progress: bool | Report = True,
    on_epoch: Callable[[GeneratorEpoch], None] | None = None,
) -> Generators:
    """Train the mask generators of all regions together, with the base frozen.

    In each batch every region occurs equally often. Each image is occluded in one region, another one in each epoch, by
    a block of uniform intensity. So an epoch costs one pass of the base over the images, whatever the number of
    regions. The maps of the clean images are computed once. Training stops when neither the validation accuracy nor the
    difference of any region has improved for ``patience`` epochs. Each generator is restored from the epoch with its
    lowest validation loss.

    Args:
        base: Base network with a head; see :func:`~occfast.pdsn.as_base`. It is not changed.
        regions: The regions.
        images: Training images, uint8 or floating point in [0, 1], [N, C, H, W], of the size of ``regions``.
        labels: Class of each image, as the head numbers them, int64 [N].
        validation: Validation images and labels. Default: a tenth of the images, drawn at random.
        boxes: Regions of each image, int64 [N, R, 4]; see :meth:`Regions.at`. Default: the common regions.
        validation_boxes: The same for the validation images.
        weight: Weight λ of Eq. 3, at least 0.
        epochs: Maximum number of epochs, at least 1.
        patience: Number of epochs without improvement after which training stops, at least 1.
        batch_size: Number of images in a batch, at least the number of regions; rounded down to a multiple of it.
        learning_rate: Learning rate of Adam, positive.
        intensity: Lowest and highest gray level of the blocks, in [0, 1].
        kernel: Size of the generators' convolution kernel, odd.
        seed: Random seed of weights, order, intensities and the validation split. Nothing else is random.
        checkpoint: File that holds the state of the training. It is written at the end of an epoch, at most every
            ``checkpoint_every`` seconds, and removed at the end.
        resume: Continue from ``checkpoint`` if it exists; False starts anew. A resumed training gives the same result
            as an uninterrupted one.
        checkpoint_every: Minimum number of seconds between two checkpoints.
        progress: True for a progress bar on the standard error, False for none, or a function of (done, total).
        on_epoch: Called after each epoch.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, shapes differ, the base has no head, the loss is no longer finite, or
            the checkpoint is of another training.
        DataError: The checkpoint is damaged.
    """
    base = as_base(base)
    _check_pairs(regions, images, labels, boxes, "images")
    if base.head is None:
        raise ValueError("base: expected a base with a classifier, got one without (head=None)")
    checks.number(weight, "weight", 0.0)
    checks.number(learning_rate, "learning_rate", above=0.0)
    checks.number(checkpoint_every, "checkpoint_every", 0.0)
    low, high = (checks.number(value, "intensity", 0.0, 1.0) for value in intensity)
    if low > high:
        raise ValueError(f"intensity: expected (lowest, highest), got {intensity!r}")
    checks.integer(epochs, "epochs", 1)
    checks.integer(patience, "patience", 1)
    if checks.integer(batch_size, "batch_size") < len(regions):
        raise ValueError(
            f"batch_size: expected at least one image for each of {len(regions)} regions, got {batch_size}"
        )
    checks.seed(seed)
    checks.flag(resume, "resume")
    if validation is None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        held, kept = order[: max(1, len(images) // 10)], order[max(1, len(images) // 10) :]
        validation = images[held], labels[held]
        validation_boxes = None if boxes is None else boxes[held]
        images, labels, boxes = images[kept], labels[kept], None if boxes is None else boxes[kept]
        if len(images) == 0:
            raise ValueError("images: expected at least two, one of them for validation, got 1")
    else:
        _check_pairs(regions, *validation, validation_boxes, "validation")

    settings = {
        "regions": regions.to_json(),
        "base": base.fingerprint(),
        "weight": weight,
        "patience": patience,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "intensity": [low, high],
        "kernel": kernel,
        "seed": seed,
        "images": len(images),
        "own boxes": boxes is not None,
    }
    with frozen(base):
        trainer = _Trainer(base, regions, images, labels, boxes, validation, validation_boxes, settings)
        resumed = trainer.resume(Path(checkpoint)) if checkpoint is not None and resume else False
        last = time.monotonic()
        with show_progress(f"mask generators, {regions.kind}", "epochs", progress) as report:
            if not resumed:
                report(0, epochs)
            while len(trainer.generators.history) < epochs and min(trainer.watch.stale) < patience:
                epoch = trainer.epoch()
                report(epoch.number, epochs)
                if on_epoch is not None:
                    on_epoch(epoch)
                if checkpoint is not None and time.monotonic() - last >= checkpoint_every:
                    trainer.save(Path(checkpoint))
                    last = time.monotonic()
        generators = trainer.finish()
    if checkpoint is not None:
        remove(checkpoint)
    return generators


class _Trainer:
    """State of a training, consistent after each epoch."""

    def __init__(
        self,
        base: Base,
        regions: Regions,
        images: Tensor,
        labels: Tensor,
        boxes: Tensor | None,
        validation: tuple[Tensor, Tensor],
        validation_boxes: Tensor | None,
        settings: dict[str, Any],
    ) -> None:
        self.base, self.regions, self.settings = base, regions, settings
        self.images, self.labels = images, labels.to(base.device)
        self.boxes, self.seed = boxes, int(settings["seed"])
        self.clean = base.all_maps(images)
        with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            self.generators = Generators(
                regions, self.clean.shape[1], kernel=settings["kernel"], base=settings["base"]
            ).to(base.device)
        self.optimizer = torch.optim.Adam(self.generators.parameters(), lr=settings["learning_rate"])
        self.watch = _Progress.of(len(regions))
        self.best = [_copy(each.state_dict()) for each in self.generators.each]
        self._prepare_validation(validation, validation_boxes)

    def _prepare_validation(self, validation: tuple[Tensor, Tensor], boxes: Tensor | None) -> None:
        # Each image is occluded in one region, or in more if this leaves a region fewer than 32 pairs.
        images, labels = validation
        rounds = min(len(self.regions), -(-32 * len(self.regions) // len(images)))
        image = torch.arange(len(images)).repeat(rounds)
        region = torch.cat([(torch.arange(len(images)) + r) % len(self.regions) for r in range(rounds)])
        random = torch.Generator().manual_seed(self.seed + 1)
        region, box = self._boxes(boxes, image, region)
        covered = cover(images[image], box, self._intensity(len(image), random))
        clean = self.base.all_maps(images)
        self.checks = clean[image.to(clean.device)], self.base.all_maps(covered), labels[image].to(clean.device), region

    def _boxes(self, own: Tensor | None, image: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        """Return region and box of each pair; an empty region of an image is replaced by its next one."""
        if own is None:
            return region, self.regions.boxes[region]
        for _ in range(len(self.regions)):
            box = own[image, region]
            empty = (box[:, 2] <= box[:, 0]) | (box[:, 3] <= box[:, 1])
            if not bool(empty.any()):
                return region, box
            region = torch.where(empty, (region + 1) % len(self.regions), region)
        raise ValueError(f"boxes: expected a non-empty region in each image, image {int(image[empty][0])} has none")

    def _intensity(self, n: int, random: torch.Generator) -> Tensor:
        low, high = map(float, self.settings["intensity"])
        return low + (high - low) * torch.rand(n, generator=random)

    def epoch(self) -> GeneratorEpoch:
        started, number, count = time.perf_counter(), len(self.generators.history), len(self.regions)
        random = torch.Generator().manual_seed((self.seed << 20) + number)
        order = torch.randperm(len(self.images), generator=random)
        size = self.settings["batch_size"] // count * count
        # A last batch too small for one image per region is left out; other epochs have another order.
        batches = [part for part in order.split(size) if len(part) >= count] or [order]
        total = 0.0
        self.generators.train()
        for image in batches:
            region, box = self._boxes(self.boxes, image, (torch.arange(len(image)) + number) % count)
            covered = self.base.all_maps(cover(self.images[image], box, self._intensity(len(image), random)))
            image, region = image.to(covered.device), region.to(covered.device)
            clean = self.clean[image]
            masks = self.generators((clean - covered).abs(), region)
            loss = pdsn_loss(self.base, masks, clean, covered, self.labels[image], self.settings["weight"]).total
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += float(loss.detach())
        if not math.isfinite(total):
            rate = self.settings["learning_rate"]
            raise ValueError(f"learning_rate: the loss is not finite in epoch {number + 1}, use less than {rate:g}")
        accuracy, difference, loss_by_region = self._validate()
        done = GeneratorEpoch(
            number + 1, total / len(batches), accuracy, difference, loss_by_region, time.perf_counter() - started
        )
        self.generators.history.append(done)
        for k in self.watch.update(done):
            self.best[k] = _copy(self.generators.each[k].state_dict())
        return done

    @torch.no_grad()
    def _validate(self) -> tuple[list[float], list[float], list[float]]:
        clean, covered, labels, region = self.checks
        self.generators.eval()
        accuracy, difference, loss = [], [], []
        for k, each in enumerate(self.generators.each):
            rows = (region == k).nonzero()[:, 0].to(clean.device)
            if len(rows) == 0:  # the region is empty in every validation image
                accuracy.append(0.0)
                difference.append(math.inf)
                loss.append(math.inf)
                continue
            right = parts = 0.0
            sums = [0.0, 0.0]
            for some in rows.split(256):
                a, b, y = clean[some], covered[some], labels[some]
                masks = each((a - b).abs())
                found = pdsn_loss(self.base, masks, a, b, y, self.settings["weight"])
                sums[0] += float(found.difference) * len(some)
                sums[1] += float(found.total) * len(some)
                predicted = self.base.logits(torch.cat([masks * a, masks * b])).argmax(1)
                right += float((predicted == y.repeat(2)).sum())
                parts += len(some)
            accuracy.append(right / (2 * parts))
            difference.append(sums[0] / parts)
            loss.append(sums[1] / parts)
        return accuracy, difference, loss

    def finish(self) -> Generators:
        for each, state in zip(self.generators.each, self.best, strict=True):
            each.load_state_dict(state)
        return self.generators.eval()

    # -- resuming: random numbers depend on (seed, epoch) alone, so weights and counters are the whole state --------

    def save(self, path: Path) -> None:
        files.write(
            path,
            _CHECKPOINT,
            {
                "settings": json.dumps(self.settings),
                "watch": json.dumps(asdict(self.watch)),
                "generators": self.generators.state_dict(),
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "history": json.dumps([asdict(epoch) for epoch in self.generators.history]),
            },
        )

    def resume(self, path: Path) -> bool:
        content = files.read_checkpoint(path, _CHECKPOINT, self.settings)
        if content is None:
            return False
        with files.whole(path):
            self.generators.load_state_dict(content["generators"])
            self.optimizer.load_state_dict(content["optimizer"])
            for each, state in zip(self.generators.each, content["best"], strict=True):
                if _shapes(each.state_dict()) != _shapes(state):
                    raise ValueError("best weights of another shape")
            self.best = content["best"]
            self.watch = _Progress(**json.loads(content["watch"]))
            self.generators.history = [GeneratorEpoch(**epoch) for epoch in json.loads(content["history"])]
        return True


def _check_pairs(regions: Regions, images: Tensor, labels: Tensor, boxes: Tensor | None, name: str) -> None:
    if images.dim() != 4 or len(images) == 0 or tuple(images.shape[2:]) != regions.size:
        height, width = regions.size
        raise ValueError(f"{name}: expected [N, C, {height}, {width}] with N at least 1, got {list(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels: expected shape [{len(images)}], got {list(labels.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected dtype int64, got {str(labels.dtype).removeprefix('torch.')}")
    if boxes is not None and boxes.shape != (len(images), len(regions), 4):
        raise ValueError(f"boxes: expected shape [{len(images)}, {len(regions)}, 4], got {list(boxes.shape)}")


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
