"""Segmentation of occlusions: a U-Net with a VGG-16 encoder, trained on differences of clean and occluded images."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.dlpack
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import checks
from ..errors import DataError
from ..files import remove
from ..models.tensor_files import check_kinds
from ..progress import Report
from ..progress import progress as show_progress
from . import tensor_files as files
from .base import as_float, frozen

_KIND = "a segmentation network"
_CHECKPOINT = "an unfinished segmentation network"
#: Number of channels of the convolutions of VGG-16 (configuration D of Simonyan and Zisserman 2015), by stage.
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
#: Number of channels of the decoder's blocks.
_DECODER = (256, 128, 64, 32, 16)


# -- labels ----------------------------------------------------------------------------------------------


def difference_labels(clean: Tensor, covered: Tensor, *, threshold: float = 0.05, radius: int = 2) -> Tensor:
    """Label occluded pixels as the paper does (Figure 5): threshold ``|clean - covered|``, then open and close.

    Opening removes specks and closing fills holes, both with a disk. The image is extended by its edge pixels. On the
    CPU this uses scikit-image, on a GPU cupyx.scipy.ndimage (CuPy must be installed).

    Args:
        clean: Images without occlusion, uint8 or floating point in [0, 1], [N, C, H, W].
        covered: The same images with an occlusion.
        threshold: A pixel is labeled if the difference of any channel is greater, in [0, 1].
        radius: Radius of the disk in pixels; 0 skips opening and closing.

    Returns:
        bool [N, H, W].

    Raises:
        TypeError: The images are neither uint8 nor floating point.
        ValueError: Shapes differ, or an argument is out of range.
    """
    checks.number(threshold, "threshold", 0.0, 1.0)
    checks.integer(radius, "radius", 0)
    if clean.shape != covered.shape:
        raise ValueError(f"covered: expected shape {list(clean.shape)} as the clean images, got {list(covered.shape)}")
    labels = (as_float(clean) - as_float(covered)).abs().amax(1) > threshold
    if radius == 0 or len(labels) == 0:
        return labels
    margin = 2 * radius + 1
    padded = F.pad(labels[:, None].float(), (margin,) * 4, mode="replicate")[:, 0] > 0.5
    if padded.is_cuda:
        import cupy
        from cupyx.scipy import ndimage

        cleaned = _open_close(cupy.from_dlpack(padded.to(torch.uint8)) > 0, radius, ndimage, cupy)
        done = torch.utils.dlpack.from_dlpack(cleaned.astype(cupy.uint8))
    else:
        from skimage import morphology

        opening: Any = morphology.isotropic_opening
        closing: Any = morphology.isotropic_closing
        done = torch.from_numpy(np.stack([closing(opening(one, radius), radius) for one in padded.numpy()]))
    return done[:, margin:-margin, margin:-margin].bool()


def _open_close(labels: Any, radius: int, ndimage: ModuleType, xp: ModuleType) -> Any:
    """Open and close labels [N, H, W] with ``scipy.ndimage`` or ``cupyx.scipy.ndimage``, all images in one call."""
    disk = xp.asarray(_disk(radius))[None]
    return ndimage.binary_closing(ndimage.binary_opening(labels, disk), disk)


def _disk(radius: int) -> NDArray[np.bool_]:
    along = np.arange(-radius, radius + 1)
    return np.asarray(along[:, None] ** 2 + along[None] ** 2 <= radius**2)


# -- network ---------------------------------------------------------------------------------------------


class _ConvBlock(nn.Sequential):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class _Encoder(nn.Module):
    def __init__(self, channels: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for stage in _VGG16:
            for full in stage:
                after = _scaled(full, width)
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
                before = after
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the input of each pooling layer, from full size down, and the output of the last one."""
        out = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                out.append(x)
            x = layer(x)
        return [*out, x]


