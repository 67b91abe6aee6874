"""occfast: face recognisers that keep working when part of the face is covered.

Importing compiles nothing; the kernels are built at the first call that needs them.
"""

from . import data, evaluate, models, pdsn, train
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
