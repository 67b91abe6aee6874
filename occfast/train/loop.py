"""A small supervised loop: softmax cross-entropy over images that fit into memory (Eqs. 1 and 2 of trigueros2018)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: ``transform(images uint8 or float [B, C, H, W], sample_ids int64 [B], generator) -> float [B, C, H, W]``: makes a
#: batch of stored images what the network sees.  A sample id is another one for each image in each epoch.
Transform = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass
class Epoch:
    """What one epoch gave: mean loss, share of right predictions on the (augmented) training images, seconds."""

    number: int
    loss: float
    accuracy: float
    seconds: float


@dataclass
class History:
    """The epochs of a training run, in order."""

    epochs: list[Epoch] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int = 40,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    warmup: float = 0.1,
    seed: int = 0,
    transform: Transform | None = None,
    progress: Callable[[Epoch], None] | None = None,
) -> History:
    """Train a classifier with AdamW; the learning rate rises linearly, then falls along a cosine to 0.

    The order of the images, the transform and dropout depend on ``seed`` alone, so a run on the same machine with as
    many threads repeats to the bit where PyTorch's kernels do.  PyTorch's global generator is left as it was.

    Args:
        model: gives logits [B, K] for what ``transform`` returns; trained in place, left in ``eval`` mode.
        images: [N, C, H, W], on the model's device.
        labels: int64 [N], in [0, K).
        epochs: at least 1.
        batch_size: the last batch of an epoch is left out if it is smaller, unless it is the only one; each
            epoch has another order.
        learning_rate: the largest.
        warmup: share of the steps in which it rises, in [0, 1].
        transform: see :data:`Transform`; without one the images must be what the network takes.
        progress: called after each epoch.

    Raises:
        ValueError: where an argument is wrong, or the loss is no longer finite (it names the epoch).
    """
    if images.dim() != 4 or images.shape[0] == 0:
        raise ValueError(f"images: expected [N, C, H, W] with N at least 1, got {list(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels: expected shape [{images.shape[0]}], got {list(labels.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected dtype int64, got {str(labels.dtype).removeprefix('torch.')}")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    n = images.shape[0]
    batch_size = min(batch_size, n)
    steps = n // batch_size
    optimizer = torch.optim.AdamW(_groups(model, weight_decay), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(epochs * steps, warmup))
    generator = torch.Generator().manual_seed(seed)
    history = History()
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.train()
        for number in range(epochs):
            start = time.perf_counter()
            total, right = 0.0, 0
            order = torch.randperm(n, generator=generator)
            for step in range(steps):
                chosen = order[step * batch_size : (step + 1) * batch_size].to(images.device)
                batch, target = images[chosen], labels[chosen]
                if transform is not None:
                    batch = transform(batch, number * n + chosen, generator)
                logits = model(batch)
                loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
                right += int((logits.detach().argmax(1) == target).sum())
            if not math.isfinite(total):
                raise ValueError(
                    f"learning_rate: the loss is no longer finite in epoch {number + 1}; "
                    f"try less than {learning_rate:g}"
                )
            seen = steps * batch_size
            history.epochs.append(Epoch(number + 1, total / steps, right / seen, time.perf_counter() - start))
            if progress is not None:
                progress(history.epochs[-1])
    model.eval()
    return history


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, *, batch_size: int = 40) -> Tensor:
    """Logits [N, K] of images as the network takes them, in ``eval`` mode (the model's mode is restored)."""
    training = model.training
    model.eval()
    try:
        return torch.cat([model(part) for part in images.split(batch_size)])
    finally:
        model.train(training)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    # Biases and the scales of batch norm are not decayed.
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _warm_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor
