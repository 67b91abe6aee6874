"""Losses: triplet losses over all triplets of a batch with their statistics, and losses of classifiers."""

from .adapters import for_metric_learning
from .cosface import LargeMarginCosine
from .inputs import Distance, Memory, Mining
from .memory import CrossBatchMemory
from .miner import TripletMiner
from .partial_fc import ClassifierLoss, PartialFC
from .stats import TripletStats, plot_score_distributions
from .triplet import BatchTripletLoss, TripletLoss

__all__ = [
    "BatchTripletLoss",
    "ClassifierLoss",
    "CrossBatchMemory",
    "Distance",
    "LargeMarginCosine",
    "Memory",
    "Mining",
    "PartialFC",
    "TripletLoss",
    "TripletMiner",
    "TripletStats",
    "for_metric_learning",
    "plot_score_distributions",
]
