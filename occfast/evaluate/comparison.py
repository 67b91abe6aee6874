"""Run protocols on clean and occluded faces."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..data import FaceDataset
from ..models import Preprocessing
from ..occlude.base import OcclusionLike
from ..progress import Report as Progress
from .curves import FARS
from .embedding import Flip, described
from .feature_cache import CachedEmbedder
from .fingerprints import fingerprint
from .pairs import Folds, Verification, verification
from .protocols import AnyProtocol, PairProtocol, Result
from .report import CLEAN, Comparison, Row
from .resampling import RESAMPLES
from .scores import Values


def evaluate_scores(
    scores: Values,
    same: Values,
    folds: Folds = 10,
    *,
    name: str = "scores",
    fars: Sequence[float] = FARS,
    confidence: float = 0.95,
    people: Values | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Make a report of scores that another program computed.

    Args:
        scores, same, folds, fars, confidence, people, resamples, seed: See :func:`~occfast.evaluate.verification`.
        name: Name in the report.
    """
    result = verification(
        scores, same, folds, fars=fars, confidence=confidence, people=people, resamples=resamples, seed=seed
    )
    return Comparison([Row(name, CLEAN, 0.0, result)], {"source": name, "date": _today()})


def compare(
    protocols: AnyProtocol | Sequence[AnyProtocol],
    model: Callable[[Tensor], Tensor],
    dataset: FaceDataset,
    preprocessing: Preprocessing,
    occlusions: Mapping[str, OcclusionLike] | None = None,
    *,
    cover: Literal["probe", "both"] = "probe",
    flip: Flip = "sum",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    resamples: int | None = None,
    model_name: str = "",
    dataset_name: str = "",
    progress: bool | Progress = True,
) -> Comparison:
    """Run protocols on clean faces and under each occlusion.

    Args:
        protocols: Protocols of one data set, with different names.
        model: Network; see :func:`embed`.
        dataset: Data set; see :func:`embed`.
        preprocessing: How images become the network's input.
        occlusions: Occlusions by their names in the report.
        cover: "probe" occludes the second image of each pair, while the reference or the gallery stays clean; "both"
            occludes both.
        flip, batch_size, device, workers, progress: See :func:`embed`.
        checkpoint: Folder for features. Each set of features is written once it is complete.
        resume: Use features in ``checkpoint`` again. They are used only if the network (weights and code),
            preprocessing, flip fusion, occlusion and the content of every image are the same.
        resamples: Number of bootstrap resamples of people for the intervals; 0 treats pairs and probes as independent.
            Default: 1000 where the people are known.
        model_name: Name of the network in the report.
        dataset_name: Name of the data in the report.

    Raises:
        ValueError: An occlusion is named "clean", two protocols have the same name, ``checkpoint`` is given for a model
            that is not a module, and as :func:`embed`.
    """
    several = [protocols] if not isinstance(protocols, Sequence) else list(protocols)
    names = [p.name for p in several]
    if not several or len(set(names)) < len(names):
        raise ValueError(f"protocols: expected at least one and different names, got {names}")
    covers: dict[str, OcclusionLike | None] = {CLEAN: None, **(occlusions or {})}
    if occlusions and CLEAN in occlusions:
        raise ValueError(f"occlusions: the name {CLEAN!r} is reserved for faces without occlusion")
    checks.choice(cover, "cover", ("probe", "both"))
    checks.flag(resume, "resume")
    references = torch.cat([p.references for p in several]).unique()
    probes = torch.cat([p.probes for p in several]).unique()
    everything = torch.cat([references, probes]).unique()
    embedder = CachedEmbedder(
        model,
        dataset,
        preprocessing,
        everything,
        flip=flip,
        batch_size=batch_size,
        device=device,
        workers=workers,
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
    )
    rows: dict[tuple[str, str], Row] = {}
    clean: Tensor | None = None
    for name, occlusion in covers.items():
        indices = everything if occlusion is None or cover == "both" else probes
        found = embedder(indices, occlusion, title=f"{model_name}, {name}" if model_name else name)
        table = torch.full((len(dataset), found.features.shape[1]), torch.nan)
        table[indices] = found.features
        share = torch.zeros(len(dataset))
        share[indices] = found.covered
        clean = table if clean is None else clean
        reference = clean if cover == "probe" else table
        for protocol in several:
            result = _evaluate(protocol, clean, reference, table, resamples)
            before = rows.get((protocol.name, CLEAN))
            at_clean = None if before is None else _at_clean_threshold(before.result, result)
            mean = float(share[protocol.probes].mean())
            rows[protocol.name, name] = Row(protocol.name, name, mean, result, at_clean)
    ordered = [rows[p.name, name] for p in several for name in covers]
    # All rows of a table have the same columns: on clean faces, the clean threshold is the threshold.
    ordered = [
        replace(row, at_clean_threshold=row.result.accuracy)
        if row.occlusion == CLEAN and len(covers) > 1 and _at_clean_threshold(row.result, row.result) is not None
        else row
        for row in ordered
    ]
    settings = {
        "model_name": model_name,
        "data": dataset_name,
        "date": _today(),
        "images": len(everything),
        "missing": {p.name: p.missing for p in several if p.missing},
        "occlusions": {name: described(c) for name, c in covers.items() if c is not None},
        "cover": cover,
        "preprocessing": json.loads(preprocessing.to_json()),
        "alignment": None if dataset.alignment is None else dataset.alignment.template,
        "flip": flip,
        "resamples": RESAMPLES if resamples is None else resamples,
        "model": fingerprint(model),
    }
    notes = {p.name: p.note for p in several if p.note}
    return Comparison(ordered, settings, mean_faces(dataset, probes, covers), notes)


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _evaluate(
    protocol: AnyProtocol, clean: Tensor, references: Tensor, probes: Tensor, resamples: int | None
) -> Result:
    if isinstance(protocol, PairProtocol) and protocol.train is not None:
        # The threshold is chosen on clean pairs, whatever the test occludes.
        merged = references.clone()
        rows = protocol.train.index.flatten().unique()
        merged[rows] = clean[rows]
        return protocol.evaluate(merged, probes, resamples=resamples)
    return protocol.evaluate(references, probes, resamples=resamples)


def _at_clean_threshold(clean: Result, result: Result) -> float | None:
    """Compute the accuracy with the thresholds that the folds have on clean pairs; None without folds."""
    if not isinstance(clean, Verification) or not isinstance(result, Verification) or result.fold_of is None:
        return None
    threshold = clean.thresholds[np.searchsorted(clean.folds, result.fold_of)]
    right = (result.scores >= threshold) == result.same
    return float(np.mean([right[result.fold_of == fold].mean() for fold in clean.folds]))


def mean_faces(
    dataset: FaceDataset, probes: Tensor, covers: Mapping[str, OcclusionLike | None], count: int = 32
) -> dict[str, Tensor]:
    """Return the mean of some faces under each occlusion, which shows nobody in particular."""
    chosen = [dataset[k] for k in probes[torch.linspace(0, len(probes) - 1, min(count, len(probes))).long()].tolist()]
    mean = torch.stack([face.image for face in chosen]).double().mean(0).round().to(torch.uint8)
    points = [face.landmarks for face in chosen if face.landmarks is not None]
    landmarks = torch.stack(points).mean(0)[None] if len(points) == len(chosen) else None
    found = {}
    for name, cover in covers.items():
        if cover is None:
            found[name] = mean
        elif landmarks is not None or not cover.needs_landmarks:
            found[name] = cover(mean[None], landmarks, torch.zeros(1, dtype=torch.int64)).images[0]
    return found
