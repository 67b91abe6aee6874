"""Training of the base networks of pdsn-landmarks."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ... import checks
from ...files import remove
from ...losses.cosface import LargeMarginCosine
from ...models import ResNet, build
from ...occlude.locations import LocationDistribution
from ...occlude.noisy import NoisyOccluder
from ...pdsn import Regions
from ...pdsn.base import as_float
from ...pdsn.faces import FaceSet, face_pixels, occlude
from ...pdsn.generator import cover
from ...progress import progress as show_progress
from ...train import Jitter, Trained, load_network
from ...train.batches import InMemory, Shuffled
from ...train.checkpoint import load_checkpoint, save_checkpoint
from ...train.engine import Engine, OptimizerConfig, accelerator
from ...train.objective import Classify
from .settings import PDSNSettings


class BaseAugment:
    """Transform that augments the training images of a base; see ``Row.base`` for the kinds.

    Args:
        kind: "plain", "occluders" or "background".
        faces: the data set with its training images.
        bands: the regions of LM2.
        locations: distribution of the noisy occluders' centers, for kind "occluders".
        seed: of all random draws.
    """

    def __init__(
        self, kind: str, faces: FaceSet, bands: Regions, locations: LocationDistribution | None, seed: int
    ) -> None:
        if kind not in ("plain", "occluders", "background"):
            raise ValueError(f"base: expected 'plain', 'occluders' or 'background', got {kind!r}")
        self.kind, self.bands = kind, bands
        self.jitter = Jitter(shift=0.04, scale=0.06, turn=5.0)
        self.draws = Jitter.draws + 3
        images, landmarks = faces.images[faces.train], faces.landmarks[faces.train]
        self.preprocessing = faces.preprocessing
        self.n = len(images)
        if kind == "occluders":
            assert locations is not None
            height, width = bands.size
            # 20×40 on the paper's 100×100, the size that its Table 2 favors.
            self.noisy = NoisyOccluder((round(0.2 * height), round(0.4 * width)), locations, seed=seed)
            ids = torch.arange(self.n)
            self.worn = [occlude(name, images, landmarks, bands, ids, seed)[0] for name in ("face mask", "sunglasses")]
        if kind == "background":
            self.face = face_pixels(landmarks, bands.size)

    def __call__(self, images: Tensor, sample_ids: Tensor, uniform: Tensor) -> Tensor:
        """Turn uint8 images [B, C, H, W] into the network's input; see :data:`occfast.train.engine.Transform`."""
        own, rest = uniform[:, : Jitter.draws], uniform[:, Jitter.draws :]
        number = sample_ids.cpu() % self.n
        batch: Tensor = as_float(images)
        noisy = torch.zeros(len(batch), dtype=torch.bool)
        if self.kind == "background":
            # The surroundings of the face come from the next image of the batch; one image in four stays as it is.
            inside = self.face[number].to(batch.device) | (rest[:, 0] < 0.25).to(batch.device)[:, None, None]
            batch = torch.where(inside[:, None], batch, batch.roll(1, 0))
        elif self.kind == "occluders":
            # Half of the images get noisy occluders, an eighth each a mask, sunglasses, nothing, and a gray band.
            kind, band, gray = rest.unbind(1)
            noisy = kind < 0.5
            for k, low in enumerate((0.5, 0.625)):
                rows = ((kind >= low) & (kind < low + 0.125)).nonzero()[:, 0]
                batch[rows] = as_float(self.worn[k][number[rows]]).to(batch)
            rows = (kind >= 0.875).nonzero()[:, 0]
            boxes = self.bands.boxes[(band[rows] * len(self.bands)).long()]
            batch[rows] = cover(batch[rows], boxes, gray[rows])
        batch = self.jitter(batch, own.to(batch.device))
        if bool(noisy.any()):
            batch[noisy] = self.noisy(batch[noisy], sample_ids[noisy])
        scaled: Tensor = self.preprocessing.scale(batch)
        return scaled


