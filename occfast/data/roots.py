"""The default location of data sets."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError

VARIABLE = "OCCFAST_DATA"


def find_root(root: str | Path | None, name: str, wanted: str) -> Path:
    """Return ``root``, or by default the folder ``name`` in the folder that the variable OCCFAST_DATA names.

    Raises:
        DataError: if there is no such folder. The message describes the expected content (``wanted``).
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
