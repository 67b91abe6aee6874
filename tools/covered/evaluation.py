"""How well the coverage network does: on drawn coverings of people it has not seen, and on AR's real ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from occfast.covered import REGIONS, TEMPLATE, RejectionModel, estimate_coverage, load_network, region_masks
from occfast.covered.calibration import Covered, covered_pairs
from occfast.covered.estimate import region_pixels
from occfast.covered.network import covered_probability
from occfast.data import AR100, Aligned, DetectorSettings, FaceDataset, Subset, align_faces, detect_landmarks
from occfast.data.detect import detect_one, mtcnn
from occfast.evaluate import embed, roc
from occfast.evaluate.curves import all_pairs_roc
from occfast.models import Preprocessing, Recognizer
from occfast.occlude import named_occlusion

from .coverings import SHARES, RandomCoverings, photographed
from .crops import Crops

_RESAMPLES = 1000


def drawn(weights: Path, crops: Crops, templates: Path | None, seed: int, count: int = 2048) -> dict[str, Any]:
    """Compare estimates with the truth on drawn coverings, by kind, with wrong landmarks as in training.

    Args:
        weights: File of the network.
        crops: Crops of people who were not trained on.
        templates: See :class:`RandomCoverings`.
        seed: Random seed.
        count: Number of faces of each kind.
    """
    network, _ = load_network(weights)
    sizes = region_masks().sum((1, 2)).double()
    found = {}
    for kind in SHARES:
        random = torch.Generator().manual_seed(seed)
        cover = RandomCoverings(crops.images, templates, random, only=kind)
        both, either, errors, truths = 0, 0, [], []
        for _ in range(count // 64):
            rows = torch.randint(len(crops.images), (64,), generator=random)
            inputs, truth = photographed(*cover(crops.images[rows], crops.landmarks[rows]), random)
            probability = covered_probability(network, inputs)
            both += int(((probability > 0.5) & truth).sum())
            either += int(((probability > 0.5) | truth).sum())
            true_share = region_pixels(truth.float()) / sizes
            errors.append(region_pixels(probability) / sizes - true_share)
            truths.append(true_share)
        error, true = torch.cat(errors), torch.cat(truths)
        whole = (error * sizes).sum(1) / sizes.sum()
        found[kind] = {
            "faces": len(error),
            "iou": both / either if either else None,
            "true_share": float((true * sizes).sum(1).mean() / sizes.sum()),
            "bias": float(whole.mean()),
            "mean_error": float(whole.abs().mean()),
            "region_mean_error": float(error.abs().mean()),
        }
    return found


def real(weights: Path, path: Path) -> dict[str, Any]:
    """Estimate AR's real sunglasses and scarves, and the uncovered shots by kind, with intervals over people."""
    faces = AR100(path, gray=False)
    estimate = estimate_coverage(faces, network=weights, progress=False)
    numbers = (faces.numbers - 1) % 13 + 1
    upper = estimate.regions[:, [REGIONS.index("left eye"), REGIONS.index("right eye")]].mean(1)
    lower = estimate.regions[:, [REGIONS.index("mouth"), REGIONS.index("chin")]].mean(1)
    kinds = {
        "neutral": numbers == 1,
        "expressions": (numbers >= 2) & (numbers <= 4),
        "lights": (numbers >= 5) & (numbers <= 7),
        "sunglasses": (numbers >= 8) & (numbers <= 10),
        "scarf": numbers >= 11,
    }
    rows = {}
    for name, mask in kinds.items():
        labels = faces.labels[mask]
        rows[name] = {
            "faces": int(mask.sum()),
            "share": over_people(estimate.share[mask], labels),
            "eyes": over_people(upper[mask], labels),
            "mouth_and_chin": over_people(lower[mask], labels),
            "covered_by_a_fifth": over_people((estimate.share[mask] >= 0.2).double(), labels),
        }
    clean = numbers <= 7
    auc = {}
    for name, score in (("sunglasses", upper), ("scarf", lower)):
        chosen = clean | kinds[name]
        curve = roc(score[chosen].numpy(), kinds[name][chosen].numpy())
        auc[name] = {"auc": curve.auc, "found_at_1_percent_false": float(curve.at(0.01)[0])}
    return {"shots": rows, "against_uncovered": auc}


def over_people(values: Tensor, labels: Tensor, seed: int = 0) -> list[float]:
    """Return the mean and its 95 % interval by resampling people."""
    count = int(labels.max()) + 1
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, labels, values.double())
    number = torch.bincount(labels, minlength=count).double()
    drawn = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
    means = total.numpy()[drawn].sum(1) / number.numpy()[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return [float(values.double().mean()), float(low), float(high)]


def rejection_on_real(weights: Path, path: Path, recognizer: Recognizer, template: str) -> dict[str, Any]:
    """Compare the predicted with the observed share of rejected pairs on AR; references are both neutral shots."""
    preprocessing = recognizer.preprocessing
    assert preprocessing is not None
    source = AR100(path, gray=False)
    faces = Aligned(source, template, gray=False)
    features = F.normalize(
        embed(recognizer.embedding(), faces, preprocessing, flip="none", progress=False).features.double()
    )
    estimate = estimate_coverage(source, network=weights, progress=False)
    numbers = (source.numbers - 1) % 13 + 1
    clean = (numbers <= 7).nonzero()[:, 0]
    threshold = all_pairs_roc(features[clean], source.labels[clean]).tar_at_far(1e-3).threshold
    other = torch.where(source.numbers <= 13, 14, 1) - 1  # the neutral shot of the other session
    reference = features[source.labels * 26 + other]
    rejected = (features * reference).sum(1) < threshold
    found = {}
    for name, mask in {
        "uncovered": numbers <= 7,
        "sunglasses": (numbers >= 8) & (numbers <= 10),
        "scarf": numbers >= 11,
    }.items():
        found[name] = {
            "faces": int(mask.sum()),
            "predicted": over_people(estimate.rejection[mask], source.labels[mask]),
            "rejected": over_people(rejected[mask].double(), source.labels[mask]),
        }
    return found


def reliability(model: RejectionModel, shares: Tensor, rejected: Tensor) -> dict[str, Any]:
    """Return predicted and observed rates in tenths of the prediction, the Brier score and the mean gap."""
    predicted = model.probability(shares)
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)
    bins, gap = [], 0.0
    for low, high in pairwise(edges):
        inside = (predicted >= low) & ((predicted < high) | (high == 1))
        if not bool(inside.any()):
            continue
        mean, rate = float(predicted[inside].mean()), float(rejected[inside].double().mean())
        bins.append({"faces": int(inside.sum()), "predicted": mean, "rejected": rate})
        gap += abs(mean - rate) * int(inside.sum()) / len(predicted)
    return {"bins": bins, "gap": gap, "brier": float((predicted - rejected.double()).square().mean())}


def rejection_on_drawn(
    model: RejectionModel,
    weights: Path,
    embedding: Callable[[Tensor], Tensor],
    faces: Aligned,
    preprocessing: Preprocessing,
    seed: int,
) -> dict[str, Any]:
    """Judge a model of rejection on drawn coverings of other people."""
    pairs = covered_pairs(embedding, faces, preprocessing, network=weights, seed=seed)
    return reliability(model, pairs.shares, pairs.rejected)


def found(weights: Path, photographs: FaceDataset, coverings: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Cover photographs, find their faces by MTCNN, and compare the estimates with what was drawn.

    Args:
        weights: File of the network.
        photographs: Photographs with true landmarks.
        coverings: Names of coverings; "" for none.
        seed: Random seed of the coverings.
    """
    assert photographs.landmarks is not None
    regions = region_masks()
    face, rows = regions.any(0), []
    for text in coverings:
        occlusion = named_occlusion(text, seed) if text else None
        dataset = photographs if occlusion is None else Covered(photographs, occlusion)
        detected = detect_landmarks(dataset, progress=False)
        kept = [k for k, name in enumerate(dataset.names) if name not in detected.failures]
        estimate = estimate_coverage(Subset(detected.on(dataset), kept), network=weights, progress=False)
        truth = []
        for k in kept:
            drawn = torch.zeros(1, *photographs[k].image.shape[1:], dtype=torch.uint8)
            if occlusion is not None:
                points = photographs.landmarks[k][None]
                drawn = occlusion(photographs[k].image[None], points, torch.tensor([k])).mask.to(torch.uint8) * 255
            aligned = align_faces(drawn[None], photographs.landmarks[k][None], TEMPLATE).images[0, 0]
            truth.append((aligned[face] > 127).double().mean())
        error = estimate.share - torch.stack(truth)
        rows.append(
            {
                "covering": text or "none",
                "photographs": len(dataset),
                "found": len(kept) / len(dataset),
                "bias": float(error.mean()),
                "mean_error": float(error.abs().mean()),
            }
        )
    return rows


def milliseconds(weights: Path, photographs: FaceDataset, count: int = 200) -> dict[str, float]:
    """Return the time for one photograph on one thread, one at a time, with known landmarks and with MTCNN."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    network, _ = load_network(weights)
    detector, settings = mtcnn(), DetectorSettings()
    faces, spent = Aligned(photographs, TEMPLATE, gray=False), {"estimate": 0.0, "detection": 0.0}
    for k in [0, *range(count)]:
        if k == 0:
            spent = dict.fromkeys(spent, 0.0)  # the first call warms up
        started = time.perf_counter()
        region_pixels(covered_probability(network, faces[k].image[None]))
        between = time.perf_counter()
        detect_one(detector, photographs[k].image, settings)
        spent["estimate"] += between - started
        spent["detection"] += time.perf_counter() - between
    torch.set_num_threads(threads)
    estimate, detection = (1e3 * spent[name] / count for name in ("estimate", "detection"))
    return {"estimate": estimate, "with detection": estimate + detection}
