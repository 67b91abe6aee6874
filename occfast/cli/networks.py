"""Networks from what a user names: files are read without running code from them, unless the user trusts them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..data import FaceDataset
    from ..models import Preprocessing


import dataclasses
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..models import Preprocessing


@dataclasses.dataclass
class Loaded:
    """A network in ``eval`` mode, with what its file says of it.

    Attributes:
        preprocessing: how its images are prepared; None where nothing says so.
        people: whom its classes stand for; None where nothing says so.
    """

    network: nn.Module
    preprocessing: Preprocessing | None = None
    people: list[str] | None = None


def load_any(
    what: str,
    *,
    network: str | None = None,
    classes: int | None = None,
    channels: int = 1,
    size: tuple[int, int] = (100, 100),
    trust: bool = False,
) -> Loaded:
    """Load a network.

    Args:
        what: weights with their description (``.safetensors``); weights alone (``.safetensors``, ``.pt``,
            ``.pth``), for ``network``; TorchScript (``.pt``); a pickled module (``.pt``, trusted only); or
            ``module:function``, which the user names and so wants run.
        network: that weights alone are of, for :func:`occfast.models.build`; with classes, channels and size.
        trust: whether code from a file may run: a pickle, or the ``module:function`` that a description names.

    Raises:
        FileNotFoundError, DataError: there is none, or it is damaged.
        ValueError: what can't be told or isn't trusted; the message says what to do.
    """
    from ..models import build
    from ..train.checkpoint import read_tensors
    from ..train.weights import load, load_into

    path = Path(what)
    if ":" in what and not path.exists():
        return Loaded(build(what, classes, channels=channels, size=size).eval())
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {what}")
    if path.suffix == ".safetensors" and network is None:
        if not read_tensors(path)[1]:
            raise ValueError(f"{what}: weights that don't tell of which network; name it with --network")
        trained = load(path, trust=trust)
        whole = trained.network if trained.head is None else trained.classifier()
        return Loaded(whole, trained.preprocessing, trained.people or None)
    if network is not None:
        built = build(network, classes, channels=channels, size=size)
        load_into(built, path)
        return Loaded(built.eval())
    if _is_torchscript(path):
        return Loaded(_torchscript(path))
    return Loaded(_pickled(path, trust))


def _is_torchscript(path: Path) -> bool:
    """Whether an archive has TorchScript's code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _torchscript(path: Path) -> nn.Module:
    import torch

    from ..errors import DataError

    try:
        loaded: nn.Module = torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise DataError(f"{path}: not a whole TorchScript file ({' '.join(str(error).split())[:200]})") from error
    return loaded.eval()


def _pickled(path: Path, trust: bool) -> nn.Module:
    import torch
    from torch import nn

    from ..errors import DataError
    from ..train.checkpoint import read_state_dict

    if not trust:
        try:
            read_state_dict(path)
        except DataError as error:
            raise DataError(
                f"{error}; a pickled module runs code when it is loaded: --trust, if you know where it is from"
            ) from None
        raise ValueError(f"{path}: weights that don't tell of which network; name it with --network")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # what a damaged archive provokes is not one kind
        raise DataError(f"{path}: can't be unpickled ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, nn.Module):
        raise ValueError(
            f"{path}: expected a pickled torch.nn.Module, got {type(content).__name__}; "
            "name the network of weights with --network"
        )
    return content.eval()


def embedding(network: nn.Module) -> nn.Module:
    """The module that gives a network's features, traceable as the network is."""
    from torch import nn

    from ..models import features

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            return features(self.network)(images)

    return Embedding().eval()


def load_network(weights: Path, trust: bool, device: str) -> tuple[Callable[[Tensor], Tensor], Preprocessing]:
    """What takes prepared images to features, on its device, and how images are prepared."""
    import torch

    from .. import checks
    from ..models import features
    from ..train.weights import load

    trained = load(weights, trust=trust)
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return features(trained.network.to(checks.device(wanted))), trained.preprocessing


def prepared(source: FaceDataset, preprocessing: Preprocessing, template: str | None, resize: bool) -> FaceDataset:
    """The faces as the network expects them: aligned as its weights say, or resized where that was asked for."""
    from ..data import Aligned, Alignment
    from ..data.align import Template
    from ..data.resize import Resized

    gray = preprocessing.color == "gray"
    if resize and template is not None:
        raise ValueError("--resize: goes without --template")
    if resize:
        return Resized(source, preprocessing.size, gray)
    if template is not None:
        return Aligned(source, template, gray=gray, size=preprocessing.size)
    if preprocessing.alignment is None or source.alignment is not None:
        return source  # embed refuses another size, colors or alignment
    how = Alignment.read(preprocessing.alignment, "weights")
    assert how is not None
    return Aligned(source, Template(how.template, how.size, how.points, how.transform), gray=gray, border=how.border)
