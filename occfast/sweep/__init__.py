"""Occlusion maps: positions of the occluder, evaluation of the network, results."""

from .api import occlusion_map
from .comparison import MapComparison
from .difference import MapDifference
from .evaluators.incremental.explain import explain
from .geometry import SweepGrid
from .maps import OcclusionMap
from .options import Adaptive, Sampled

__all__ = [
    "Adaptive",
    "MapComparison",
    "MapDifference",
    "OcclusionMap",
    "Sampled",
    "SweepGrid",
    "explain",
    "occlusion_map",
]
