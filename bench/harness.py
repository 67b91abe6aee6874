"""Record of the environment and files of results, shared by all benchmarks."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from occfast import __version__
from occfast.native import build
from occfast.native.processor import model_name

ROOT = Path(__file__).resolve().parent.parent
#: Default folder of the results.
RESULTS = ROOT / "bench" / "results"
_CARD = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
    "ecc.mode.current",
    "mig.mode.current",
)


def environment(*packages: str, device: str = "cpu") -> dict[str, Any]:
    """Record the environment of a result.

    Args:
        packages: Further packages whose versions matter, such as peers; missing packages are left out.
        device: "cpu" or "cuda".

    Returns:
        The command, the date, the device and its properties, PyTorch's number of threads, and versions.
    """
    names = ("torch", "numpy", *packages)
    found: dict[str, Any] = {
        "command": command(),
        "date": date.today().isoformat(),
        "device": device,
        "processor": processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {"occfast": __version__, **{name: version for name in names if (version := installed(name))}},
    }
    return found | (_gpu() if device == "cuda" else {})


def _gpu() -> dict[str, Any]:
    card = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {
        "gpu": card.name,
        "capability": f"{card.major}.{card.minor}",
        "sms": card.multi_processor_count,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": build.nvcc(),
    }
    if smi := shutil.which("nvidia-smi"):
        query = [smi, f"--query-gpu={','.join(_CARD)}", "--format=csv,noheader"]
        asked = subprocess.run(query, capture_output=True, text=True, timeout=30)
        if asked.returncode == 0 and asked.stdout.strip():
            values = [value.strip() for value in asked.stdout.splitlines()[0].split(",")]
            found["nvidia_smi"] = dict(zip(_CARD, values, strict=False))
    return found


def command() -> str:
    """Return the command line of this process as a user types it: ``python -m bench.sweep --quick``."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = main.name.removesuffix(".__main__") if main else Path(sys.argv[0]).stem
    return " ".join(["python -m", name, *sys.argv[1:]])


def processor() -> str:
    """Return the processor's name, or the architecture if the system does not state a name."""
    return model_name() or platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None if it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write(path: Path, result: dict[str, Any], text: str | None = None) -> None:
    """Write a result as JSON, and ``text`` as Markdown beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    if text is not None:
        path.with_suffix(".md").write_text(text)


def caption(result: dict[str, Any]) -> str:
    """Return one line that says how a result was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    device = result.get("gpu") or f"{result['processor']} ({result['instruction_set']}), {result['threads']} threads"
    return f"`{result['command']}`, {result['date']}, {device}, {versions}"


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights and running statistics for which a network's outputs differ between images.

    Args:
        model: Network, modified in place: weights as in He et al. 2015, running statistics near 1.
        seed: Random seed.

    Returns:
        The model, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(size: torch.Size | tuple[int, ...], scale: float) -> torch.Tensor:
        return scale * torch.randn(size, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.copy_(normal(module.weight.shape, (2.0 / module.weight[0].numel()) ** 0.5))
                if module.bias is not None:
                    module.bias.copy_(normal(module.bias.shape, 0.1))
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                size = (module.num_features,)
                module.weight.copy_(0.5 + torch.rand(size, generator=generator))
                module.bias.copy_(normal(size, 0.2))
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.copy_(normal(size, 0.2))
                module.running_var.copy_(0.5 + torch.rand(size, generator=generator))
    return model.eval()
