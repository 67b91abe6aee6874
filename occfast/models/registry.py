"""Networks by name, and what they have in common."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .iresnet import iresnet18, iresnet34, iresnet50, iresnet100
from .mobilefacenet import MobileFaceNet
from .paper_net import PaperNet
from .resnet import resnet18, resnet34, resnet50

#: Names that :func:`build` knows.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "paper": PaperNet,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "iresnet18": iresnet18,
    "iresnet34": iresnet34,
    "iresnet50": iresnet50,
    "iresnet100": iresnet100,
    "mobilefacenet": MobileFaceNet,
}


def build(
    name: str, classes: int | None = None, *, channels: int, size: tuple[int, int], **arguments: Any
) -> nn.Module:
    """A network by its name, with new weights from PyTorch's generator.

    Args:
        name: one of :data:`NETWORKS`, or ``module:function`` for anything that can be imported and gives a module.
        classes: people that it tells apart; None for a network that gives features.
        channels, size: of its images, (height, width).  These and ``classes`` are handed to functions that take them.
        arguments: what else the function takes.

    Raises:
        ValueError: an unknown name; a module or function that is not there; arguments that it doesn't take.
    """
    function = _function(name)
    accepted = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    offered = {"classes": classes, "channels": channels, "size": size}
    given = {key: value for key, value in offered.items() if key in accepted}
    if (unknown := set(arguments) - set(accepted)) and not open_ended:
        raise ValueError(f"network: {name} takes no argument {', '.join(sorted(unknown))}")
    network = function(**given, **arguments)
    if not isinstance(network, nn.Module):
        raise ValueError(f"network: expected {name} to give a torch.nn.Module, got {type(network).__name__}")
    return network


def takes_classes(name: str) -> bool:
    """Whether networks of this name can have a classifier of their own."""
    return "classes" in inspect.signature(_function(name)).parameters


def _function(name: str) -> Callable[..., nn.Module]:
    if name in NETWORKS:
        return NETWORKS[name]
    if ":" not in name:
        raise ValueError(f"network: expected one of {', '.join(NETWORKS)} or module:function, got {name!r}")
    return imported(name, "network")


def imported(name: str, what: str) -> Callable[..., Any]:
    """The function behind ``module:function``.  Raises ValueError, beginning with ``what``."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what}: {name!r} can't be imported ({error})") from error
    if not callable(found):
        raise ValueError(f"{what}: expected {name!r} to be a function, got {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def features(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """What takes images [N, C, H, W] to features [N, D] of a network: its ``features`` method, or the network itself.

    (In an iResNet ``features`` is a layer, after arcface_torch; there it is the network itself.)
    """
    method = getattr(network, "features", None)
    if callable(method) and not isinstance(method, nn.Module):
        found: Callable[[Tensor], Tensor] = method
        return found
    return network


@torch.no_grad()
def feature_size(network: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """D of the features [N, D], found with two black images.  Raises ValueError for any other shape."""
    training = network.training
    network.eval()
    try:
        parameter = next(network.parameters(), torch.zeros(()))
        images = torch.zeros(2, channels, *size, device=parameter.device, dtype=parameter.dtype)
        shape = tuple(features(network)(images).shape)
    finally:
        network.train(training)
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"network: expected features [N, D], got {[*shape]} for two images")
    return shape[1]
