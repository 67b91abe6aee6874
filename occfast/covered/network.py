"""The network that ships with the package, and its file.

It is a small :class:`~occfast.pdsn.segmentation.UNet`, the network of pdsn-landmarks, on faces of 64×64 pixels.
``python -m tools.covered`` trains it; ``card.md`` beside it says on what, and how well it does.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError
from ..models.tensor_files import check_kinds, read_tensors, write_tensors
from ..pdsn.segmentation import UNet
from .rejection import RejectionModel

#: The network that ships with the package.
WEIGHTS = Path(__file__).parent / "weights.safetensors"


def save_network(path: str | os.PathLike[str], network: UNet, rejection: RejectionModel) -> Path:
    """Write a network in half precision, with the model of rejection that was fitted to its estimates."""
    half = {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    about = {"kind": "coverage", "width": network.width, "rejection": rejection.as_dict()}
    return write_tensors(path, half, about)


def load_network(path: str | os.PathLike[str] | None = None) -> tuple[UNet, RejectionModel]:
    """Read a network and its model of rejection.

    Args:
        path: A file that :func:`save_network` wrote; None: the network of the package.

    Returns:
        The network, in ``eval`` mode on the CPU in float32, and the model of rejection.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file is damaged or of something else.
    """
    return _read(Path(path)) if path is not None else _shipped()


@cache
def _shipped() -> tuple[UNet, RejectionModel]:
    return _read(WEIGHTS)


def _read(path: Path) -> tuple[UNet, RejectionModel]:
    tensors, about = read_tensors(path)
    if about.get("kind") != "coverage":
        raise DataError(f"{path}: expected a network of occfast.covered, got other weights")
    if not all(t.isfinite().all() for t in tensors.values()):
        raise DataError(f"{path}: damaged network of occfast.covered (NaN or infinite weights)")
    try:
        network = UNet(3, width=about["width"])
        check_kinds(network.state_dict(), tensors)
        network.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
        rejection = RejectionModel.from_dict(about["rejection"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: damaged network of occfast.covered ({error})") from error
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, rejection


@torch.no_grad()
def covered_probability(network: UNet, faces: Tensor) -> Tensor:
    """Return the probability that each pixel is covered, float32 [N, 64, 64].

    Args:
        network: A network of :func:`load_network`.
        faces: Faces aligned to :data:`~occfast.covered.regions.TEMPLATE`, uint8 [N, 3, 64, 64].
    """
    place = next(network.parameters()).device
    inputs = network.normalize(faces.to(place)).contiguous(memory_format=torch.channels_last)
    logits: Tensor = network(inputs)
    return logits[:, 0].sigmoid().cpu()
