"""Occluders: noisy blocks for training, drawn occlusions and face masks for tests."""

from .base import Cover, Occlusion, OcclusionResult
from .drawn import Band, Block, Sunglasses
from .locations import LocationDistribution
from .masks import FaceMask, MaskTemplate
from .named import Compose, NoisyBlock, named_occlusion, occlusion
from .noisy import NoisyOccluder, OccluderInfo, PerImage

__all__ = [
    "Band",
    "Block",
    "Compose",
    "Cover",
    "FaceMask",
    "LocationDistribution",
    "MaskTemplate",
    "NoisyBlock",
    "NoisyOccluder",
    "OccluderInfo",
    "Occlusion",
    "OcclusionResult",
    "PerImage",
    "Sunglasses",
    "named_occlusion",
    "occlusion",
]
