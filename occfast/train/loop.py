"""Training a classifier on images in memory with one call: the engine without files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .batches import InMemory, Shuffled
from .engine import Engine, OptimizerConfig, Transform, accelerator
from .objective import Classify


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
        transform: see :data:`~occfast.train.engine.Transform`; without one the images must be what the network takes.
        progress: called after each epoch.

    Raises:
        ValueError: where an argument is wrong, or the loss is no longer finite (it names the epoch and the images).
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
    cuda = images.device.type == "cuda"
    if cuda and images.device.index not in (None, torch.cuda.current_device()):
        raise ValueError(f"images: expected the current device {torch.cuda.current_device()}, got {images.device}")
    engine = Engine(
        Classify(model, label_smoothing=label_smoothing),
        Shuffled(len(images), batch_size),
        InMemory(images),
        labels.cpu(),
        OptimizerConfig("adamw", learning_rate, weight_decay=weight_decay, warmup=warmup),
        epochs,
        accelerator(images.device),
        transform,
        seed=seed,
    )
    history = History()
    with torch.random.fork_rng(devices=[images.device] if cuda else []):
        torch.manual_seed(seed)
        start, losses, right, seen = time.perf_counter(), 0.0, 0, 0
        for count, step in enumerate(engine.steps(), 1):
            losses, right, seen = losses + float(step.loss), right + int(step.right), seen + step.images
            if step.last:
                steps = count - len(history.epochs) * len(engine.plan)
                epoch = Epoch(step.epoch + 1, losses / steps, right / seen, time.perf_counter() - start)
                history.epochs.append(epoch)
                if progress is not None:
                    progress(epoch)
                start, losses, right, seen = time.perf_counter(), 0.0, 0, 0
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
