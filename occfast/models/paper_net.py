"""The ten-convolution network of trigueros2018 (its reference [4]: Yi et al. 2014, CASIA-WebFace)."""

from __future__ import annotations

from torch import Tensor, nn

#: Channels of the ten 3×3 convolutions, two a stage.
STAGES = ((32, 64), (64, 128), (96, 192), (128, 256), (160, 320))


class PaperNet(nn.Module):
    """3×3 convolutions 32-64 | 64-128 | 96-192 | 128-256 | 160-320 for 100×100 gray faces.

    A ReLU follows every convolution but the last; 2×2 max pooling between the stages
    (100 → 50 → 25 → 13 → 7, a partial window counts), 7×7 average pooling to the feature, dropout
    and one fully connected classifier.  The feature has 320 numbers, times ``width``.

    Args:
        classes: number of people, at least 1; None: no classifier, the network gives the feature.
        width: multiplies every number of channels (rounded, at least 1); 1.0 is the paper's network.
        batch_norm: batch normalization after each convolution, which then has no bias.  Yi et al.'s
            network has none; it lets a narrow network learn from a few hundred faces in minutes.
        dropout: probability in [0, 1) of dropping a feature in training.
        channels: of the input images.

    Input: float [N, channels, 100, 100].
    """

    #: Name of the layer that makes logits of features.
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
        if classes is not None and classes < 1:
            raise ValueError(f"classes: expected at least 1, got {classes}")
        if not width > 0:
            raise ValueError(f"width: expected a positive number, got {width}")
        if not 0 <= dropout < 1:
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
        """Draw new weights from PyTorch's generator: He et al. 2015 for the convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()

    def features(self, x: Tensor) -> Tensor:
        """The feature of each face, [N, 320 · width], for comparison by cosine similarity."""
        feature: Tensor = self.flatten(self.pool(self.convolutions(x)))
        return feature

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [N, classes]; the feature where there is no classifier."""
        feature = self.features(x)
        if self.classifier is None:
            return feature
        logits: Tensor = self.classifier(self.dropout(feature))
        return logits


__all__ = ["STAGES", "PaperNet"]
