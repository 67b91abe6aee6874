"""Losses: triplet losses over every triplet of a batch, their statistics, and large margin cosine loss."""

from .cosface import LargeMarginCosine
from .miner import TripletMiner
from .stats import TripletStats, plot_score_distributions
from .triplet import BatchTripletLoss, TripletLoss

__all__ = [
    "BatchTripletLoss",
    "LargeMarginCosine",
    "TripletLoss",
    "TripletMiner",
    "TripletStats",
    "plot_score_distributions",
]
