"""Large margin cosine loss (CosFace)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from .inputs import check_batch, check_cosface, check_features, prepare


class LargeMarginCosine(nn.Module):
    r"""Classification head of the large margin cosine loss (Wang et al. 2018, "CosFace", Eq. 4).

    The head returns logits for ``F.cross_entropy``:

    ::

        z_j = s (cos θ_j - m [j = y])

    Cosines are computed in float32 (float64 for float64 features), also under autocast: multiplied by the scale, the
    rounding of half precision would reach whole units. A zero row has cosine 0 with every class.

    Args:
        in_features: Size D of the features, at least 1.
        n_classes: Number of classes K, at least 1.
        scale: s > 0.
        margin: m >= 0.

    Raises:
        TypeError, ValueError: If an argument has a wrong type or value; the message names it.
    """

    def __init__(self, in_features: int, n_classes: int, *, scale: float = 64.0, margin: float = 0.35) -> None:
        super().__init__()
        self.in_features = checks.integer(in_features, "in_features", 1)
        self.n_classes = checks.integer(n_classes, "n_classes", 1)
        self.scale, self.margin = check_cosface(scale, margin)
        self.weight = nn.Parameter(torch.empty(self.n_classes, self.in_features))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the logits.

        Args:
            features: Floating point [N, D] with N at least 1, on the device of the weights; need not be normalized.
            labels: Integers [N] in [0, K). Without labels no margin is subtracted, as in evaluation.

        Returns:
            float32 [N, K] (float64 for float64 features).

        Raises:
            TypeError, ValueError: If an argument has a wrong type, shape or device, or if a label lies outside
                [0, K). Label values are checked on the CPU only: on a GPU, reading them would wait for the device.
        """
        check_features(features, self.in_features, self.weight.device)
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        with torch.autocast(features.device.type, enabled=False):
            cosine = prepare(features.to(dtype), "cosine") @ prepare(self.weight.to(dtype), "cosine").T
            if labels is not None:
                labels = check_batch(features, labels, ("features", "labels"))
                if labels.device.type == "cpu":
                    low, high = (int(edge) for edge in torch.aminmax(labels))
                    if low < 0 or high >= self.n_classes:
                        raise ValueError(f"labels: expected values in [0, {self.n_classes}), got [{low}, {high}]")
                cosine = cosine - self.margin * F.one_hot(labels, self.n_classes).to(dtype)
            return self.scale * cosine

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.in_features}, {self.n_classes}, scale={self.scale}, margin={self.margin}"
