"""Data sets of faces: ``len()``, and ``[k]`` gives a :class:`Face`."""

from .faces import Face
from .orl import ORL

__all__ = ["ORL", "Face"]
