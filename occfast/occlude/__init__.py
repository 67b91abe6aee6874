"""Occlusions of face images: noisy blocks for training, drawn occlusions and face masks for evaluation."""

from .base import Compose, Occlusion, OcclusionLike, OcclusionResult
from .drawn import Band, Block, Sunglasses
from .face_masks import FaceMask, MaskTemplate
from .locations import LocationDistribution
from .named import named_occlusion
from .noisy import NoisyBlock, NoisyOccluder, OccluderInfo, PerImage

__all__ = [
    "Band",
    "Block",
    "Compose",
    "FaceMask",
    "LocationDistribution",
    "MaskTemplate",
    "NoisyBlock",
    "NoisyOccluder",
    "OccluderInfo",
    "Occlusion",
    "OcclusionLike",
    "OcclusionResult",
    "PerImage",
    "Sunglasses",
    "named_occlusion",
]
