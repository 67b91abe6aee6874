"""Trained networks as files: weights together with what is needed to use them.

``<name>.safetensors`` holds the state dict of the network and nothing else, so any tool can load it; the metadata
describe the network and the preparation of its images. A head that training needed beside the network, such as the
large margin cosine classifier, is in ``<name>-head.safetensors``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..losses import LargeMarginCosine, PartialFC
from .preprocessing import Preprocessing
from .registry import NETWORKS, build, classifier_name, features, to_channels_last
from .tensor_files import check_kinds, read_about, read_state_dict, read_tensors, write_tensors

_KIND = "occfast.network"


@dataclass
class Trained:
    """Trained network in ``eval`` mode.

    Attributes:
        network: Returns logits, or features if it has no classifier of its own.
        preprocessing: Preparation of its images.
        spec: {"name", "classes", "arguments"} of :func:`occfast.models.build`.
        people: Names of the classes; empty without a classifier.
        head: Maps features to logits; None if the network has its own classifier or none.
        about: Other facts: stage, loss, step, epoch, validation.
    """

    network: nn.Module
    preprocessing: Preprocessing
    spec: dict[str, Any]
    people: list[str] = field(default_factory=list)
    head: nn.Module | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def embed(self, images: Tensor) -> Tensor:
        """Compute features [N, D], not normalized, of stored images, uint8 [N, C, H, W]."""
        return features(self.network)(self.preprocessing(images))

    def classifier(self) -> nn.Module:
        """Return a module from prepared images to logits [N, K]; raise ValueError if nothing classifies."""
        if self.head is not None:
            return _Classifier(self.network, self.head).eval()
        if self.spec.get("classes") is None:
            raise ValueError("classifier: expected a network that was trained to classify, this one gives features")
        return self.network

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the network to ``path`` (``.safetensors``), and its head beside it."""
        path = Path(path)
        metadata = {
            "kind": _KIND,
            "network": self.spec,
            "preprocessing": json.loads(self.preprocessing.to_json()),
            "people": self.people,
            "about": self.about,
        }
        if self.head is not None:
            head: dict[str, Any] = {"kind": type(self.head).__name__}
            if isinstance(self.head, LargeMarginCosine):
                head |= {"scale": self.head.scale, "margin": self.head.margin}
            write_tensors(_head_of(path), self.head.state_dict(), head)
        return write_tensors(path, self.network.state_dict(), metadata)


class _Classifier(nn.Module):
    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def features(self, images: Tensor) -> Tensor:
        return features(self.network)(images)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(features(self.network)(images))
        return logits


def _head_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}-head.safetensors")


