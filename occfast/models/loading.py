"""One door for recognizers: any kind of file, read without running code from it unless the user trusts it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..files import read_text
from .preprocessing import Preprocessing
from .presets import preset_named
from .registry import build, features, importing
from .tensor_files import HoldsObjects, may_be_pickle, read_about, read_state_dict
from .weights import load as load_weights
from .weights import load_into

#: Endings of files that hold a network or its weights, in the order in which a folder is searched.
ENDINGS = (".safetensors", ".onnx", ".pt2", ".pt", ".pth", ".bin")
_UNKNOWN = "no architecture is recorded in this file; name it with network= (--network)"


@dataclass
class Recognizer:
    """A network in evaluation mode, with what its file says about it.

    Attributes:
        network: Maps images [N, C, H, W] to logits or features.
        kind: "weights", "onnx", "onnx, dense" (run by ONNX Runtime), "torchscript", "torch.export", "pickle" or
            "function".
        preprocessing: Preparation of its images, as the file records it or a preset states it; None: unknown.
        template: Alignment of the faces, where ``preprocessing`` comes from a preset; else None.
        people: Names of its classes; None: unknown.
        channels: Number of input channels that the file states, if it does.
        size: (height, width) of the input that the file states, if it does.
        note: What limits the network, such as an ONNX operator that can't be followed; "": nothing.
    """

    network: nn.Module
    kind: str
    preprocessing: Preprocessing | None = None
    template: str | None = None
    people: list[str] | None = None
    channels: int | None = None
    size: tuple[int, int] | None = None
    note: str = ""

    @property
    def embed(self) -> Callable[[Tensor], Tensor]:
        """Function from prepared images [N, C, H, W] to features [N, D]."""
        return features(self.network)

    def embedding(self) -> nn.Module:
        """Return the network as a module whose output is the features; it can be traced if the network can."""
        return _Embedding(self.network).eval()

    def to(self, device: torch.device) -> Recognizer:
        """Move the network to a device; raise ValueError for a network that ONNX Runtime runs on the CPU."""
        if self.kind == "onnx, dense" and device.type != "cpu":
            raise ValueError(f"device: this ONNX network runs on the CPU only ({self.note}), got {device}")
        self.network.to(device)
        return self

    def prepare(self, shape: tuple[int, ...], **given: Any) -> Preprocessing:
        """Return the preparation of images for this network.

        Args:
            shape: Shape [C, H, W] of the data's images: their size and colors are those of a network whose file
                states neither.
            **given: Attributes of :class:`Preprocessing` in place of the recorded ones.

        Raises:
            ValueError: The number of channels is not that of the network's input.
        """
        if self.preprocessing is not None:
            found = replace(self.preprocessing, **given)
        else:
            channels = self.channels or shape[0]
            color = "gray" if channels == 1 else "RGB"
            found = Preprocessing(**{"size": self.size or (shape[1], shape[2]), "color": color, **given})
        if self.channels is not None and found.channels != self.channels:
            raise ValueError(f"color: the network takes {self.channels} channels, got {found.color!r}")
        return found


class _Embedding(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return features(self.network)(images)


def load(
    model: str | Path,
    *,
    network: str | None = None,
    classes: int | None = None,
    channels: int = 3,
    size: tuple[int, int] = (112, 112),
    preset: str | None = None,
    trust: bool = False,
) -> Recognizer:
    """Load a recognizer.

    Args:
        model: One of:

            - weights that ``occfast train`` wrote (``.safetensors``);
            - ONNX (``.onnx``), read as a ``torch.fx`` module; a file with an operator that occfast does not follow is
              run by ONNX Runtime instead (``note`` says which);
            - TorchScript (``.pt``);
            - a program of ``torch.export`` (``.pt2``), with ``trust``, since such a file may hold pickled objects;
            - a state dict of another program (``.safetensors``, ``.pt``, ``.pth``, ``.bin``), with ``network``;
            - a pickled module (``.pt``, ``.pth``), with ``trust``;
            - a folder that holds one of these, such as a snapshot or a cache folder of the Hugging Face Hub;
            - ``module:function``, which returns a module and runs since the user names it.
        network: Architecture of weights that do not record it, for :func:`occfast.models.build`.
        classes, channels, size: Arguments of that architecture; ``channels`` and ``size`` also for ONNX files that
            leave them open.
        preset: Name in :data:`~occfast.models.PRESETS`, for files that do not record how images are prepared.
        trust: Whether code from a file may run: a pickle, or a ``module:function`` that a description names.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file is damaged or of another kind.
        MissingPackage: The file needs a package that is not installed.
        ValueError: The architecture is unknown, the file needs ``trust``, a folder holds several networks, or
            ``preset`` contradicts what the file records.
    """
    chosen = None if preset is None else preset_named(preset)
    if chosen is not None:
        channels, size = chosen.preprocessing.channels, chosen.preprocessing.size
    found = _load(str(model), network, classes, channels, size, trust)
    if chosen is None:
        return found
    if found.preprocessing is not None:
        unaligned = chosen.template is not None and found.preprocessing.alignment is None
        raise ValueError(
            f"preset: only valid for files that do not record how images are prepared; {model} does"
            + (f", but for the alignment: align the faces to {chosen.template} (--template)" if unaligned else "")
        )
    return replace(found, preprocessing=chosen.preprocessing, template=chosen.template)


def _load(
    model: str, network: str | None, classes: int | None, channels: int, size: tuple[int, int], trust: bool
) -> Recognizer:
    path = Path(model)
    if ":" in model and not path.exists():
        return Recognizer(build(model, classes, channels=channels, size=size).eval(), "function")
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {model}")
    suffix = path.suffix.lower()
    names = [] if suffix in (".onnx", ".safetensors") else _archive(path)
    scripted = any("/code/" in name for name in names)
    exported = suffix == ".pt2" or any(name.endswith("models/model.json") for name in names)
    if network is not None:
        if suffix == ".onnx" or scripted or exported:
            kind = "an ONNX" if suffix == ".onnx" else "a TorchScript" if scripted else "a torch.export"
            raise ValueError(f"network: {kind} file holds its own architecture, got {network!r} with {model}")
        built = build(network, classes, channels=channels, size=size)
        try:
            load_into(built, path)
        except HoldsObjects as error:
            raise DataError(
                f"{error}; a pickled module has its own architecture and runs code when it is loaded: leave out "
                "network= (--network) and give trust=True (--trust), if you know where it is from"
            ) from None
        return Recognizer(built.eval(), "weights", channels=channels, size=size)
    if suffix == ".onnx":
        return _onnx(path, channels, size)
    if suffix == ".safetensors":
        if not read_about(path):
            raise ValueError(f"{path}: {_UNKNOWN}")
        trained = load_weights(path, trust=trust)
        whole = trained.network if trained.head is None else trained.classifier()
        return Recognizer(whole, "weights", trained.preprocessing, people=trained.people or None)
    if scripted:
        return Recognizer(_torchscript(path), "torchscript")
    if exported:
        return Recognizer(_exported(path, trust), "torch.export")
    return Recognizer(_pickled(path, trust), "pickle")


def _in_folder(folder: Path) -> Path:
    """Return the only network in a folder, also in a cache folder of the Hugging Face Hub."""
    reference = folder / "refs" / "main"
    if reference.is_file():  # a cache folder: refs/main names the folder below snapshots/
        name = read_text(reference).strip()
        if not name.isalnum():
            raise DataError(f"{reference}: expected the name of a snapshot, got {name[:80]!r}")
        folder = folder / "snapshots" / name
    elif (folder / "snapshots").is_dir():
        snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
        folder = snapshots[0] if len(snapshots) == 1 else folder
    for ending in ENDINGS:
        found = sorted(folder.glob(f"*{ending}"))
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:5])
            raise ValueError(f"model: {folder} holds several networks ({names}); name one of the files")
        if found:
            return found[0]
    raise FileNotFoundError(f"there is no network in {folder}: expected a file with the ending {', '.join(ENDINGS)}")


def _archive(path: Path) -> list[str]:
    """Return the names in a zip archive; [] for any other file."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise DataError(f"{path}: a damaged archive ({error})") from error


