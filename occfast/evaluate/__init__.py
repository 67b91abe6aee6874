"""Protocols of face recognition: verification, identification, and what covering a part of the face costs."""

from .identification import DirAtFar, Identification, identification
from .roc import Interval, Roc, StreamingRoc, TarAtFar, all_pairs_roc, binomial_interval, roc
from .scores import normalised_scores, pair_scores
from .verification import Cut, Verification, best_threshold, bootstrap_people, held_out, verification

__all__ = [
    "Cut",
    "DirAtFar",
    "Identification",
    "Interval",
    "Roc",
    "StreamingRoc",
    "TarAtFar",
    "Verification",
    "all_pairs_roc",
    "best_threshold",
    "binomial_interval",
    "bootstrap_people",
    "held_out",
    "identification",
    "normalised_scores",
    "pair_scores",
    "roc",
    "verification",
]
