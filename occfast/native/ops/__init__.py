"""The native ops: schemas, checks, fakes and dispatch.

Every op is registered with ``torch.library`` under ``torch.ops.occfast``, for CPU and CUDA, so it works with
``torch.compile`` and ``torch.library.opcheck``. Arguments are checked here, once for all backends. The native modules
receive addresses in structs with named fields (``csrc/api.h``). Importing this compiles nothing.
"""

from .common import IMAGE_DTYPES, dense, has_kernels, is_channels_last
from .gather import convolution_block, gather_pieces, gather_windows, pack_convolution, rounds_to_tf32
from .occluder_checks import occlude_by_channel, occlude_validated, outside_range, paint_by_channel
from .occluders import KINDS, draw_occluders, occlude, occlude_, paint_occluders, paint_occluders_
from .sweep import SCORES, occlude_positions, sweep_accumulate, sweep_score
from .triplet import DISTANCES, MAX_BINS, MININGS, triplet_loss, triplet_loss_backward

__all__ = [
    "DISTANCES",
    "IMAGE_DTYPES",
    "KINDS",
    "MAX_BINS",
    "MININGS",
    "SCORES",
    "convolution_block",
    "dense",
    "draw_occluders",
    "gather_pieces",
    "gather_windows",
    "has_kernels",
    "is_channels_last",
    "occlude",
    "occlude_",
    "occlude_by_channel",
    "occlude_positions",
    "occlude_validated",
    "outside_range",
    "pack_convolution",
    "paint_by_channel",
    "paint_occluders",
    "paint_occluders_",
    "rounds_to_tf32",
    "sweep_accumulate",
    "sweep_score",
    "triplet_loss",
    "triplet_loss_backward",
]
