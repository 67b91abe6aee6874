"""occfast: face recognizers that keep working when part of the face is covered.

Importing compiles nothing; the kernels are built at the first call that needs them.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from ._version import __version__
from .errors import DataError, MissingPackage, NativeUnavailable, ProcessLost
from .losses.cosface import LargeMarginCosine
from .losses.miner import TripletMiner
from .losses.stats import TripletStats, plot_score_distributions
from .losses.triplet import BatchTripletLoss, TripletLoss
from .native import backend
from .occlude.locations import LocationDistribution
from .occlude.noisy import NoisyOccluder, OccluderInfo, PerImage
from .sweep import OcclusionMap, SweepGrid, occlusion_map

if TYPE_CHECKING:
    from . import data, evaluate, models, pdsn, train

__all__ = [
    "BatchTripletLoss",
    "DataError",
    "LargeMarginCosine",
    "LocationDistribution",
    "MissingPackage",
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

_SUBPACKAGES = ("data", "evaluate", "models", "pdsn", "train")


def __getattr__(name: str) -> ModuleType:
    """``occfast.data`` and the other rooms are imported when they are first asked for."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})
