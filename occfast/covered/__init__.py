"""How much of a face is covered, where, and whether a recognizer will still match it."""

from .calibration import fit_rejection
from .estimate import Coverage, estimate_coverage
from .network import load_network, save_network
from .regions import REGIONS, TEMPLATE, region_masks
from .rejection import RejectionModel

__all__ = [
    "REGIONS",
    "TEMPLATE",
    "Coverage",
    "RejectionModel",
    "estimate_coverage",
    "fit_rejection",
    "load_network",
    "region_masks",
    "save_network",
]
