"""Occlusion maps: where to put the occluder, how to evaluate it there, and what comes out."""

from .api import occlusion_map
from .evaluators.incremental.explain import explain
from .geometry import SweepGrid
from .maps import OcclusionMap

__all__ = ["OcclusionMap", "SweepGrid", "explain", "occlusion_map"]
