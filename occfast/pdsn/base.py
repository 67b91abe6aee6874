"""A recognizer cut in two at the feature maps that PDSN masks: images → maps → feature → logits."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..losses.cosface import LargeMarginCosine
from ..models import IResNet, MobileFaceNet, PaperNet, ResNet
from ..models.preprocessing import PerChannel, as_factor, per_channel

if TYPE_CHECKING:
    from ..train import Trained


class Base(nn.Module):
    """Base network of PDSN. PDSN never changes its weights and batch-norm statistics.

    Images are passed in [0, 1] (floating point) or 0 to 255 (uint8), so that occlusions and intensities mean the same
    for every base.

    Args:
        trunk: Network from normalized images [N, C, H, W] to the maps [N, C', H', W'] that are masked (f in the paper).
        tail: Network from maps to features [N, D].
        head: Classifier from features to logits [N, K] (F in the paper, with ``tail``). A
            :class:`~occfast.LargeMarginCosine` also receives the labels. Without a head, the base can compare faces,
            but can't train mask generators.
        mean: Pixels in [0, 1] become (pixel - mean) / std for ``trunk``. One number, or one for each of three channels.
        std: See ``mean``; positive.

    Raises:
        TypeError: ``mean`` or ``std`` is not a number.
        ValueError: ``std`` is not positive.
    """

    def __init__(
        self,
        trunk: nn.Module,
        tail: nn.Module,
        head: nn.Module | None = None,
        *,
        mean: PerChannel = 0.5,
        std: PerChannel = 0.5,
    ) -> None:
        super().__init__()
        self.trunk, self.tail, self.head = trunk, tail, head
        self.mean, self.std = per_channel(mean, "mean"), per_channel(std, "std", above=0.0)

    @property
    def device(self) -> torch.device:
        """Device of the first parameter; the CPU if there is none."""
        return next(iter(self.parameters()), torch.empty(0)).device

    def maps(self, images: Tensor) -> Tensor:
        """Compute maps f(x).

        Args:
            images: uint8, or floating point in [0, 1], [N, C, H, W].

        Returns:
            float [N, C', H', W'].
        """
        found = as_float(images.to(self.device))
        maps: Tensor = self.trunk((found - as_factor(self.mean, found)) / as_factor(self.std, found))
        return maps

    def features(self, maps: Tensor) -> Tensor:
        """Compute the features of maps [N, C', H', W'], masked or not; float [N, D]."""
        features: Tensor = self.tail(maps)
        return features

    def logits(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the logits F(maps), float [N, K].

        Args:
            maps: float [N, C', H', W'].
            labels: Class of each image, int64 [N]. If given, a head with a margin subtracts it, as in its training.

        Raises:
            ValueError: The base has no head.
        """
        if self.head is None:
            raise ValueError("base: expected a base with a classifier, got one without (head=None)")
        features = self.features(maps)
        logits: Tensor = (
            self.head(features, labels) if isinstance(self.head, LargeMarginCosine) else self.head(features)
        )
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [N, K] of images, or features [N, D] if the base has no head."""
        maps = self.maps(images)
        return self.features(maps) if self.head is None else self.logits(maps)

    @torch.no_grad()
    def all_maps(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Compute the maps of many images in batches, in evaluation mode.

        Returns:
            float [N, C', H', W'] on the device of the base.
        """
        if len(images) == 0:
            raise ValueError("images: expected at least one, got none")
        with frozen(self):
            return torch.cat([self.maps(part) for part in images.split(batch_size)])

    def fingerprint(self) -> str:
        """Return a digest of layers, normalization, weights and statistics, 16 hexadecimal digits."""
        digest = hashlib.sha256(f"{self.trunk}{self.tail}{self.mean!r}{self.std!r}".encode())
        for part in (self.trunk, self.tail):
            for name, tensor in part.state_dict().items():
                plain = tensor.detach().cpu().contiguous()
                digest.update(f"{name} {plain.dtype} {list(plain.shape)}".encode())
                digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        return digest.hexdigest()[:16]


def as_base(
    network: nn.Module, head: nn.Module | None = None, *, mean: PerChannel = 0.5, std: PerChannel = 0.5
) -> Base:
    """Return a :class:`Base` that shares the weights of a network.

    Args:
        network: A :class:`Base`, which is returned unchanged; a network of :mod:`occfast.models`; or a network with
            submodules ``trunk`` and ``tail``, and optionally ``head``, that play the roles described at :class:`Base`.
        head: Classifier of the features. Default: that of the network.
        mean, std: Normalization; see :class:`Base`.

    Raises:
        TypeError: The network is of another kind.
        ValueError: ``network`` is a :class:`Base`, and ``head`` is not its head.
    """
    if isinstance(network, Base):
        if head is not None and head is not network.head:
            raise ValueError("head: expected None for an occfast.pdsn.Base, which has its own")
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
    if isinstance(network, MobileFaceNet):
        trunk = nn.Sequential(network.conv1, network.dw_conv1, network.blocks, network.conv2)
        return Base(trunk, nn.Sequential(network.linear7, network.linear1, nn.Flatten()), head, mean=mean, std=std)
    parts = dict(network.named_children())
    if "trunk" in parts and "tail" in parts:
        return Base(parts["trunk"], parts["tail"], head or parts.get("head"), mean=mean, std=std)
    raise TypeError(
        "base: expected an occfast.pdsn.Base, a network of occfast.models or one with submodules trunk and tail, got "
        f"{type(network).__name__}; cut it with occfast.pdsn.Base(trunk, tail, head)"
    )


def as_float(images: Tensor) -> Tensor:
    """Return images in [0, 1]: uint8 is divided by 255, floating point is returned unchanged.

    Raises:
        TypeError: The images have another dtype.
        ValueError: The shape is not [N, C, H, W].
    """
    if images.dim() != 4:
        raise ValueError(f"images: expected shape [N, C, H, W], got {list(images.shape)}")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise TypeError(f"images: expected dtype uint8 or floating point, got {images.dtype}")
    return images


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Switch a module to evaluation mode without gradients of its parameters; restore its state at the end."""
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
    """Return the :class:`Base` of a trained network.

    Raises:
        TypeError: The network can't be cut; see :func:`as_base`.
        ValueError: The network takes BGR images, or is a :class:`Base` with another normalization than it was
            trained with.
    """
    how = trained.preprocessing
    if how.color == "BGR":
        raise ValueError("base: expected a network of gray or RGB images, got one of BGR images")
    base = as_base(trained.network, trained.head, mean=how.mean, std=how.std).eval()
    if (base.mean, base.std) != (how.mean, how.std):
        raise ValueError(
            f"base: its mean {base.mean} and std {base.std} differ from those of its weights, {how.mean} and {how.std}"
        )
    return base
