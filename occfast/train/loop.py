"""Training of a classifier on images in memory with one call, without files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import checks
from .batches import InMemory, Shuffled
from .engine import Engine, OptimizerConfig, Transform, accelerator
from .objective import Classify


@dataclass
class Epoch:
    """Result of one epoch.

    Attributes:
        number: Number of the epoch, from 1.
        loss: Mean loss.
        accuracy: Share of right predictions on the (augmented) training images.
        seconds: Duration.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float


@dataclass
class History:
    """Epochs of a training run, in order."""

    epochs: list[Epoch] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Duration of all epochs."""
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
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train a classifier with AdamW; the learning rate rises linearly, then falls along a cosine to 0.

    The order of the images, the transform and dropout depend on ``seed`` alone: a run repeats to the bit on the same
    machine with as many threads, if PyTorch's kernels do. PyTorch's global generator keeps its state.

    Args:
        model: Module from the transform's output to logits [B, K]; trained in place and left in ``eval`` mode.
        images: [N, C, H, W], on the model's device.
        labels: int64 [N], in [0, K).
        epochs: Number of epochs, at least 1.
        batch_size: Batch size, at least 1; a smaller last batch of an epoch is left out, unless it is the only one.
        learning_rate: Largest learning rate, > 0.
        weight_decay: Weight decay, >= 0; not applied to biases and norms.
        label_smoothing: Label smoothing, in [0, 1].
        warmup: Share of the steps in which the learning rate rises, in [0, 1].
        seed: Seed of the order, the transform and dropout.
        transform: See :data:`~occfast.train.engine.Transform`; None if the images are the network's input.
        on_epoch: Called after each epoch with an :class:`Epoch`.

    Returns:
        The epochs.

    Raises:
        TypeError, ValueError: If an argument has a wrong type or value; if the loss is no longer finite (the message
            names the epoch and the images).
    """
    if images.dim() != 4 or images.shape[0] == 0:
        raise ValueError(f"images: expected [N, C, H, W] with N at least 1, got {list(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels: expected shape [{images.shape[0]}], got {list(labels.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected dtype int64, got {str(labels.dtype).removeprefix('torch.')}")
    checks.integer(epochs, "epochs", 1)
    checks.integer(batch_size, "batch_size", 1)
    checks.number(learning_rate, "learning_rate", above=0.0)
    checks.number(weight_decay, "weight_decay", 0.0)
    checks.number(label_smoothing, "label_smoothing", 0.0, 1.0)
    checks.number(warmup, "warmup", 0.0, 1.0)
    checks.seed(seed)
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
                if on_epoch is not None:
                    on_epoch(epoch)
                start, losses, right, seen = time.perf_counter(), 0.0, 0, 0
    model.eval()
    return history


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, *, batch_size: int = 40) -> Tensor:
    """Compute logits [N, K] of a network's input [N, C, H, W] in ``eval`` mode; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        return torch.cat([model(part) for part in images.split(batch_size)])
    finally:
        model.train(training)
