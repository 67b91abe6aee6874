"""Protocols of face recognition: verification, identification, and what covering a part of the face costs."""

from .curves import Interval, Roc, StreamingRoc, TarAtFar, all_pairs_roc, binomial_interval, roc
from .embedding import Embeddings, embed
from .pairs import Cut, Verification, best_threshold, bootstrap_people, held_out, verification
from .protocols import PairProtocol, SearchProtocol, ar, gallery_and_probes, lfw, listed_pairs, packed_pairs
from .report import Comparison, Row, compare, evaluate_scores, read_scores
from .scores import normalized_scores, pair_scores
from .search import DirAtFar, Identification, identification

__all__ = [
    "Comparison",
    "Cut",
    "DirAtFar",
    "Embeddings",
    "Identification",
    "Interval",
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
    "evaluate_scores",
    "gallery_and_probes",
    "held_out",
    "identification",
    "lfw",
    "listed_pairs",
    "normalized_scores",
    "packed_pairs",
    "pair_scores",
    "read_scores",
    "roc",
    "verification",
]
