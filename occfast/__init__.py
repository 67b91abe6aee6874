"""occfast: face recognisers that keep working when part of the face is covered."""

from .losses import (
    BatchTripletLoss,
    LargeMarginCosine,
    TripletLoss,
    TripletMiner,
    TripletStats,
    plot_score_distributions,
)

__version__ = "0.1.0"

__all__ = [
    "BatchTripletLoss",
    "LargeMarginCosine",
    "TripletLoss",
    "TripletMiner",
    "TripletStats",
    "plot_score_distributions",
]
