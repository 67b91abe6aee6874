"""Occlusion maps: positions of the occluder, evaluation of the network, results."""

from .api import occlusion_map
from .evaluators.incremental.explain import explain
from .geometry import SweepGrid
from .maps import OcclusionMap
from .options import Adaptive, Sampled

__all__ = ["Adaptive", "OcclusionMap", "Sampled", "SweepGrid", "explain", "occlusion_map"]