class _DecoderBlock(nn.Module):
    def __init__(self, before: int, skip: int, after: int) -> None:
        super().__init__()
        self.conv1 = _ConvBlock(before + skip, after)
        self.conv2 = _ConvBlock(after, after)

    def forward(self, x: Tensor, size: Sequence[int], skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, size=tuple(size), mode="nearest")
        if skip is not None:
            x = torch.cat([x, skip], 1)
        out: Tensor = self.conv2(self.conv1(x))
        return out


class _Decoder(nn.Module):
    def __init__(self, width: float) -> None:
        super().__init__()
        head, *skips = (_scaled(stage[-1], width) for stage in (_VGG16[-1], *reversed(_VGG16[1:])))
        out = [_scaled(full, width) for full in _DECODER]
        self.center = nn.Sequential(_ConvBlock(head, head), _ConvBlock(head, head))
        before = [head, *out[:-1]]
        self.blocks = nn.ModuleList(_DecoderBlock(b, s, a) for b, s, a in zip(before, [*skips, 0], out, strict=True))

    def forward(self, maps: list[Tensor]) -> Tensor:
        full, *skips, x = maps
        x = self.center(x)
        for block, skip in zip(self.blocks, [*reversed(skips), None], strict=True):
            x = block(x, (skip if skip is not None else full).shape[2:], skip)
        out: Tensor = x
        return out


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with a VGG-16 encoder: one logit per pixel, positive for occluded pixels.

    The layers are named as in segmentation_models_pytorch's ``Unet("vgg16", classes=1)``, so that state dicts are
    interchangeable (with ``width=1.0``). :meth:`load_encoder` loads torchvision's VGG-16.

    Args:
        channels: Number of channels of the images.
        width: Factor on every number of channels, of which at least 8 remain; 1.0 is the network of the paper.
    """

    def __init__(self, channels: int = 3, *, width: float = 1.0) -> None:
        super().__init__()
        self.channels = checks.integer(channels, "channels", 1)
        self.width = width = checks.number(width, "width", above=0.0)
        self.encoder = _Encoder(channels, width)
        self.decoder = _Decoder(width)
        self.segmentation_head = nn.Sequential(nn.Conv2d(_scaled(_DECODER[-1], width), 1, 3, padding=1))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images by the mean and standard deviation of ImageNet (gray: 0.45 and 0.22).

        Args:
            images: uint8, or floating point in [0, 1], [N, channels, H, W].

        Returns:
            float [N, channels, H, W], the input of :meth:`forward`.
        """
        images = as_float(images)
        if images.shape[1] != self.channels:
            raise ValueError(f"images: expected {self.channels} channels, got {images.shape[1]}")
        color = self.channels == 3
        mean = images.new_tensor([0.485, 0.456, 0.406] if color else [0.45]).view(1, -1, 1, 1)
        std = images.new_tensor([0.229, 0.224, 0.225] if color else [0.22]).view(1, -1, 1, 1)
        return (images - mean) / std

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits.

        Args:
            x: Normalized images, float [N, channels, H, W], with H and W at least 32.

        Returns:
            float [N, 1, H, W].
        """
        if x.dim() != 4 or min(x.shape[2:]) < 32:
            raise ValueError(f"x: expected [N, {self.channels}, H, W] with H and W at least 32, got {list(x.shape)}")
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(x)))
        return logits

    def load_encoder(self, state: dict[str, Tensor]) -> None:
        """Load the convolutions from a state dict of torchvision's VGG-16; its classifier is ignored."""
        kept = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
        check_kinds(self.encoder.state_dict(), kept)
        self.encoder.load_state_dict(kept)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write weights and settings, atomically."""
        return files.write(path, _KIND, {"channels": self.channels, "width": self.width, "state": self.state_dict()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> UNet:
        """Read a file written by :meth:`save`.

        Raises:
            FileNotFoundError: There is no such file.
            DataError: The file is damaged or something else.
        """
        content = files.read(path, _KIND)
        try:
            network = cls(content["channels"], width=content["width"])
            check_kinds(network.state_dict(), content["state"])
            network.load_state_dict(content["state"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{path}: damaged segmentation network ({error})") from error
        return network.eval()


# -- training and use ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentationScore:
    """Pixel accuracy and intersection over union of the occluded pixels, over all images.

    Attributes:
        accuracy: Share of pixels labeled correctly.
        iou: Intersection over union of predicted and true occluded pixels; 1 if there are none in either.
    """

    accuracy: float
    iou: float

    @classmethod
    def of(cls, predicted: Tensor, truth: Tensor) -> SegmentationScore:
        """Compare predicted with true labels, bool [N, H, W].

        Raises:
            TypeError: The labels are not bool.
            ValueError: Shapes differ.
        """
        if predicted.dtype != torch.bool or truth.dtype != torch.bool:
            raise TypeError(f"predicted, truth: expected dtype bool, got {predicted.dtype} and {truth.dtype}")
        if predicted.shape != truth.shape:
            raise ValueError(f"predicted: expected shape {list(truth.shape)}, got {list(predicted.shape)}")
        union = int((predicted | truth).sum())
        return cls(
            float((predicted == truth).double().mean()), int((predicted & truth).sum()) / union if union else 1.0
        )


@dataclass
class SegmentationEpoch:
    """Results of an epoch.

    Attributes:
        number: Number of the epoch, from 1.
        train_loss: Mean training loss.
        loss: Mean validation loss.
        accuracy: Pixel accuracy on the validation images.
        iou: Intersection over union on the validation images.
        seconds: Duration.
    """

    number: int
    train_loss: float
    loss: float
    accuracy: float
    iou: float
    seconds: float


def train_segmentation(
    network: UNet,
    clean: Tensor,
    covered: Tensor,
    *,
    validation: tuple[Tensor, Tensor],
    labels: Tensor | None = None,
    validation_labels: Tensor | None = None,
    threshold: float = 0.05,
    radius: int = 2,
    epochs: int = 20,
    patience: int = 3,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    checkpoint_every: float = 60.0,
    progress: bool | Report = True,
    on_epoch: Callable[[SegmentationEpoch], None] | None = None,
) -> list[SegmentationEpoch]:
    """Train a network in place with binary cross-entropy and Adam.

    At the end, the network has the weights of the epoch with the lowest validation loss.

    Args:
        network: The network.
        clean: Images without occlusion, uint8 or floating point in [0, 1], [N, C, H, W].
        covered: The same images with an occlusion. Some may have none, as examples of clean faces.
        validation: Other clean and occluded images.
        labels: Occluded pixels, bool [N, H, W]. Default: :func:`difference_labels`.
        validation_labels: The same for the validation images.
        threshold: See :func:`difference_labels`.
        radius: See :func:`difference_labels`.
        epochs: Maximum number of epochs, at least 1.
        patience: Number of epochs without a lower validation loss after which training stops, at least 1.
        batch_size: Number of images in a batch, at least 1.
        learning_rate: Learning rate of Adam, positive.
        seed: Random seed of the order of the images.
        checkpoint, resume, checkpoint_every: See :func:`~occfast.pdsn.train_generators`.
        progress: True for a progress bar on the standard error, False for none, or a function of (done, total).
        on_epoch: Called after each epoch.

    Returns:
        Results of each epoch, including those before a resumption.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, shapes differ, the loss is no longer finite, or the checkpoint is of
            another training.
        DataError: The checkpoint is damaged.
    """
    if labels is None:
        labels = difference_labels(clean, covered, threshold=threshold, radius=radius)
    if validation_labels is None:
        validation_labels = difference_labels(*validation, threshold=threshold, radius=radius)
    for name, images, truth in (("labels", covered, labels), ("validation_labels", validation[1], validation_labels)):
        if len(images) == 0 or truth.shape != (len(images), *images.shape[2:]):
            raise ValueError(f"{name}: expected [N, H, W] of at least one image, got {list(truth.shape)}")
    for name, value in (("epochs", epochs), ("patience", patience), ("batch_size", batch_size)):
        checks.integer(value, name, 1)
    checks.number(learning_rate, "learning_rate", above=0.0)
    checks.number(checkpoint_every, "checkpoint_every", 0.0)
    checks.seed(seed)
    checks.flag(resume, "resume")
    settings = {
        "images": len(covered),
        "threshold": threshold,
        "radius": radius,
        "patience": patience,
        "width": network.width,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    history: list[SegmentationEpoch] = []
    best = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    content = None
    if checkpoint is not None and resume:
        content = files.read_checkpoint(Path(checkpoint), _CHECKPOINT, settings)
    if content is not None:
        assert checkpoint is not None
        with files.whole(checkpoint):
            network.load_state_dict(content["best"])
            network.load_state_dict(content["state"])
            optimizer.load_state_dict(content["optimizer"])
            best, history = content["best"], [SegmentationEpoch(**epoch) for epoch in json.loads(content["history"])]
    last = time.monotonic()
    with show_progress("segmentation", "epochs", progress) as report:
        while len(history) < epochs and not _stagnates([epoch.loss for epoch in history], patience):
            started, number = time.perf_counter(), len(history)
            order = torch.randperm(len(covered), generator=torch.Generator().manual_seed((seed << 20) + number))
            network.train()
            total = 0.0
            for part in order.split(batch_size):
                logits = network(network.normalize(covered[part].to(device)))[:, 0]
                loss = F.binary_cross_entropy_with_logits(logits, labels[part].to(logits))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(part)
            if not math.isfinite(total):
                raise ValueError(
                    f"learning_rate: the loss is not finite in epoch {number + 1}, use less than {learning_rate:g}"
                )
            loss_there, score = _evaluate(network, validation[1], validation_labels, batch_size)
            history.append(
                SegmentationEpoch(
                    number + 1,
                    total / len(covered),
                    loss_there,
                    score.accuracy,
                    score.iou,
                    time.perf_counter() - started,
                )
            )
            if loss_there == min(epoch.loss for epoch in history):
                best = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
            report(number + 1, epochs)
            if on_epoch is not None:
                on_epoch(history[-1])
            if checkpoint is not None and time.monotonic() - last >= checkpoint_every:
                files.write(
                    checkpoint,
                    _CHECKPOINT,
                    {
                        "settings": json.dumps(settings),
                        "state": network.state_dict(),
                        "best": best,
                        "optimizer": optimizer.state_dict(),
                        "history": json.dumps([asdict(epoch) for epoch in history]),
                    },
                )
                last = time.monotonic()
    network.load_state_dict(best)
    network.eval()
    if checkpoint is not None:
        remove(checkpoint)
    return history


@torch.no_grad()
def segment(network: UNet, images: Tensor, *, batch_size: int = 16) -> Tensor:
    """Predict occluded pixels.

    Args:
        network: A trained network.
        images: uint8, or floating point in [0, 1], [N, C, H, W].
        batch_size: Number of images per forward pass.

    Returns:
        bool [N, H, W], on the device of the network.
    """
    device = next(network.parameters()).device
    with frozen(network):
        parts = [network(network.normalize(part.to(device)))[:, 0] > 0 for part in images.split(batch_size)]
    return torch.cat(parts)


@torch.no_grad()
def _evaluate(network: UNet, images: Tensor, truth: Tensor, batch_size: int) -> tuple[float, SegmentationScore]:
    device = next(network.parameters()).device
    loss, predicted = 0.0, []
    with frozen(network):
        for part, label in zip(images.split(batch_size), truth.split(batch_size), strict=True):
            logits = network(network.normalize(part.to(device)))[:, 0]
            loss += float(F.binary_cross_entropy_with_logits(logits, label.to(logits))) * len(part)
            predicted.append((logits > 0).cpu())
    return loss / len(images), SegmentationScore.of(torch.cat(predicted), truth.cpu())


def _stagnates(losses: list[float], patience: int) -> bool:
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _scaled(full: int, width: float) -> int:
    return max(8, round(full * width))
