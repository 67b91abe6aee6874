"""Large margin cosine loss (CosFace)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .triplet import _check_batch, _is_number, _working

if TYPE_CHECKING:
    pass


class LargeMarginCosine(nn.Module):
    r"""Head for the large margin cosine loss (Wang et al. 2018, Eq. 4): logits for ``F.cross_entropy``.

    .. math:: z_j = s\,(\cos\theta_j - m\,[j = y])

    Args:
        in_features: D, > 0
        n_classes: K, > 0
        scale: s > 0
        margin: m >= 0

    ``head(features [N,D], labels int [N])`` -> logits [N,K]; without labels no margin is taken off, as in evaluation.
    Cosines are computed in float32 (float64 for float64 features), whatever autocast says: in half precision the scale
    turns their rounding into whole units.  A zero row has a cosine of 0 with everything.  Labels outside [0, K) are an
    error on a CPU.
    """

    def __init__(self, in_features: int, n_classes: int, scale: float = 64.0, margin: float = 0.35) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("n_classes", n_classes)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size!r}")
        if not _is_number(scale) or scale <= 0:
            raise ValueError(f"scale: expected a positive number, got {scale!r}")
        if not _is_number(margin) or margin < 0:
            raise ValueError(f"margin: expected a finite number, not negative, got {margin!r}")
        self.in_features, self.n_classes = in_features, n_classes
        self.scale, self.margin = float(scale), float(margin)
        self.weight = nn.Parameter(torch.empty(n_classes, in_features))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        if features.dim() != 2 or features.shape[1] != self.in_features:
            raise ValueError(f"features: expected shape [N, {self.in_features}], got {list(features.shape)}")
        if not features.is_floating_point():
            raise TypeError(f"features: expected a floating-point tensor, got {features.dtype}")
        if features.device != self.weight.device:
            raise ValueError(f"features: expected a tensor on {self.weight.device}, got {features.device}")
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        with torch.autocast(features.device.type, enabled=False):
            cosine = _working(features.to(dtype), "cosine") @ _working(self.weight.to(dtype), "cosine").T
            if labels is not None:
                labels = _check_batch(features, labels, ("features", "labels"))
                if labels.device.type == "cpu" and labels.numel():
                    low, high = (int(edge) for edge in torch.aminmax(labels))
                    if low < 0 or high >= self.n_classes:
                        raise ValueError(f"labels: expected values in [0, {self.n_classes}), got [{low}, {high}]")
                cosine = cosine - self.margin * F.one_hot(labels, self.n_classes).to(dtype)
            return self.scale * cosine

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.n_classes}, scale={self.scale}, margin={self.margin}"
