"""Check what the native layer needs on this machine, and say how to fix what is missing."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import NativeUnavailable
from . import build, loader, prebuilt


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    ``status`` is "ok", "missing" (something that is needed) or "absent" (something optional, such as a GPU).
    """

    name: str
    status: str
    found: str
    cure: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the fields as a dictionary."""
        return asdict(self)


def examine() -> list[Finding]:
    """Check everything that the kernels need, without building."""
    import torch

    from .._version import __version__

    findings = [
        Finding("occfast", "ok", f"{__version__} in {Path(__file__).resolve().parent.parent}"),
        Finding("Python", "ok", f"{platform.python_version()} on {platform.machine()}"),
        Finding("PyTorch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads"),
    ]
    try:
        path, reason = prebuilt.choose("cpu")
    except NativeUnavailable as error:
        refused = Finding("CPU kernels", "missing", str(error), "unset OCCFAST_MARCH or choose another variant")
        return [*findings, *_cuda(), refused]
    if path is None:
        findings += [Finding("prebuilt kernels", "absent", reason), *_build_tools("missing"), _cache("missing")]
    else:
        findings += [Finding("prebuilt kernels", "ok", reason), *_build_tools("absent"), _cache("absent")]
    findings += _cuda()
    cache = next(finding for finding in findings if finding.name == "cache")
    try:
        requested = loader.requested()
    except ValueError as error:
        return [*findings, Finding("backend", "missing", str(error), "unset OCCFAST_BACKEND")]
    if requested == "reference":
        findings.append(Finding("CPU kernels", "ok", "not used: OCCFAST_BACKEND=reference"))
    elif path is not None:
        findings.append(Finding("CPU kernels", "ok", f"prebuilt for {reason}"))
    elif cache.status != "ok":
        findings.append(Finding("CPU kernels", "missing", "the cache can't be used", "see there"))
    elif loader.is_ready("cpu"):
        findings.append(Finding("CPU kernels", "ok", "compiled"))
    elif found := loader.missing("cpu"):
        findings.append(Finding("CPU kernels", "missing", found, "or set OCCFAST_BACKEND=reference"))
    else:
        findings.append(Finding("CPU kernels", "ok", "compiled at first use; `occfast build` does it now"))
    return findings


def _build_tools(otherwise: str) -> list[Finding]:
    """Return what compiles the CPU kernels; ``otherwise`` is the status of a compiler that is missing."""
    command = build.compiler_command()
    if not command:
        cure = "install one (Debian: apt-get install g++) or set CXX"
        needed = "none on the path" if otherwise == "missing" else "none on the path; not needed"
        return [Finding("C++ compiler", otherwise, needed, cure if otherwise == "missing" else "")]
    found = _program("C++ compiler", command, "install one (Debian: apt-get install g++) or set CXX")
    return [found, Finding("instruction set", "ok", f"-march={build.march()}")] if otherwise == "missing" else [found]


def _program(name: str, command: list[str], cure: str) -> Finding:
    version = build.version_of(*command)
    if version.startswith("unknown"):
        return Finding(name, "missing", f"{command[0]} does not run: {version}", cure)
    return Finding(name, "ok", f"{command[0]} ({version})")


def _cuda() -> list[Finding]:
    import torch

    if torch.version.cuda is None:
        in_torch = Finding("CUDA in PyTorch", "absent", "a CPU build", "for a GPU install a CUDA build of torch")
    else:
        in_torch = Finding("CUDA in PyTorch", "ok", torch.version.cuda)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        gpu = Finding("GPU", "ok", ", ".join(names))
    else:
        gpu = Finding("GPU", "absent", "PyTorch sees none")
    if (program := build.nvcc()) is None:
        nvcc = Finding("nvcc", "absent", "none on the path", "for a GPU install the CUDA toolkit or set CUDA_HOME")
    else:
        nvcc = _program("nvcc", [program], "install the CUDA toolkit or set CUDA_HOME")
    return [in_torch, gpu, nvcc]


def _cache(otherwise: str) -> Finding:
    """Return the state of the cache; ``otherwise`` is the status of one that can't be used."""
    try:
        folder = loader.cache_root()
    except NativeUnavailable as error:
        return Finding("cache", otherwise, str(error), "set OCCFAST_CACHE to a folder that can be written")
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        return Finding("cache", otherwise, f"{folder} can't be written", "set OCCFAST_CACHE to a folder that can")
    return Finding("cache", "ok", str(folder))