def _onnx(path: Path, channels: int, size: tuple[int, int]) -> Recognizer:
    """Read an ONNX file as a module, or run it by ONNX Runtime if an operator can't be followed."""
    from .onnx import OnnxNetwork, UnsupportedOperator
    from .onnx.file import read_file
    from .onnx.module import as_module

    file = read_file(path)
    stated_channels, *stated_size = file.dimensions
    try:
        module = as_module(
            file, channels=channels if stated_channels is None else None, size=size if None in stated_size else None
        )
    except UnsupportedOperator as error:
        graph = OnnxNetwork(path)
        about = {"channels": graph.channels, "size": graph.size}
        return Recognizer(graph, "onnx, dense", graph.preprocessing, note=str(error), **about)  # type: ignore[arg-type]
    return Recognizer(module, "onnx", module.preprocessing, channels=module.channels, size=module.size)


def _torchscript(path: Path) -> nn.Module:
    try:
        with path.open("rb") as file:  # torch.jit.load takes no path that is not UTF-8
            loaded: nn.Module = torch.jit.load(file, map_location="cpu")
    except RuntimeError as error:
        raise DataError(f"{path}: not a complete TorchScript file ({' '.join(str(error).split())[:200]})") from error
    return loaded.eval()


def _exported(path: Path, trust: bool) -> nn.Module:
    if not trust:
        raise ValueError(
            f"{path}: a program of torch.export may hold pickled objects, which run code when they are loaded; give "
            "trust=True (--trust), if you know where it is from"
        )
    try:
        module = torch.export.load(path).module()
    except Exception as error:  # a damaged archive may raise anything
        raise DataError(f"{path}: not a program of torch.export ({' '.join(str(error).split())[:200]})") from error
    for name in ("train", "eval"):  # PyTorch's raise; a program has one mode, so that switching changes nothing
        vars(module).pop(name, None)
    return module.eval()


def _pickled(path: Path, trust: bool) -> nn.Module:
    if not trust:
        try:
            read_state_dict(path)
        except DataError as error:
            if not may_be_pickle(path):
                raise
            raise DataError(
                f"{error}; a pickled module runs code when it is loaded: give trust=True (--trust), if you know where "
                "it is from"
            ) from None
        raise ValueError(f"{path}: {_UNKNOWN}")
    try:
        content: Any = importing(lambda: torch.load(path, map_location="cpu", weights_only=False))
    except Exception as error:  # a damaged archive may raise anything
        raise DataError(f"{path}: can't be unpickled ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, nn.Module):
        raise ValueError(
            f"{path}: expected a pickled torch.nn.Module, got {type(content).__name__}; for weights, name the "
            "architecture with network= (--network)"
        )
    return content.eval()
