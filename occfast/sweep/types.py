"""Types of the arguments of :func:`~occfast.sweep.occlusion_map`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from torch import Tensor

from ..checks import Array, Pair
from .shapes import OccluderMask

#: Class labels int64 [N], or reference embeddings [N, K].
LabelInput = Array | Sequence[int]

#: One batch of an iterable: images alone; (images, labels) or (images, labels, sample ids); or a mapping with the key
#: "images" and, if there are labels, "labels".
Batch = Array | Sequence[Array | LabelInput | None] | Mapping[str, Array | LabelInput]

#: Images [N, C, H, W] in one array, or an iterable of batches such as a ``DataLoader``.
ImageInput = Array | Iterable[Batch]

#: One occluder: (height, width), or a mask bool [height, width] of the pixels that it covers.
Shape = Pair | Array | OccluderMask

#: One occluder, or several whose maps are averaged.
Occluder = Shape | Sequence[Shape]

#: Content of occluders for each of some images [n, C, H, W]: a tensor that broadcasts to them.
FillFunction = Callable[[Tensor], Tensor]

#: The content of an occluder.
Fill = float | Sequence[float] | Literal["mean", "noise", "blur"] | Array | FillFunction

#: A number for each row of outputs [m, K], from the rows of the labels [m, ...] (None without labels).
ScoreFunction = Callable[[Tensor, Tensor | None], Tensor]

#: The name of a score.
ScoreName = Literal["error", "score_drop", "probability_drop", "similarity_drop"]

#: The quantity that is recorded at each position, but for :class:`~occfast.sweep.Mismatch`.
Score = ScoreName | ScoreFunction

#: Top, left, bottom and right of the part of the image in which centers lie, in pixels.
Region = Sequence[int]

#: The position of the occluder at the edge of the image.
Border = Literal["clip", "valid"]

#: The arithmetic of the forward passes; None is the images' own dtype.
Precision = Literal["tf32", "bf16"]

#: The name of a method of evaluation.
MethodName = Literal["auto", "dense", "incremental", "adaptive", "sampled"]
