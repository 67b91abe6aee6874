"""A recognizer cut in two where PDSN masks it: images → maps → feature → logits."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..losses.cosface import LargeMarginCosine
from ..models import IResNet, PaperNet, ResNet

if TYPE_CHECKING:
    from ..train import Trained


class Base(nn.Module):
    """The base network of PDSN; its weights and batch-norm statistics are never changed here.

    Args:
        trunk: normalized images [N, C, H, W] -> maps [N, C', H', W'] (f of the paper): these are masked.
        tail: maps -> feature [N, D].
        head: feature -> logits [N, K]; a :class:`~occfast.LargeMarginCosine` is given the labels as well.  With
            ``tail`` this is F of the paper.  None: the base can compare faces, but train no mask generators.
        mean, std: pixels in [0, 1] become (pixel - mean) / std for ``trunk``.

    Everything of PDSN hands images over in [0, 1] (float) or 0 to 255 (uint8), so that occlusions and intensities
    mean the same for every base.
    """

    def __init__(
        self, trunk: nn.Module, tail: nn.Module, head: nn.Module | None = None, *, mean: float = 0.5, std: float = 0.5
    ) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(f"std: expected a positive number, got {std!r}")
        self.trunk, self.tail, self.head = trunk, tail, head
        self.mean, self.std = float(mean), float(std)

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters()), torch.empty(0)).device

    def maps(self, images: Tensor) -> Tensor:
        """f(x): uint8 or float in [0, 1], [N, C, H, W] -> [N, C', H', W']."""
        maps: Tensor = self.trunk((as_float(images.to(self.device)) - self.mean) / self.std)
        return maps

    def features(self, maps: Tensor) -> Tensor:
        """The feature of (masked) maps, [N, D]."""
        features: Tensor = self.tail(maps)
        return features

    def logits(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """F(maps), [N, K]; with ``labels`` a margin is taken off where the head has one, as in its training."""
        if self.head is None:
            raise ValueError("base: expected a base with a classifier, got one without (head=None)")
        features = self.features(maps)
        logits: Tensor = (
            self.head(features, labels) if isinstance(self.head, LargeMarginCosine) else self.head(features)
        )
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits, [N, K]; without a head the feature."""
        maps = self.maps(images)
        return self.features(maps) if self.head is None else self.logits(maps)

    @torch.no_grad()
    def all_maps(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Maps of many images in batches, in evaluation mode; [N, C', H', W'] on the base's device."""
        if len(images) == 0:
            raise ValueError("images: expected at least one, got none")
        with frozen(self):
            return torch.cat([self.maps(part) for part in images.split(batch_size)])

    def fingerprint(self) -> str:
        """Tells this base from any other: its layers, normalization, weights and statistics; 16 hex digits."""
        digest = hashlib.sha256(f"{self.trunk}{self.tail}{self.mean!r}{self.std!r}".encode())
        for part in (self.trunk, self.tail):
            for name, tensor in part.state_dict().items():
                plain = tensor.detach().cpu().contiguous()
                digest.update(f"{name} {plain.dtype} {list(plain.shape)}".encode())
                digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        return digest.hexdigest()[:16]


def as_base(network: nn.Module, head: nn.Module | None = None, *, mean: float = 0.5, std: float = 0.5) -> Base:
    """A :class:`Base` that shares the weights of a network of this package.

    Args:
        network: a :class:`Base` (returned as it is), or one of :mod:`occfast.models`.
        head: classifier on its feature; by default the network's own.

    Raises:
        TypeError: for another network: it says how to cut one.
    """
    if isinstance(network, Base):
        return network
    if isinstance(network, ResNet):
        stages = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        trunk = nn.Sequential(OrderedDict((name, getattr(network, name)) for name in stages))
        return Base(trunk, nn.Sequential(network.avgpool, network.flatten), head or network.fc, mean=mean, std=std)
    if isinstance(network, PaperNet):
        tail = nn.Sequential(network.pool, network.flatten)
        return Base(network.convolutions, tail, head or network.classifier, mean=mean, std=std)
    if isinstance(network, IResNet):
        stages = ("conv1", "bn1", "prelu", "layer1", "layer2", "layer3", "layer4", "bn2")
        trunk = nn.Sequential(OrderedDict((name, getattr(network, name)) for name in stages))
        tail = nn.Sequential(network.dropout, network.flatten, network.fc, network.features)
        return Base(trunk, tail, head, mean=mean, std=std)
    raise TypeError(
        f"base: expected an occfast.pdsn.Base or a network of occfast.models, got {type(network).__name__}; "
        "cut it with occfast.pdsn.Base(trunk, tail, head)"
    )


def as_float(images: Tensor) -> Tensor:
    """Images in [0, 1]: uint8 is divided by 255, floating point is taken as it is; another dtype is a TypeError."""
    if images.dim() != 4:
        raise ValueError(f"images: expected shape [N, C, H, W], got {list(images.shape)}")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise TypeError(f"images: expected dtype uint8 or floating point, got {images.dtype}")
    return images


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients of parameters, batch norm included; everything is put back at the end."""
    modes = {part: part.training for part in module.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in module.parameters()}
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def base_of(trained: Trained) -> Base:
    """A trained network as PDSN cuts it.  Raises ValueError for one that takes BGR images."""
    if trained.preprocessing.color == "BGR":
        raise ValueError("base: expected a network of gray or RGB images, this one takes BGR")
    return as_base(trained.network, trained.head, mean=trained.preprocessing.mean, std=trained.preprocessing.std).eval()
