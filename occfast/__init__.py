"""occfast: face recognisers that keep working when part of the face is covered.

Importing compiles nothing; the kernels are built at the first call that needs them.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from .augment import LocationDistribution, NoisyOccluder, OccluderInfo, PerImage
from .errors import DataError, NativeUnavailable, ProcessLost
from .losses import (
    BatchTripletLoss,
    LargeMarginCosine,
    TripletLoss,
    TripletMiner,
    TripletStats,
    plot_score_distributions,
)
from .native import backend
from .sweep import OcclusionMap, SweepGrid, occlusion_map

if TYPE_CHECKING:
    from . import data, evaluate, models, pdsn, train

__version__ = "0.1.0"

__all__ = [
    "BatchTripletLoss",
    "DataError",
    "LargeMarginCosine",
    "LocationDistribution",
    "NativeUnavailable",
    "NoisyOccluder",
    "OccluderInfo",
    "OcclusionMap",
    "PerImage",
    "ProcessLost",
    "SweepGrid",
    "TripletLoss",
    "TripletMiner",
    "TripletStats",
    "__version__",
    "backend",
    "data",
    "evaluate",
    "models",
    "occlusion_map",
    "pdsn",
    "plot_score_distributions",
    "train",
]

_ROOMS = ("data", "evaluate", "models", "pdsn", "train")


def __getattr__(name: str) -> ModuleType:
    """``occfast.data`` and the other rooms are imported when they are first asked for."""
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
