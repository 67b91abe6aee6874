"""Protocols of face recognition: verification, identification, and what covering a part of the face costs."""

from .embedding import Embeddings, embed
from .identification import DirAtFar, Identification, identification
from .noisy import NoisyBlock, named_occlusion
from .protocols import PairProtocol, SearchProtocol, ar, gallery_and_probes, lfw, listed, packed
from .report import Comparison, Row, compare, judge_scores, read_scores
from .roc import Interval, Roc, StreamingRoc, TarAtFar, all_pairs_roc, binomial_interval, roc
from .scores import normalised_scores, pair_scores
from .verification import Cut, Verification, best_threshold, bootstrap_people, held_out, verification

__all__ = [
    "Comparison",
    "Cut",
    "DirAtFar",
    "Embeddings",
    "Identification",
    "Interval",
    "NoisyBlock",
    "PairProtocol",
    "Roc",
    "Row",
    "SearchProtocol",
    "StreamingRoc",
    "TarAtFar",
    "Verification",
    "all_pairs_roc",
    "ar",
    "best_threshold",
    "binomial_interval",
    "bootstrap_people",
    "compare",
    "embed",
    "gallery_and_probes",
    "held_out",
    "identification",
    "judge_scores",
    "lfw",
    "listed",
    "named_occlusion",
    "normalised_scores",
    "packed",
    "pair_scores",
    "read_scores",
    "roc",
    "verification",
]