def train_base(
    settings: PDSNSettings,
    kind: str,
    faces: FaceSet,
    bands: Regions,
    seed: int,
    folder: Path,
    *,
    locations: LocationDistribution | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Trained:
    """Train a ResNet with the large margin cosine loss until the validation accuracy stagnates.

    Training resumes from a checkpoint that it keeps in ``folder`` until it ends.

    Args:
        settings: of the experiment.
        kind: "plain", "occluders" or "background"; see ``Row.base``.
        faces: the data set and its split.
        bands: the regions of LM2.
        seed: of the weights, the batches and the augmentation.
        folder: for the checkpoint.
        locations: distribution of the noisy occluders' centers, for kind "occluders".
        device: "cpu", "cuda" or "cuda:N".
        progress: whether to show progress.

    Returns:
        The network with the weights of the best epoch.
    """
    found = checks.device(device)
    arguments = {"width": settings.width, "stem_pool": settings.stem_pool}
    spec = {"name": settings.network, "classes": None, "arguments": arguments}
    checkpoint, best_path = folder / f"base {kind}.checkpoint", folder / f"base {kind}.best.safetensors"
    with torch.random.fork_rng(devices=[found] if found.type == "cuda" else []):
        torch.manual_seed(seed)
        network = build(settings.network, None, channels=faces.preprocessing.channels, size=settings.size, **arguments)
        assert isinstance(network, ResNet)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        head = LargeMarginCosine(network.feature_size, len(faces.people), scale=settings.scale, margin=settings.margin)
        objective = Classify(network, head).to(found)
        train = faces.train
        engine = Engine(
            objective,
            Shuffled(len(train), settings.batch_size),
            InMemory(faces.images[train].to(found)),
            faces.labels[train],
            OptimizerConfig("sgd", settings.learning_rate, weight_decay=settings.weight_decay, warmup=0.05),
            settings.epochs,
            accelerator(found),
            BaseAugment(kind, faces, bands, locations, seed),
            seed=seed,
        )
        scores: list[float] = []
        if checkpoint.exists():
            tensors, values = load_checkpoint(checkpoint)
            engine.load_state(tensors, values["engine"])
            scores = values["scores"]

        def stagnates() -> bool:
            best = int(np.argmax(scores)) if scores else 0
            return bool(settings.patience) and len(scores) - 1 - best >= settings.patience

        last = time.monotonic()
        title = f"train the base network ({kind})"
        with show_progress(title, "epochs", progress) as report:
            report(engine.epoch, settings.epochs)
            if not stagnates():
                for step in engine.steps():
                    if not step.last:
                        continue
                    scores.append(_validation_accuracy(objective, faces))
                    if scores[-1] == max(scores):
                        Trained(
                            network,
                            faces.preprocessing,
                            spec,
                            faces.people,
                            head,
                            {
                                "head": True,
                                "stage": "classify",
                                "loss": "large_margin_cosine",
                                "epoch": step.epoch + 1,
                                "validation": scores[-1],
                            },
                        ).save(best_path)
                    if time.monotonic() - last > 30 or step.epoch + 1 == settings.epochs:
                        tensors, values = engine.state()
                        save_checkpoint(checkpoint, tensors, {"engine": values, "scores": scores})
                        last = time.monotonic()
                    report(step.epoch + 1, settings.epochs)
                    if stagnates():
                        break
    found_best = load_network(best_path)
    for file in (checkpoint, best_path, best_path.with_name(f"{best_path.stem}-head.safetensors")):
        remove(file)
    return found_best


@torch.no_grad()
def _validation_accuracy(objective: Classify, faces: FaceSet) -> float:
    device = next(objective.parameters()).device
    objective.eval()
    right = 0
    for rows in faces.validation.split(64):
        logits = objective.logits(faces.preprocessing(faces.images[rows]).to(device))
        right += int((logits.argmax(1).cpu() == faces.labels[rows]).sum())
    return right / len(faces.validation)
