"""Occlusions of face images: noisy blocks for training, drawn occlusions and face masks for evaluation."""

from .base import Compose, Occlusion, OcclusionLike, OcclusionResult
from .drawn import Band, Block
from .face_masks import FaceMask, MaskTemplate
from .hand import Hand
from .locations import LocationDistribution
from .named import named_occlusion
from .noisy import NoisyBlock, NoisyOccluder, OccluderInfo, PerImage
from .scarf import Scarf
from .sunglasses import Sunglasses

__all__ = [
    "Band",
    "Block",
    "Compose",
    "FaceMask",
    "Hand",
    "LocationDistribution",
    "MaskTemplate",
    "NoisyBlock",
    "NoisyOccluder",
    "OccluderInfo",
    "Occlusion",
    "OcclusionLike",
    "OcclusionResult",
    "PerImage",
    "Scarf",
    "Sunglasses",
    "named_occlusion",
]
