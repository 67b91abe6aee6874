"""Networks by name, and what all networks have in common."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .iresnet import iresnet18, iresnet34, iresnet50, iresnet100
from .mobilefacenet import MobileFaceNet
from .paper_net import PaperNet
from .resnet import resnet18, resnet34, resnet50

Loaded = TypeVar("Loaded")

#: Names that :func:`build` accepts besides ``module:function``.
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
    """Build a network by name, with new weights from PyTorch's generator.

    ``classes``, ``channels`` and ``size`` are passed to functions that accept arguments of these names.

    Args:
        name: One of :data:`NETWORKS`, or ``module:function`` for an importable function or class that returns a
            module. Modules in the current folder are importable too.
        classes: Number of classes; None for a network that returns features.
        channels: Channels of its images.
        size: (height, width) of its images.
        **arguments: Other arguments of the function.

    Raises:
        ValueError: If the name is unknown, the function cannot be imported, or it does not accept an argument.
    """
    function = _function(name)
    offered = {"classes": classes, "channels": channels, "size": size}
    accepted = inspect.signature(function).parameters
    given = {key: value for key, value in offered.items() if key in accepted}
    check_arguments(function, arguments, f"network: {name}", passed=tuple(offered))
    try:
        network = function(**given, **arguments)
    except TypeError as error:
        if classes is None and "classes" in given:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"network: {name} failed with classes=None ({reason}); for a network that returns features, such as "
                "those of stage 'embed', it has to leave its classifier out"
            ) from error
        raise
    if not isinstance(network, nn.Module):
        raise ValueError(f"network: expected {name} to give a torch.nn.Module, got {type(network).__name__}")
    return network


def check_arguments(
    function: Callable[..., Any], arguments: dict[str, Any], source: str, *, passed: tuple[str, ...] = ()
) -> None:
    """Check that a function accepts keyword arguments.

    Args:
        function: Function or class.
        arguments: Keyword arguments.
        source: Name of the function in the message.
        passed: Names that the caller passes itself, which are not listed.

    Raises:
        ValueError: If one is not accepted; the message lists those that are.
    """
    accepted = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        return
    if unknown := sorted(set(arguments) - set(accepted)):
        known = [name for name in accepted if name not in passed and name != "self"]
        raise ValueError(f"{source} takes no argument {', '.join(unknown)}; it takes {', '.join(known) or 'none'}")


def takes_classes(name: str) -> bool:
    """Return whether networks of this name can have a classifier of their own."""
    return "classes" in inspect.signature(_function(name)).parameters


def classifier_name(network: nn.Module, classes: int | None) -> str | None:
    """Return the name of the layer that turns features into logits; None if there is none or it is ambiguous.

    Args:
        network: Network; its attribute ``classifier_name`` is the name, if there is one.
        classes: Number of classes; without the attribute, the classifier is the only ``nn.Linear`` with that many
            outputs.
    """
    named = getattr(network, "classifier_name", None)
    if isinstance(named, str) and named:
        return named
    linear = [
        name
        for name, module in network.named_modules()
        if classes is not None and isinstance(module, nn.Linear) and module.out_features == classes
    ]
    return linear[0] if len(linear) == 1 else None


def _function(name: str) -> Callable[..., nn.Module]:
    if name in NETWORKS:
        return NETWORKS[name]
    if ":" not in name:
        raise ValueError(f"network: expected one of {', '.join(NETWORKS)} or module:function, got {name!r}")
    return imported(name, "network")


def imported(name: str, source: str) -> Callable[..., Any]:
    """Import the function behind ``module:function``; modules in the current folder are found too.

    Args:
        name: Such as ``"package.module:function"``.
        source: Name of the argument or file in errors.

    Raises:
        ValueError: If there is no such module or function, or if it is not callable.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importing(lambda: importlib.import_module(module)), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{source}: {name!r} can't be imported ({error})") from error
    if not callable(found):
        raise ValueError(f"{source}: expected {name!r} to be a function, got {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def importing(load: Callable[[], Loaded]) -> Loaded:
    """Call a function that imports modules; those in the current folder are found too."""
    try:
        return load()
    except ModuleNotFoundError as error:
        folder, name = Path.cwd(), str(error.name)
        there = (folder / name).is_dir() or (folder / f"{name}.py").is_file()
        if str(folder) in sys.path or not there:
            raise
        # An installed command does not search the current folder, as `python -m` does. Last, so that it hides nothing.
        sys.path.append(str(folder))
        importlib.invalidate_caches()
        return load()


def features(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function that computes a network's features [N, D] from images [N, C, H, W].

    This is the network's method ``features``; without one, it is the network itself.  (The ``features`` of an iResNet
    is a layer, named after arcface_torch, and does not count.)
    """
    method = getattr(network, "features", None)
    if callable(method) and not isinstance(method, nn.Module):
        found: Callable[[Tensor], Tensor] = method
        return found
    return network


@torch.no_grad()
def to_channels_last(network: nn.Module, channels: int, size: tuple[int, int]) -> None:
    """Store a network's weights in the memory format channels_last, the faster one, if the network runs in it.

    Convolutions then return it whatever their images' format. A network that calls ``view`` on feature maps does not
    take it: its weights become contiguous.

    Args:
        network: Network; its mode is restored.
        channels, size: Channels and (height, width) of its images.
    """
    training = network.training
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameter = next(network.parameters(), torch.zeros(()))
    try:
        network(torch.zeros(1, channels, *size, device=parameter.device, dtype=parameter.dtype))
    except RuntimeError:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    finally:
        network.train(training)


@torch.no_grad()
def feature_size(network: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Return the size D of a network's features [N, D], found with two black images.

    Args:
        network: Network; its mode is restored.
        channels: Channels of its images.
        size: (height, width) of its images.

    Raises:
        ValueError: If the features have another shape.
    """
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
