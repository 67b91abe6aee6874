"""Ten-convolution network of trigueros2018 (its reference [4]: Yi et al. 2014, CASIA-WebFace)."""

from __future__ import annotations

from torch import Tensor, nn

from .. import checks

#: Channels of the ten 3×3 convolutions, two per stage.
STAGES = ((32, 64), (64, 128), (96, 192), (128, 256), (160, 320))


class PaperNet(nn.Module):
    """Network of 3×3 convolutions 32-64 | 64-128 | 96-192 | 128-256 | 160-320 for 100×100 gray faces.

    A ReLU follows every convolution but the last.  2×2 max pooling separates the stages (100 → 50 → 25 → 13 → 7, with
    partial windows); 7×7 average pooling gives features of 320 · ``width`` numbers; dropout and one fully connected
    classifier follow.

    Args:
        classes: Number of classes, at least 1; None for a network that returns features.
        width: Factor of every number of channels (rounded, at least 1), > 0; 1.0 is the paper's network.
        batch_norm: Batch normalization after each convolution, which then has no bias. The network of Yi et al. has
            none; with it a narrow network learns from a few hundred faces in minutes.
        dropout: Probability in [0, 1) of dropping a feature in training.
        channels: Channels of the input images.

    The input is float [N, channels, 100, 100].

    Raises:
        TypeError, ValueError: If an argument has a wrong type or value; the message names it.
    """

    #: Name of the layer that turns features into logits.
    classifier_name = "classifier"

    def __init__(
        self,
        classes: int | None,
        *,
        width: float = 1.0,
        batch_norm: bool = False,
        dropout: float = 0.4,
        channels: int = 1,
    ) -> None:
        super().__init__()
        if classes is not None:
            checks.integer(classes, "classes", 1)
        checks.integer(channels, "channels", 1)
        checks.number(width, "width", above=0.0)
        checks.flag(batch_norm, "batch_norm")
        if checks.number(dropout, "dropout", 0.0) >= 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        layers: list[nn.Module] = []
        last = STAGES[-1][-1]
        before = channels
        for number, stage in enumerate(STAGES):
            if number:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            for full in stage:
                after = max(1, round(full * width))
                layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(after))
                if full != last:
                    layers.append(nn.ReLU())
                before = after
        self.convolutions = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d(7)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classifier = None if classes is None else nn.Linear(before, classes)
        self.feature_size = before
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from PyTorch's generator, by He et al. 2015 for the convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()

    def features(self, x: Tensor) -> Tensor:
        """Compute features [N, 320 · width], to be compared by cosine similarity."""
        feature: Tensor = self.flatten(self.pool(self.convolutions(x)))
        return feature

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [N, classes], or features without a classifier."""
        feature = self.features(x)
        if self.classifier is None:
            return feature
        logits: Tensor = self.classifier(self.dropout(feature))
        return logits


__all__ = ["STAGES", "PaperNet"]
