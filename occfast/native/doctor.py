"""Check what the native layer needs on this machine, and say how to fix what is missing."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import NativeUnavailable
from . import build, loader


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
    """Check everything that a build needs, without building."""
    import torch

    from .._version import __version__

    findings = [
        Finding("occfast", "ok", f"{__version__} in {Path(__file__).resolve().parent.parent}"),
        Finding("Python", "ok", f"{platform.python_version()} on {platform.machine()}"),
        Finding("PyTorch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        _program("C++ compiler", build.compiler(), "install one (Debian: apt-get install g++) or set CXX"),
        _program("ninja", build.ninja(), "pip install ninja"),
        Finding("instruction set", "ok", f"-march={build.march()}"),
        *_cuda(),
        _cache(),
    ]
    try:
        requested = loader.requested()
    except ValueError as error:
        return [*findings, Finding("backend", "missing", str(error), "unset OCCFAST_BACKEND")]
    if requested == "reference":
        findings.append(Finding("CPU kernels", "ok", "not used: OCCFAST_BACKEND=reference"))
    elif any(finding.name == "cache" and finding.status != "ok" for finding in findings):
        findings.append(Finding("CPU kernels", "missing", "the cache can't be used", "see there"))
    elif loader.is_ready("cpu"):
        findings.append(Finding("CPU kernels", "ok", "compiled"))
    elif reason := loader.missing("cpu"):
        findings.append(Finding("CPU kernels", "missing", reason, "or set OCCFAST_BACKEND=reference"))
    else:
        findings.append(Finding("CPU kernels", "ok", "compiled at first use; `occfast build` does it now"))
    return findings


def _program(name: str, path: str | None, cure: str) -> Finding:
    if path is None:
        return Finding(name, "missing", "none on the path", cure)
    try:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, "missing", f"{path} does not run: {error}", cure)
    lines = [line for line in shown.splitlines() if line.strip()]
    version = next((line for line in lines if "release" in line), lines[0] if lines else "")
    return Finding(name, "ok", f"{path} ({version.strip()})")


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
    if build.nvcc() is None:
        nvcc = Finding("nvcc", "absent", "none on the path", "for a GPU install the CUDA toolkit or set CUDA_HOME")
    else:
        nvcc = _program("nvcc", build.nvcc(), "install the CUDA toolkit or set CUDA_HOME")
    return [in_torch, gpu, nvcc]


def _cache() -> Finding:
    try:
        folder = loader.cache_root()
    except NativeUnavailable as error:
        return Finding("cache", "missing", str(error), "set OCCFAST_CACHE to a folder that can be written")
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Finding("cache", "missing", f"{folder} can't be written", "set OCCFAST_CACHE to a folder that can")
    return Finding("cache", "ok", str(folder))
