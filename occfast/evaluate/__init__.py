"""Face verification and identification on clean and occluded faces."""

from .comparison import compare, evaluate_scores
from .curves import Interval, Roc, StreamingRoc, TarAtFar, all_pairs_roc, binomial_interval, roc
from .embedding import Embeddings, embed
from .pairs import Cut, Verification, best_threshold, held_out, verification
from .presets import PresetTrial, try_presets
from .protocols import (
    PairProtocol,
    SearchProtocol,
    ar,
    drawn_pairs,
    gallery_and_probes,
    lfw,
    listed_pairs,
    packed_pairs,
)
from .report import Comparison, PairedRow, Row
from .resampling import Difference, bootstrap_people
from .scores import normalized_scores, pair_scores, read_scores
from .search import DirAtFar, Identification, identification

__all__ = [
    "Comparison",
    "Cut",
    "Difference",
    "DirAtFar",
    "Embeddings",
    "Identification",
    "Interval",
    "PairProtocol",
    "PairedRow",
    "PresetTrial",
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
    "drawn_pairs",
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
    "try_presets",
    "verification",
]
