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
from .losses.memory import CrossBatchMemory
from .losses.miner import TripletMiner
from .losses.partial_fc import PartialFC
from .losses.stats import TripletStats, plot_score_distributions
from .losses.triplet import BatchTripletLoss, TripletLoss
from .native import backend
from .occlude.locations import LocationDistribution
from .occlude.noisy import NoisyOccluder, OccluderInfo, PerImage
from .sweep import Adaptive, Mismatch, OcclusionMap, Sampled, SweepGrid, explain, occlusion_map, occlusion_maps

if TYPE_CHECKING:
    from . import audit, captum, covered, data, evaluate, losses, models, occlude, pdsn, reproduce, sweep, train

__all__ = [
    "Adaptive",
    "BatchTripletLoss",
    "CrossBatchMemory",
    "DataError",
    "LargeMarginCosine",
    "LocationDistribution",
    "Mismatch",
    "MissingPackage",
    "NativeUnavailable",
    "NoisyOccluder",
    "OccluderInfo",
    "OcclusionMap",
    "PartialFC",
    "PerImage",
    "ProcessLost",
    "Sampled",
    "SweepGrid",
    "TripletLoss",
    "TripletMiner",
    "TripletStats",
    "__version__",
    "audit",
    "backend",
    "captum",
    "covered",
    "data",
    "evaluate",
    "explain",
    "losses",
    "models",
    "occlude",
    "occlusion_map",
    "occlusion_maps",
    "pdsn",
    "plot_score_distributions",
    "reproduce",
    "sweep",
    "train",
]

_SUBPACKAGES = frozenset(
    (
        "audit",
        "captum",
        "covered",
        "data",
        "evaluate",
        "losses",
        "models",
        "occlude",
        "pdsn",
        "reproduce",
        "sweep",
        "train",
    )
)


def __getattr__(name: str) -> ModuleType:
    """Import a subpackage at its first use."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
