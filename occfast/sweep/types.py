"""Types of the arguments of :func:`~occfast.sweep.occlusion_map`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ..checks import Array

#: Class labels int64 [N], or reference embeddings [N, K].
LabelInput = Array | Sequence[int]

#: One batch of an iterable: images alone; (images, labels) or (images, labels, sample ids); or a mapping with the key
#: "images" and, if there are labels, "labels".
Batch = Array | Sequence[Array | LabelInput | None] | Mapping[str, Array | LabelInput]

#: Images [N, C, H, W] in one array, or an iterable of batches such as a ``DataLoader``.
ImageInput = Array | Iterable[Batch]

#: The content of an occluder.
Fill = float | Sequence[float] | Literal["mean", "noise"] | Array

#: The quantity that is recorded at each position.
Score = Literal["error", "score_drop", "similarity_drop"]

#: The position of the occluder at the edge of the image.
Border = Literal["clip", "valid"]

#: The arithmetic of the forward passes; None is the images' own dtype.
Precision = Literal["tf32", "bf16"]

#: The name of a method of evaluation.
MethodName = Literal["auto", "dense", "incremental", "adaptive", "sampled"]
