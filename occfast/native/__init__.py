"""Python side of the C++ and CUDA kernels in ``csrc/``."""

from __future__ import annotations

from ..errors import NativeUnavailable
from . import loader
from .build import Backend

__all__ = ["backend"]


def backend() -> dict[str, str | None]:
    """Return what runs the native ops, without building anything.

    Returns:
        Under "cpu" and "cuda": "native" (a module is loaded, prebuilt or cached), "native, built at first use",
        "reference" (the PyTorch twins) or None (not available). Under "reason": the reasons, in words.
    """
    import torch

    if loader.requested() == "reference":
        return {"cpu": "reference", "cuda": "reference", "reason": "OCCFAST_BACKEND=reference"}
    reasons: list[str] = []

    def state(name: Backend) -> str | None:
        if name == "cuda" and not torch.cuda.is_available():
            why = "this PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees no GPU"
            reasons.append(f"cuda: {why}")
            return None
        try:
            ready = loader.is_ready(name)
        except NativeUnavailable as error:
            reasons.append(f"{name}: {error}")
            return None
        if ready:
            reasons.append(f"{name}: ready")
            return "native"
        if reason := loader.missing(name):
            reasons.append(f"{name}: {reason}")
            return None
        reasons.append(f"{name}: not compiled yet")
        return "native, built at first use"

    found = {"cpu": state("cpu"), "cuda": state("cuda")}
    return {**found, "reason": "; ".join(reasons)}
