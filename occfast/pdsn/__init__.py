"""PDSN: recognize occluded faces by their visible features (Song et al. 2019; pdsn-landmarks).

The steps are regions, mask generators, mask dictionary, segmentation, discard mask and nearest neighbor.
"""

from .base import Base, as_base
from .dictionary import MaskDictionary, build_dictionary
from .generator import Generators, MaskGenerator, pdsn_loss, train_generators
from .gradients import saliency
from .matching import Ranking, identify, match
from .regions import Regions, boxes, grid, landmark_bands, landmark_boxes
from .segmentation import SegmentationScore, UNet, difference_labels, segment, train_segmentation

__all__ = [
    "Base",
    "Generators",
    "MaskDictionary",
    "MaskGenerator",
    "Ranking",
    "Regions",
    "SegmentationScore",
    "UNet",
    "as_base",
    "boxes",
    "build_dictionary",
    "difference_labels",
    "grid",
    "identify",
    "landmark_bands",
    "landmark_boxes",
    "match",
    "pdsn_loss",
    "saliency",
    "segment",
    "train_generators",
    "train_segmentation",
]
