"""Where data sets are looked for when no folder is named."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError

VARIABLE = "OCCFAST_DATA"


def find_root(root: str | Path | None, name: str, wanted: str) -> Path:
    """``root``, or the folder ``name`` in the folder that the environment variable OCCFAST_DATA names.

    Raises:
        DataError: it is not a folder, or neither is given; says what to put where (``wanted``).
    """
    if root is None:
        base = os.environ.get(VARIABLE)
        if not base:
            raise DataError(f"{name}: no folder given and {VARIABLE} is not set: give the folder of {wanted}")
        root = Path(base) / name
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: not a folder: expected {wanted}")
    return root