def load(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    network: str | None = None,
    classes: int | None = None,
    arguments: dict[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Trained:
    """Load a network: what :meth:`Trained.save` wrote, or plain weights of a named architecture.

    Args:
        path: ``.safetensors``; with ``network`` also ``.pt`` and ``.pth``.
        trust: Also build a network whose file names it as ``module:function``, which runs that module's code.
        network: Architecture, for weights files that do not record it; see :func:`occfast.models.build`.
        classes: Number of its classes; None for a network that returns features.
        arguments: Further arguments of :func:`occfast.models.build`.
        preprocessing: Preparation of its images; required with ``network``.

    Raises:
        FileNotFoundError: If the file does not exist.
        DataError: If it is damaged, or records no architecture and ``network`` is None.
        ValueError: If the weights do not fit, or the network is ``module:function`` and not trusted.
    """
    if network is not None:
        if preprocessing is None:
            raise ValueError("preprocessing: expected together with network, since the file does not record it")
        spec = {"name": network, "classes": classes, "arguments": dict(arguments or {})}
        built = _built(spec, preprocessing)
        load_into(built, path)
        to_channels_last(built, preprocessing.channels, preprocessing.size)
        return Trained(built.eval(), preprocessing, spec)
    if Path(path).suffix != ".safetensors" and Path(path).is_file():
        read_state_dict(path)
        raise DataError(f"{path}: {_UNDESCRIBED}")
    state, metadata = read_tensors(path)
    if metadata.get("kind") != _KIND:
        raise DataError(f"{path}: {_UNDESCRIBED}")
    try:
        spec, people, about = metadata["network"], list(metadata["people"]), dict(metadata["about"])
        name = str(spec["name"])
        spec = {"name": name, "classes": spec["classes"], "arguments": dict(spec["arguments"])}
        preprocessing = Preprocessing.from_json(json.dumps(metadata["preprocessing"]), str(path))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a whole description of a network ({error})") from error
    if name not in NETWORKS and not trust:
        raise ValueError(f"{path}: is for the network {name}, whose code runs only with trust=True (--trust)")
    if name in NETWORKS:
        _check_size(spec, preprocessing, state, str(path))
    _check_people(people, spec["classes"], str(path))
    built = _built(spec, preprocessing)
    load_into(built, state, source=str(path))
    to_channels_last(built, preprocessing.channels, preprocessing.size)  # as it was trained
    head = _load_head(_head_of(Path(path))) if about.get("head") else None
    return Trained(built.eval(), preprocessing, spec, people, head, about)


def _check_people(people: list[Any], classes: Any, source: str) -> None:
    """Raise DataError if names of classes are no texts, occur twice or are not as many as the classes."""
    if not all(isinstance(person, str) for person in people) or len(set(people)) < len(people):
        raise DataError(f"{source}: people: expected a name of its own for every class")
    if people and classes is not None and len(people) != classes:
        raise DataError(f"{source}: people: expected {classes} names, one for each class, got {len(people)}")


_UNDESCRIBED = "no architecture is recorded in this file; name it with network= (--network), or use load_into"


def _check_size(spec: dict[str, Any], preprocessing: Preprocessing, state: dict[str, Tensor], source: str) -> None:
    """Refuse a description whose network is not that of the weights, before it takes memory."""
    try:
        with torch.device("meta"):
            described = _built(spec, preprocessing).state_dict()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise DataError(f"{source}: not a whole description of a network ({' '.join(str(error).split())})") from error
    wanted, found = (sum(tensor.numel() for tensor in tensors.values()) for tensors in (described, state))
    if wanted > 2 * found + 1000:  # smaller differences are named by load_into
        raise DataError(f"{source}: describes a network of {wanted:,} numbers, got {found:,}")


def _built(spec: dict[str, Any], preprocessing: Preprocessing) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return build(
            spec["name"], spec["classes"], channels=preprocessing.channels, size=preprocessing.size, **spec["arguments"]
        )


def _load_head(path: Path) -> nn.Module:
    state, metadata = read_tensors(path)
    try:
        classes, size = state["weight"].shape
        if metadata["kind"] == "LargeMarginCosine":
            head: nn.Module = LargeMarginCosine(size, classes, scale=metadata["scale"], margin=metadata["margin"])
        else:
            head = nn.Linear(size, classes)
        check_kinds(head.state_dict(), state)
        head.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: not a head of a network ({error})") from error
    return head.eval()


def load_head(head: nn.Module, start: str | os.PathLike[str], unused: Sequence[str] = ()) -> bool:
    """Load the head that was saved beside the weights ``start``, or the classifier in them.

    Args:
        head: Changed in place.
        start: Path of the weights.
        unused: Names in the weights that the network did not use. A softmax classifier that is divided among processes
            takes its weights from there if no head was saved.

    Returns:
        True if there was one.

    Raises:
        ValueError: If it does not fit.
    """
    path = _head_of(Path(start))
    if not isinstance(head, PartialFC):
        if path.is_file():
            load_into(head, read_tensors(path)[0], source=str(path))
        return path.is_file()
    if path.is_file():
        state = read_tensors(path)[0]
    else:
        path = Path(start)
        layers = {name.rpartition(".")[0] for name in unused}
        if head.loss != "cross_entropy" or len(layers) != 1:
            return False
        weights = read_state_dict(path)
        state = {name.rpartition(".")[2]: weights[name] for name in unused}
    try:
        check_kinds(dict(head.named_parameters()), state)
        head.load_whole(state)
    except ValueError as error:
        raise ValueError(f"{path}: the classifier does not fit: {error}") from error
    return True


def description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a weights file of :meth:`Trained.save` records; {} for any other file of weights.

    Raises:
        FileNotFoundError, DataError: As :func:`~occfast.models.tensor_files.read_about`.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    about = read_about(path)
    return about if about.get("kind") == _KIND else {}


def load_into(
    network: nn.Module,
    weights: str | os.PathLike[str] | dict[str, Tensor],
    *,
    source: str = "weights",
    fresh_classifier: bool = False,
    classes: int | None = None,
) -> list[str]:
    """Load weights into a network; names and shapes must agree.

    A prefix that the names of the network lack, such as ``model.`` or ``backbone.``, is removed.

    Args:
        network: Changed in place.
        weights: File (see :func:`~occfast.models.tensor_files.read_state_dict`) or state dict.
        source: Name of a state dict in error messages.
        fresh_classifier: Keep the network's own classifier instead of the one in the weights.
        classes: Number of classes of the network; helps to find its classifier (see
            :func:`occfast.models.registry.classifier_name`).

    Returns:
        Names in the weights that were not used: of a classifier that the network was built without or that is kept,
        and of what lies outside the removed prefix.

    Raises:
        ValueError: If the weights do not fit; the message names missing and surplus names, different shapes, and
            numbers of another kind, such as integers in place of floating point.
    """
    recorded: int | None = None
    if not isinstance(weights, dict):
        source = os.fspath(weights)
        recorded = (description(weights).get("network") or {}).get("classes")
        weights = read_state_dict(weights)
    own = network.state_dict()
    name = classifier_name(network, classes)
    weights, outside = _without_prefix(weights, [key for key in own if not (name and key.startswith(f"{name}."))])
    if fresh_classifier and classes is not None and name is None:
        raise ValueError(
            "fresh_classifier: the classifier of the network is not known; name its layer in the network's attribute "
            "classifier_name"
        )
    if name is None:
        name = _left_behind(weights.keys() - own.keys(), weights, recorded)
    replaced = name is not None and (fresh_classifier or not any(key.startswith(f"{name}.") for key in own))
    unused = [key for key in weights if replaced and key.startswith(f"{name}.")]
    given = {key: tensor for key, tensor in weights.items() if key not in unused}
    given |= {key: own[key] for key in own if replaced and key.startswith(f"{name}.")}
    problems = []
    if missing := sorted(own.keys() - given.keys()):
        problems.append(f"missing {_some(missing)}")
    if extra := sorted(given.keys() - own.keys()):
        problems.append(f"not of this network {_some(extra)}")
    shapes = [key for key in own.keys() & given.keys() if own[key].shape != given[key].shape]
    if shapes:
        key = min(shapes)
        problems.append(f"{key} has shape {list(given[key].shape)}, expected {list(own[key].shape)}")
    try:
        check_kinds(own, given)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        hint = ""
        if extra and not missing and not shapes and len({key.rpartition(".")[0] for key in extra}) == 1:
            layer = extra[0].rpartition(".")[0]
            hint = f" (if this is a classifier, say so in the network: classifier_name = {layer!r})"
        raise ValueError(f"{source}: don't fit the network: {'; '.join(problems)}{hint}")
    network.load_state_dict(given)
    return unused + outside


def _without_prefix(weights: dict[str, Tensor], own: list[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove the prefix under which the weights hold all these names; return the names outside of it too."""
    if not own or any(name in weights for name in own):
        return weights, []
    first = own[0]
    for prefix in sorted({name.removesuffix(first) for name in weights if name.endswith(f".{first}")}, key=len):
        inside = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        if inside.keys() >= set(own):
            return inside, [name for name in weights if not name.startswith(prefix)]
    return weights, []


def _left_behind(surplus: set[str], weights: dict[str, Tensor], recorded: int | None) -> str | None:
    """Return the layer of surplus names if it is the classifier of the classes that the file records."""
    layers = {name.rpartition(".")[0] for name in surplus}
    if recorded is None or len(layers) != 1:
        return None
    [layer] = layers
    parts = {name.removeprefix(f"{layer}."): weights[name] for name in surplus}
    if not {"weight"} <= parts.keys() <= {"weight", "bias"} or parts["weight"].dim() != 2:
        return None
    return layer if all(len(tensor) == recorded for tensor in parts.values()) else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
