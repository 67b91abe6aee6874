"""Networks that a user names. Files are read without running code from them, unless the user trusts them."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from ..data import FaceDataset
    from ..models import Preprocessing


@dataclasses.dataclass
class Loaded:
    """Network in evaluation mode, with the description in its file.

    Attributes:
        network: The network.
        preprocessing: How images become its input; None if the file does not record it.
        people: Names of its classes; None if the file does not record them.
    """

    network: nn.Module
    preprocessing: Preprocessing | None = None
    people: list[str] | None = None


def load_any(
    model: str,
    *,
    network: str | None = None,
    classes: int | None = None,
    channels: int = 1,
    size: tuple[int, int] = (100, 100),
    trust: bool = False,
) -> Loaded:
    """Load a network.

    Args:
        model: Weights that record their network (``.safetensors``); other weights (``.safetensors``, ``.pt``, ``.pth``)
            with ``network``; TorchScript (``.pt``); a pickled module (``.pt``, with ``trust``); or ``module:function``,
            which runs since the user names it.
        network: Architecture of weights that do not record it, for :func:`occfast.models.build`.
        classes, channels, size: Arguments of that architecture.
        trust: Whether code from a file may run: a pickle, or a ``module:function`` that a description names.

    Raises:
        FileNotFoundError: There is no file.
        DataError: It is damaged or of another kind.
        ValueError: The architecture is not known, or the file is not trusted; the message says what to do.
    """
    from ..models import build
    from ..train.checkpoint import read_tensors
    from ..train.weights import load, load_into

    path = Path(model)
    if ":" in model and not path.exists():
        return Loaded(build(model, classes, channels=channels, size=size).eval())
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {model}")
    if path.suffix == ".safetensors" and network is None:
        if not read_tensors(path)[1]:
            raise ValueError(f"{model}: no architecture is recorded in this file; name it with --network")
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
    """Return whether a file is an archive with TorchScript code."""
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
        raise DataError(f"{path}: not a complete TorchScript file ({' '.join(str(error).split())[:200]})") from error
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
                f"{error}; a pickled module runs code when it is loaded: give --trust, if you know where it is from"
            ) from None
        raise ValueError(f"{path}: no architecture is recorded in this file; name it with --network")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a damaged archive may raise anything
        raise DataError(f"{path}: can't be unpickled ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, nn.Module):
        raise ValueError(
            f"{path}: expected a pickled torch.nn.Module, got {type(content).__name__}; "
            "for weights, name the architecture with --network"
        )
    return content.eval()


def embedding(network: nn.Module) -> nn.Module:
    """Return a module that computes a network's features and can be traced if the network can."""
    from torch import nn

    from ..models import features

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            return features(self.network)(images)

    return Embedding().eval()


@dataclasses.dataclass
class Recognizer:
    """A network that gives features, on its device.

    Attributes:
        embed: Function of prepared images, float32 [B, C, H, W], that returns features [B, D].
        preprocessing: How images become the network's input.
    """

    embed: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing


def load_recognizer(
    model: str,
    shape: tuple[int, ...],
    *,
    network: str | None = None,
    classes: int | None = None,
    size: tuple[int, int] | None = None,
    color: str | None = None,
    mean: float | None = None,
    std: float | None = None,
    trust: bool = False,
    device: str = "auto",
) -> Recognizer:
    """Load a network for its features.

    Args:
        model: ONNX file (``.onnx``), or as in :func:`load_any`.
        shape: Shape of the data's images, [C, H, W]: the input of networks whose files don't describe it.
        network, classes, trust: See :func:`load_any`.
        size, color, mean, std: Preprocessing, in place of what the file describes.
        device: "auto", "cpu" or "cuda".
    """
    import torch

    from .. import checks
    from ..models import Preprocessing, features

    given: dict[str, Any] = {"size": size, "color": color, "mean": mean, "std": std}
    given = {name: value for name, value in given.items() if value is not None}
    plain = Preprocessing(**{"size": (shape[1], shape[2]), "color": "gray" if shape[0] == 1 else "RGB", **given})
    place = checks.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if Path(model).suffix.lower() == ".onnx":
        from ..models.onnx import OnnxNetwork

        if device == "cuda":
            raise ValueError("--device: ONNX networks run on the CPU, got cuda")
        graph = OnnxNetwork(model)
        if graph.preprocessing is not None:
            return Recognizer(graph, dataclasses.replace(graph.preprocessing, **given))
        return Recognizer(graph, plain if size or not graph.size else dataclasses.replace(plain, size=graph.size))
    loaded = load_any(model, network=network, classes=classes, channels=plain.channels, size=plain.size, trust=trust)
    preprocessing = plain if loaded.preprocessing is None else dataclasses.replace(loaded.preprocessing, **given)
    return Recognizer(features(loaded.network.to(place)), preprocessing)


def load_network(weights: Path, trust: bool, device: str) -> tuple[Callable[[Tensor], Tensor], Preprocessing]:
    """Load weights with their description; returns the function of prepared images and how images are prepared."""
    import torch

    from .. import checks
    from ..models import features
    from ..train.weights import load

    trained = load(weights, trust=trust)
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return features(trained.network.to(checks.device(wanted))), trained.preprocessing


def prepared(
    source: FaceDataset,
    preprocessing: Preprocessing,
    template: str | None,
    resize: bool,
    *,
    aligned: bool | None = None,
) -> FaceDataset:
    """Return the faces as the network expects them: aligned as its weights record, or resized on request.

    Args:
        source: The data set.
        preprocessing: How images become the network's input.
        template: Template to align to, in place of the recorded one.
        resize: Resize the images instead of aligning them.
        aligned: Whether the user states that the images are aligned already; they are then only resized. False refuses
            ``resize`` for weights that record an alignment; None doesn't.
    """
    from ..data import Aligned, Alignment
    from ..data.align import Template
    from ..data.resize import Resized

    gray = preprocessing.color == "gray"
    if (resize or aligned) and template is not None:
        raise ValueError(f"{'--aligned' if aligned else '--resize'}: not valid together with --template")
    how = Alignment.read(preprocessing.alignment, "weights")
    if resize and aligned is False and how is not None:
        raise ValueError(
            f"--resize: the weights expect faces aligned to {how.template}, and lose accuracy on others; leave "
            "--resize out to align them by landmarks, or give --aligned if these images are aligned already"
        )
    if resize or aligned:
        return Resized(source, preprocessing.size, gray=gray)
    if template is None and (how is None or source.alignment is not None):
        return source  # embed refuses another size, colors or alignment
    if source.landmarks is None:
        raise ValueError(
            "dataset: no landmarks to align by; find them with occfast data landmarks DATASET landmarks.csv, then give "
            "--landmarks landmarks.csv"
        )
    if template is not None:
        return Aligned(source, template, gray=gray, size=preprocessing.size)
    assert how is not None
    return Aligned(source, Template(how.template, how.size, how.points, how.transform), gray=gray, border=how.border)
