"""Training of the coverage network on randomly covered faces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from occfast.covered.estimate import region_pixels
from occfast.covered.network import covered_probability
from occfast.covered.regions import region_masks
from occfast.pdsn.segmentation import UNet
from occfast.progress import progress

from .coverings import RandomCoverings, photographed
from .crops import SIZE, Crops

BATCH = 64


@dataclass(frozen=True)
class Schedule:
    """Steps and rates of a training.

    Attributes:
        steps: Number of batches.
        rate: Highest learning rate, reached after a twentieth of the steps; then it falls as a cosine.
        width: See :class:`~occfast.pdsn.segmentation.UNet`.
        seed: Random seed.
    """

    steps: int
    rate: float = 2e-3
    width: float = 0.25
    seed: int = 0


def train(crops: Crops, schedule: Schedule, templates: Path | None, checkpoint: Path) -> UNet:
    """Train a network; a checkpoint is written every 200 steps, from which a stopped training continues.

    Batches depend on the seed and the step alone.
    """
    torch.manual_seed(schedule.seed)
    network = UNet(3, width=schedule.width)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=schedule.rate, weight_decay=1e-3)
    done, mean = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        done, mean = state["done"], state["mean"]
    network.train()

    def note() -> str:
        return f"loss {mean:.4f}"

    with progress("training", "steps", True, note) as report:
        while done < schedule.steps:
            random = torch.Generator().manual_seed((schedule.seed << 32) + done)
            rows = torch.randint(len(crops.images), (BATCH,), generator=random)
            cover = RandomCoverings(crops.images, templates, random)
            inputs, covered = photographed(*cover(crops.images[rows], crops.landmarks[rows]), random)
            warm = min(1.0, 20 * (done + 1) / schedule.steps)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate * warm * (0.5 + 0.5 * math.cos(math.pi * done / schedule.steps)) + 1e-6
            logits = network(network.normalize(inputs).contiguous(memory_format=torch.channels_last))[:, 0]
            loss = F.binary_cross_entropy_with_logits(logits, covered.float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise SystemExit(f"the loss is not finite in step {done + 1}")
            mean = value if done == 0 else 0.98 * mean + 0.02 * value
            done += 1
            report(done, schedule.steps)
            if done % 200 == 0 or done == schedule.steps:
                new = checkpoint.with_suffix(".new")
                torch.save(
                    {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "done": done, "mean": mean},
                    new,
                )
                new.rename(checkpoint)
    network.eval()
    return network


def clean_only(network: UNet, crops: Crops, most: float = 0.25) -> Crops:
    """Leave out photographs on which a region of the face is already covered, by sunglasses, hands or microphones.

    Args:
        network: A network of an earlier training.
        crops: The crops.
        most: Largest estimated share covered of any region of a photograph that is kept.
    """
    sizes = region_masks().sum((1, 2))
    shares = torch.cat(
        [region_pixels(covered_probability(network, part)) / sizes for part in cut(crops.images).split(256)]
    )
    rows = (shares.amax(1) <= most).nonzero()[:, 0]
    return Crops(crops.images[rows], crops.landmarks[rows], crops.labels[rows], [crops.names[k] for k in rows.tolist()])


def cut(images: Tensor) -> Tensor:
    """Cut crops, uint8 [N, 3, SIZE, SIZE], to the network's input, uint8 [N, 3, 64, 64]."""
    nothing = torch.zeros(1, SIZE, SIZE)
    parts = [
        photographed(part, nothing.expand(len(part), -1, -1), torch.Generator(), gentle=True)[0]
        for part in images.split(256)
    ]
    return torch.cat(parts)
