"""Data sets of faces (``len()``, and ``[k]`` gives a :class:`Face`) and the samplers of their batches."""

from .faces import Face, FaceDataset
from .orl import ORL
from .samplers import MPerClassSampler, PKSampler

__all__ = ["ORL", "Face", "FaceDataset", "MPerClassSampler", "PKSampler"]
