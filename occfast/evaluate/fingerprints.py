"""Fingerprints of networks and images: they decide whether stored features may be used again."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .._version import __version__
from ..data import FaceDataset
from ..data.digests import image_digest
from ..progress import Report
from ..progress import progress as show_progress

#: Packages whose code is identified by their version.
_BY_VERSION = ("torch", "numpy")


def module_of(model: Callable[[Tensor], Tensor]) -> nn.Module | None:
    """Return the module that a model is, or whose bound method it is; None for other callables."""
    module = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return module if isinstance(module, nn.Module) else None


def fingerprint(model: Callable[[Tensor], Tensor]) -> str | None:
    """Return a SHA-256 digest (16 hexadecimal digits) of a module's weights and their names.

    Returns:
        The digest, or None for a callable that is neither a module nor a module's bound method.
    """
    module = module_of(model)
    if module is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()[:16]


def code_fingerprint(model: Callable[[Tensor], Tensor]) -> str | None:
    """Return a SHA-256 digest (16 hexadecimal digits) of how a module computes its output from its weights.

    It covers the classes of all submodules with their settings, the bytecode of their methods and of the functions that
    these call, hooks, the code of TorchScript, and the versions of PyTorch and of this package.

    Returns:
        The digest, or None for a callable that is neither a module nor a module's bound method.
    """
    module = module_of(model)
    if module is None:
        return None
    code = _Code()
    code.add(f"torch {torch.__version__}, occfast {__version__}")
    if module is not model:
        code.function(getattr(model, "__func__", model))
    for name, part in module.named_modules():
        code.add(f"{name} {type(part).__module__}.{type(part).__qualname__} {part.extra_repr()}")
        if isinstance(part, torch.jit.ScriptModule):
            code.add(str(getattr(part, "inlined_graph", "")))
            continue
        for attribute, value in sorted(vars(part).items()):
            if attribute != "training" and not attribute.startswith("_"):
                code.setting(attribute, value)
        for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
            code.function(hook)
        code.klass(type(part))
    return code.digest.hexdigest()[:16]


class _Code:
    """Digest of code; each class and function is added once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.known: set[int] = set()

    def add(self, text: str) -> None:
        self.digest.update(text.encode())
        self.digest.update(b"\0")

    def setting(self, name: str, value: object) -> None:
        if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
            self.add(name)
            self.function(value)
        elif _is_plain(value):
            self.add(f"{name} = {_text(value)}")

    def klass(self, cls: type) -> None:
        if id(cls) in self.known or _by_version(cls.__module__):
            return
        self.known.add(id(cls))
        for base in cls.__mro__[1:]:
            self.klass(base)
        for name, value in sorted(vars(cls).items()):
            inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            self.setting(name, inner)

    def function(self, function: object) -> None:
        function = getattr(function, "__func__", function)
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        self.add(name)
        if (
            id(function) in self.known
            or not isinstance(function, types.FunctionType)
            or _by_version(function.__module__)
        ):
            return
        self.known.add(id(function))
        self.add(_text((function.__defaults__, function.__kwdefaults__)))
        self._bytecode(function.__code__)
        for cell in function.__closure__ or ():
            self.setting("closure", cell.cell_contents)
        for used in _names(function.__code__):
            if used in function.__globals__:
                self.setting(used, function.__globals__[used])

    def _bytecode(self, code: types.CodeType) -> None:
        self.digest.update(code.co_code)
        self.add(f"{code.co_names} {code.co_varnames}")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._bytecode(constant)
            else:
                self.add(_text(constant))


def _by_version(module: str | None) -> bool:
    return (module or "builtins").partition(".")[0] in (*_BY_VERSION, "builtins")


def _names(code: types.CodeType) -> list[str]:
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return sorted({*code.co_names, *inner})


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list | frozenset | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | complex | str | bytes)


def _text(value: object) -> str:
    # The order of a set depends on the process.
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_text, value))) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_text, value)) + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_text(k)}: {_text(v)}" for k, v in value.items())) + "}"
    return repr(value) if _is_plain(value) else type(value).__qualname__


def image_digests(dataset: FaceDataset, indices: Iterable[int], *, progress: bool | Report = True) -> dict[int, bytes]:
    """Compute a SHA-256 digest of each image (see :func:`image_digest`) with its name and landmarks."""
    wanted = sorted(set(indices))
    found: dict[int, bytes] = {}
    with show_progress("checking images", "images", progress) as report:
        report(0, len(wanted))
        for k in wanted:
            digest = hashlib.sha256(dataset.names[k].encode())
            digest.update(image_digest(dataset, k))
            points = dataset.landmarks_of(k)
            digest.update(b"" if points is None else points.double().contiguous().numpy().tobytes())
            found[k] = digest.digest()
            report(len(found), len(wanted))
    return found
