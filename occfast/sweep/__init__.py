"""Occlusion maps: where to put the occluder, how to evaluate it there, and what comes out."""

from .engine import occlusion_map
from .geometry import SweepGrid
from .maps import OcclusionMap

__all__ = ["OcclusionMap", "SweepGrid", "occlusion_map"]
