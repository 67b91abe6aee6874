"""Trained networks as files: weights with what is needed to use them.

``<name>.safetensors`` holds the network's state dict and nothing else, so that any tool loads it; its metadata tell
which network it is and how its images were prepared.  A head that training needed beside the network (the large margin
cosine classifier, say) is ``<name>-head.safetensors``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..losses.cosface import LargeMarginCosine
from ..models import NETWORKS, Preprocessing, build, features
from .checkpoint import read_state_dict, read_tensors, write_tensors

_KIND = "occfast.network"


@dataclass
class Trained:
    """A network ready for use, in ``eval`` mode.

    Attributes:
        network: gives logits, or features where it has no classifier of its own.
        preprocessing: how its images are prepared.
        spec: {"name", "classes", "arguments"} of :func:`occfast.models.build`.
        people: whom the classes stand for; empty where there is no classifier.
        head: features to logits; None where the network has its own classifier or none.
        about: what else is known: stage, loss, step, epoch, validation.
    """

    network: nn.Module
    preprocessing: Preprocessing
    spec: dict[str, Any]
    people: list[str] = field(default_factory=list)
    head: nn.Module | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def embed(self, images: Tensor) -> Tensor:
        """Features [N, D] of images as they are stored, uint8 [N, C, H, W]; not normalized."""
        return features(self.network)(self.preprocessing(images))

    def classifier(self) -> nn.Module:
        """Prepared images to logits [N, K].  Raises ValueError where nothing classifies."""
        if self.head is not None:
            return _Classifier(self.network, self.head).eval()
        if self.spec.get("classes") is None:
            raise ValueError("classifier: expected a network that was trained to classify, this one gives features")
        return self.network

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``path`` (``.safetensors``), and its head beside it."""
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


def load(path: str | os.PathLike[str], *, trust: bool = False) -> Trained:
    """Read what :meth:`Trained.save` wrote.

    Args:
        path: ``.safetensors``.
        trust: also build networks of the kind ``module:function``, which runs that module's code.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged, or weights without a description (load those with :func:`load_into`).
        ValueError: the network is ``module:function`` and not trusted.
    """
    state, metadata = read_tensors(path)
    if metadata.get("kind") != _KIND:
        raise DataError(f"{path}: weights that don't tell of which network; build it and use load_into")
    try:
        spec, people, about = metadata["network"], list(metadata["people"]), dict(metadata["about"])
        name, classes, arguments = str(spec["name"]), spec["classes"], dict(spec["arguments"])
        preprocessing = Preprocessing.from_json(json.dumps(metadata["preprocessing"]), str(path))
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a whole description of a network ({error})") from error
    if name not in NETWORKS and not trust:
        raise ValueError(f"{path}: is for the network {name}, whose code runs only with trust=True (--trust)")
    with torch.random.fork_rng(devices=[]):
        network = build(name, classes, channels=preprocessing.channels, size=preprocessing.size, **arguments)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as it was trained
    load_into(network, state, str(path))
    head = _load_head(_head_of(Path(path))) if about.get("head") else None
    return Trained(network.eval(), preprocessing, spec, people, head, about)


def _load_head(path: Path) -> nn.Module:
    state, metadata = read_tensors(path)
    try:
        classes, size = state["weight"].shape
        if metadata["kind"] == "LargeMarginCosine":
            head: nn.Module = LargeMarginCosine(size, classes, scale=metadata["scale"], margin=metadata["margin"])
        else:
            head = nn.Linear(size, classes)
        head.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: not a head of a network ({error})") from error
    return head.eval()


def load_head(head: nn.Module, start: str | os.PathLike[str]) -> bool:
    """Load the head that was saved beside the weights ``start``, if there is one: whether there was.

    Raises ValueError where it is for other people or another network.
    """
    path = _head_of(Path(start))
    if not path.is_file():
        return False
    load_into(head, read_tensors(path)[0], str(path))
    return True


def load_into(
    network: nn.Module,
    weights: str | os.PathLike[str] | dict[str, Tensor],
    where: str = "weights",
    *,
    fresh_classifier: bool = False,
) -> list[str]:
    """Load a state dict into a network; names and shapes must agree.

    Args:
        network: changed in place.
        weights: file (:func:`~occfast.train.checkpoint.read_state_dict`) or state dict.
        where: names a state dict in errors.
        fresh_classifier: leave the network's own classifier as it is, whatever the weights have.

    Returns:
        Names in the weights that were not used: those of a classifier that the network (one of this package) was
        built without, or that stays fresh.

    Raises:
        ValueError: naming what is missing, what is too much and whose shape differs.
    """
    if not isinstance(weights, dict):
        where = os.fspath(weights)
        weights = read_state_dict(weights)
    own = network.state_dict()
    name = getattr(network, "classifier_name", "")
    replaced = bool(name) and (fresh_classifier or getattr(network, name) is None)
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
    if problems:
        raise ValueError(f"{where}: don't fit the network: {'; '.join(problems)}")
    network.load_state_dict(given)
    return unused


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
