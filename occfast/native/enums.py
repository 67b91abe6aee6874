"""The enumerations of ``csrc/``, for code that runs without a native module.

The native modules export their own values as ``enums``; ``tests/native/test_boundary.py`` compares both.
"""

from __future__ import annotations

from enum import IntEnum


class Dtype(IntEnum):
    """Element types of tensors."""

    UINT8 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    FLOAT32 = 3
    FLOAT64 = 4


class Score(IntEnum):
    """Scores of occluded copies; ``csrc/api.h`` has the formulas."""

    ERROR = 0
    SCORE_DROP = 1
    SIMILARITY_DROP = 2


class NoiseKind(IntEnum):
    """Kinds of noise of an occluder."""

    SALT_AND_PEPPER = 0
    SPECKLE = 1
    GAUSSIAN = 2
    NONE = 3


class Stream(IntEnum):
    """Streams of Philox counters, one for each purpose."""

    PIXELS = 0
    OCCLUDER = 1
    TRIPLET = 2


class Distance(IntEnum):
    """Distances between embeddings."""

    SQUARED_EUCLIDEAN = 0
    EUCLIDEAN = 1
    COSINE = 2


class Mining(IntEnum):
    """Strategies that select triplets."""

    ALL = 0
    VIOLATING = 1
    SEMIHARD = 2
    SEMIHARD_RANDOM = 3
    HARDEST = 4


class Slot(IntEnum):
    """Layout of the record of a batch (``totals``) of the triplet loss.

    The first six begin a moment of three numbers: a weight, a mean and a sum of squared deviations.
    """

    POSITIVE_PAIRS = 0
    NEGATIVE_PAIRS = 3
    MINED_POSITIVE = 6
    MINED_NEGATIVE = 9
    ACTIVE_POSITIVE = 12
    ACTIVE_NEGATIVE = 15
    CANDIDATES = 18
    VIOLATING_TRIPLETS = 19
    HARD_TRIPLETS = 20
    LOSS = 21


#: Numbers in a record.
SLOTS = 22
#: Stored in place of a :class:`NoiseKind` where a sample has no occluder.
NOT_OCCLUDED = 255
