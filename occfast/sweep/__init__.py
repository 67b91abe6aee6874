"""Occlusion maps: where to put the occluder, how to evaluate it there, and what comes out."""

from .engine import occlusion_map
from .geometry import SweepGrid
from .incremental import explain
from .maps import OcclusionMap

__all__ = ["OcclusionMap", "SweepGrid", "explain", "occlusion_map"]
