"""Occlusion maps: positions of the occluder, evaluation of the network, results."""

from .api import occlusion_map, occlusion_maps
from .comparison import MapComparison
from .curves import Curves, deletion_insertion
from .difference import MapDifference
from .evaluators.incremental.explain import explain
from .evaluators.incremental.rates import calibrate
from .geometry import SweepGrid
from .maps import OcclusionMap
from .options import Adaptive, Mismatch, Sampled
from .pairs import PairMap, SmallestOccluder, pair_map
from .shapes import band, disk

__all__ = [
    "Adaptive",
    "Curves",
    "MapComparison",
    "MapDifference",
    "Mismatch",
    "OcclusionMap",
    "PairMap",
    "Sampled",
    "SmallestOccluder",
    "SweepGrid",
    "band",
    "calibrate",
    "deletion_insertion",
    "disk",
    "explain",
    "occlusion_map",
    "occlusion_maps",
    "pair_map",
]
