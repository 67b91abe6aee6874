"""A PyTorch twin of every native op: the oracle of the tests and the baseline of the benchmarks.

``OCCFAST_BACKEND=reference`` runs the twins instead of the native modules. ``ops`` has checked their arguments and
documents meanings, shapes and dtypes.
"""

from .gather import convolve, gather_pieces, gather_windows
from .occluders import draw_occluders, natural_log, normals, paint_occluders, philox, uniform24, uniform53
from .sweep import cosine, first_largest, occlude_positions, sweep_accumulate, sweep_score, windows
from .triplet import center_rows, draw_negatives, mine_triplets, triplet_distances, triplet_weights

__all__ = [
    "center_rows",
    "convolve",
    "cosine",
    "draw_negatives",
    "draw_occluders",
    "first_largest",
    "gather_pieces",
    "gather_windows",
    "mine_triplets",
    "natural_log",
    "normals",
    "occlude_positions",
    "paint_occluders",
    "philox",
    "sweep_accumulate",
    "sweep_score",
    "triplet_distances",
    "triplet_weights",
    "uniform24",
    "uniform53",
    "windows",
]
