"""Run an audit: features of every covering, rates with intervals, and a map."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import checks
from ..data import FaceDataset, Subset
from ..evaluate.comparison import mean_faces
from ..evaluate.embedding import Flip, described
from ..evaluate.feature_cache import CachedEmbedder
from ..evaluate.fingerprints import fingerprint
from ..evaluate.resampling import RESAMPLES
from ..models import Preprocessing
from ..occlude import Block, OcclusionLike, named_occlusion
from ..occlude.drawn import BANDS
from ..occlude.face_masks import DRAWN_MASKS
from ..occlude.scarf import PATTERNS
from ..occlude.sunglasses import STYLES
from ..progress import Report as Progress
from ..progress import one_line
from ..sweep import OcclusionMap, SweepGrid, occlusion_map
from .figures import UNCOVERED
from .judge import Judge
from .rates import PairScores, People, supported
from .report import Audit, CurvePoint, Group, Region

#: Height and width of the map's occluder, as shares of the image's.
MAP_OCCLUDER = (0.2, 0.25)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
_FEW = 20  # people, below which a bootstrap over people is no guide
_NAMES = {
    "scarf": "a scarf",
    **{f"scarf:{pattern}": f"a {pattern} scarf" for pattern in PATTERNS},
    "hand": "a hand",
    "hand:mouth": "a hand over the mouth",
    "hand:eye": "a hand over an eye",
    "hand:cheek": "a hand on a cheek",
    "nose+mouth+chin": "a band from nose to chin",
    "sunglasses:flat": "flat sunglasses",
    **{f"sunglasses:{style}": f"{style} sunglasses" for style in STYLES},
    "mask": "a mask",
    **{f"mask:{kind}": f"a {kind} mask" for kind in DRAWN_MASKS},
}
#: Further places on a face: their steps from the middle of the eyes towards the mouth, whose own step is 1.
_FURTHER = {"forehead": -0.6, "chin": 1.55}


@dataclass(frozen=True)
class Covering:
    """A covering of an audit.

    Attributes:
        name: Name in the report, as in "with sunglasses".
        occlusion: What covers the face.
    """

    name: str
    occlusion: OcclusionLike

    @classmethod
    def named(cls, text: str, seed: int = 0) -> Covering:
        """Return the covering that :func:`~occfast.occlude.named_occlusion` names, as a reader would call it."""
        kind, _, size = text.partition(":")
        if kind == "noisy" and "@" not in size and "+" not in size:
            name = f"a noisy block of {size} pixels"
        elif text in BANDS:
            name = f"a band over the {text}"
        else:
            name = _NAMES.get(text, text)
        return cls(name, named_occlusion(text, seed))


def usual_coverings(size: tuple[int, int], landmarks: bool, seed: int = 0) -> list[Covering]:
    """Return the coverings of an audit that names none.

    Args:
        size: (height, width) of the aligned faces.
        landmarks: Whether the faces have landmarks; without them, only blocks can be placed.
        seed: Random seed of the coverings.
    """
    things = ("sunglasses", "mask:surgical", "mask:cloth", "scarf", "hand:mouth", "hand:eye")
    usual = (*things, "eyes", "nose", "mouth", "forehead")
    found = [Covering.named(text, seed) for text in usual] if landmarks else []
    height, width = part_of(size, 0.2, 0.4)
    return [*found, Covering("a noisy block (20 x 40 %)", named_occlusion(f"noisy:{height}x{width}", seed))]


def audit(
    model: nn.Module,
    faces: FaceDataset,
    preprocessing: Preprocessing,
    coverings: Sequence[Covering] | None = None,
    *,
    fmr: float = 1e-3,
    fmrs: Sequence[float] = (1e-2, 1e-3, 1e-4),
    both: bool = False,
    limit: int | None = 2000,
    curve: bool = True,
    map_images: int = 32,
    groups: Mapping[str, str] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    flip: Flip = "none",
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    model_name: str = "",
    dataset_name: str = "",
    notes: Sequence[str] = (),
    progress: bool | Progress = True,
) -> Audit:
    """Measure what covering faces costs a recognizer.

    The threshold is that of uncovered faces: the lowest at which at most ``fmr`` of all pairs of two people match. It
    is then kept, as by a system that was set up before anybody covered their face.

    Args:
        model: Module from prepared images, float32 [B, C, H, W], to features [B, D], compared by their cosine; see
            :meth:`occfast.models.Recognizer.embedding`.
        faces: Faces as the network expects them, several images of several people.
        preprocessing: How images become the network's input.
        coverings: What covers the faces; default: :func:`usual_coverings`.
        fmr: False match rate on uncovered pairs that sets the threshold, in (0, 1).
        fmrs: Further false match rates for the table; those that the pairs can't resolve are left out and named.
        both: Cover both images of a pair, not only the probe.
        limit: At most this many images, of people drawn at random; None: all.
        curve: Also cover growing parts of the face, from below and from above.
        map_images: Number of images of the occlusion map, of people drawn at random; 0: no map. Its checkpoint is
            ``map.npz`` in the folder ``checkpoint``.
        groups: Group of each person or image by name, for rates by group; others are left out there.
        confidence: Confidence level of the intervals, in (0, 1).
        resamples: Number of bootstrap resamples of people, at least 100.
        flip: See :func:`~occfast.evaluate.embed`.
        seed: Random seed for coverings, people and resamples.
        batch_size, workers, device, checkpoint, resume, progress: See :func:`~occfast.evaluate.compare`.
        model_name, dataset_name: Names in the report.
        notes: Sentences that the report repeats, such as which images were left out before.

    Raises:
        ValueError: There are fewer than two people with several images, the pairs don't allow ``fmr`` (the message
            says which they allow), two coverings have one name, or as :func:`~occfast.evaluate.embed`.
    """
    started = time.perf_counter()
    checks.number(fmr, "fmr", 0.0, 0.5, above=0.0)
    rates = sorted({fmr, *(checks.number(f, "fmrs", 0.0, 0.5, above=0.0) for f in fmrs)}, reverse=True)
    checks.number(confidence, "confidence", 0.5, 0.9999)
    checks.integer(resamples, "resamples", 100)
    has_landmarks = faces.landmarks is not None
    chosen = list(coverings) if coverings is not None else usual_coverings(preprocessing.size, has_landmarks, seed)
    names = [covering.name for covering in chosen]
    if len({UNCOVERED, *names}) <= len(names):
        raise ValueError(f"coverings: expected different names, none of them {UNCOVERED!r}, got {', '.join(names)}")
    notes, given = list(notes), len(faces)
    faces = _of_several_images(faces, limit, seed)
    if len(faces) < given:
        notes.append(f"These are {len(faces):,} of {given:,} images, those of people drawn at random.")
    if len(faces.people) < _FEW:
        notes.append(f"With {len(faces.people)} people, intervals are too narrow: take {_FEW} or more.")
    labels = faces.labels
    n_impostor = len(labels) ** 2 - int((labels.bincount() ** 2).sum())
    if not supported(fmr, n_impostor // 2):
        least = 10.0 ** -int(np.floor(np.log10(n_impostor // 2)))
        raise ValueError(
            f"fmr: {fmr:g} needs at least {round(1 / fmr):,} pairs of two people; these faces give "
            f"{n_impostor // 2:,}, which allow {least:g}"
        )
    resolved = [f for f in rates if supported(f, n_impostor // 2)]
    everything = torch.arange(len(faces))
    embedder = CachedEmbedder(
        model,
        faces,
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
    people = People(len(faces.people), resamples, confidence, seed)
    clean = _not_zero(embedder(everything, title=UNCOVERED).features, faces, UNCOVERED)
    judge = Judge(people, clean, labels, resolved, fmr, both=both)
    conditions = [judge.condition(UNCOVERED, 0.0, clean, {})]
    scores = {}
    for covering in chosen:
        found = embedder(everything, covering.occlusion, title=f"with {covering.name}")
        about = described(covering.occlusion)
        features = _not_zero(found.features, faces, f"with {covering.name}")
        conditions.append(judge.condition(covering.name, float(found.covered.mean()), features, about))
        scores[covering.name] = judge.last
    every = {UNCOVERED: judge.scores(clean, once=False), **scores}
    points = []
    for place, share, block in _growing(preprocessing.size) if curve else ():
        found = embedder(everything, block, title=f"{share:.0%} covered {place}")
        points.append(
            CurvePoint(place, float(found.covered.mean()), judge.fnmr(f"{share:.0%} covered {place}", found.features))
        )
    file = None if checkpoint is None else Path(checkpoint) / "map.npz"
    the_map = _map(model, faces, preprocessing, map_images, seed, file, resume, progress) if map_images else None
    return Audit(
        conditions=conditions,
        fmr=fmr,
        thresholds={f: judge.thresholds[f][0] for f in resolved},
        curve=points,
        map=the_map,
        regions=[] if the_map is None else _regions(the_map, faces),
        groups=[] if groups is None else _groups(judge, every, faces, groups),
        poses=_poses(judge, every, faces),
        worst=_worst(judge, scores, faces),
        figures=judge.figures,
        examples=mean_faces(faces, everything, {UNCOVERED: None, **{c.name: c.occlusion for c in chosen}}),
        settings={
            "model_name": one_line(model_name),
            "data": one_line(dataset_name),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "images": len(faces),
            "people": len(faces.people),
            "features": clean.shape[1],
            "people with genuine pairs": len(np.unique(judge.base.genuine_people)),
            "genuine pairs": len(judge.base.genuine),
            "impostor pairs": judge.base.n_impostor,
            "alignment": None if faces.alignment is None else faces.alignment.template,
            "notes": notes,
            "unresolved FMR": [f for f in rates if f not in resolved],
            "covered": "both images of a pair" if both else "the probe",
            "preprocessing": json.loads(preprocessing.to_json()),
            "flip": flip,
            "confidence": confidence,
            "resamples": resamples,
            "seed": seed,
            "model": fingerprint(model),
            "faces": _digest(faces),
            "pixels": embedder.images,
        },
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class Work:
    """What an audit is going to compute.

    Attributes:
        images: Number of images.
        passes: Times that each goes through the network, uncovered and under each covering.
        positions: Positions of the occlusion map, over all of its images.
    """

    images: int
    passes: int
    positions: int

    @classmethod
    def of(
        cls,
        faces: FaceDataset,
        preprocessing: Preprocessing,
        coverings: Sequence[Covering] | None = None,
        *,
        limit: int | None = 2000,
        curve: bool = True,
        map_images: int = 32,
    ) -> Work:
        """Return the work of an audit with these arguments; ``limit`` is taken to be reached."""
        chosen = usual_coverings(preprocessing.size, faces.landmarks is not None) if coverings is None else coverings
        passes = 1 + len(chosen) + (len(_growing(preprocessing.size)) if curve else 0)
        positions = min(map_images, len(faces.people)) * _map_grid(preprocessing.size).positions
        return cls(len(faces) if limit is None else min(limit, len(faces)), passes, positions)


def _of_several_images(faces: FaceDataset, limit: int | None, seed: int) -> FaceDataset:
    """Return the faces of people drawn at random, at most ``limit`` images."""
    counts = faces.labels.bincount()
    several = int((counts >= 2).sum())
    if len(counts) < 2 or several < 2:
        raise ValueError(
            f"faces: expected at least two people with two images each, got {len(counts)} people, {several} of them "
            "with two images"
        )
    if limit is None or len(faces) <= limit:
        return faces
    checks.integer(limit, "limit", 4)
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    order = order[(counts[order] < 2).to(torch.int8).argsort(stable=True)]
    room, chosen = limit, []
    for person in order.tolist():  # somebody with too many images for what is left does not end the list
        if counts[person] <= room:
            chosen.append(person)
            room -= int(counts[person])
    kept = torch.tensor(chosen, dtype=torch.int64)
    if int((counts[kept] >= 2).sum()) < 2:
        raise ValueError(f"limit: expected enough images for two people, got {limit}")
    return Subset(faces, torch.isin(faces.labels, kept).nonzero().flatten())


def _not_zero(features: Tensor, faces: FaceDataset, title: str) -> Tensor:
    """Return features; raise ValueError if some have length 0, and so no cosine."""
    dead = (features == 0).all(1)
    if bool(dead.any()):
        name = faces.names[int(dead.nonzero()[0])]
        raise ValueError(
            f"model: expected features that are not all 0, got {int(dead.sum()):,} of {len(dead):,} that are, {title}: "
            f"{name}"
        )
    return features


def _digest(faces: FaceDataset) -> str:
    """Return a SHA-256 digest (16 hexadecimal digits) of who is on which image."""
    rows = [[faces.names[k], faces.people[person]] for k, person in enumerate(faces.labels.tolist())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _growing(size: tuple[int, int]) -> list[tuple[str, float, Block]]:
    height, width = size
    found = []
    for place in ("from below", "from above"):
        for share in _SHARES:
            rows = max(1, round(share * height))
            center = rows // 2 if place == "from above" else height - rows + rows // 2
            found.append((place, share, Block((rows, width), (center, width // 2), fill=0.5)))
    return found


def part_of(size: tuple[int, int], height: float, width: float) -> tuple[int, int]:
    """Return (height, width) in pixels, at least 1, of shares of an image's size."""
    return max(1, round(height * size[0])), max(1, round(width * size[1]))


def _map_grid(size: tuple[int, int]) -> SweepGrid:
    return SweepGrid.over(size, part_of(size, *MAP_OCCLUDER), stride=max(1, round(min(size) / 24)))


def _map(
    model: nn.Module,
    faces: FaceDataset,
    preprocessing: Preprocessing,
    count: int,
    seed: int,
    checkpoint: Path | None,
    resume: bool,
    progress: bool | Progress,
) -> OcclusionMap:
    """Map the drop of similarity on one image each of people drawn at random."""
    people = torch.randperm(len(faces.people), generator=torch.Generator().manual_seed(seed))[:count]
    first = [int((faces.labels == person).nonzero()[0]) for person in people]
    grid = _map_grid(preprocessing.size)
    return occlusion_map(
        model,
        preprocessing(torch.stack([faces[k].image for k in first])),
        occluder=grid.occluder,
        stride=grid.stride,
        fill=preprocessing.scaled(0.5),
        score="similarity_drop",
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
    )


def _regions(m: OcclusionMap, faces: FaceDataset) -> list[Region]:
    """Return the drop of similarity at the parts of a face, the largest first."""
    if faces.landmarks is None:
        return []
    points = faces.landmarks.nanmean(0).numpy()
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    places = {"left eye": points[0], "right eye": points[1], "nose": points[2], "mouth": mouth}
    places |= {name: eyes + step * (mouth - eyes) for name, step in _FURTHER.items()}
    rows, columns = m.centers
    found = []
    for name, (row, column) in places.items():
        if not (0 <= row < m.grid.image[0] and 0 <= column < m.grid.image[1]):
            continue
        i, j = int(np.abs(rows - row).argmin()), int(np.abs(columns - column).argmin())
        found.append(Region(name, float(m.values[i, j]), float(m.standard_error[i, j])))
    return sorted(found, key=lambda region: -region.drop)


def _groups(
    judge: Judge, scores: Mapping[str, PairScores], faces: FaceDataset, groups: Mapping[str, str]
) -> list[Group]:
    of_image = [groups.get(faces.names[k], groups.get(faces.people[p])) for k, p in enumerate(faces.labels.tolist())]
    known = sorted({group for group in of_image if group is not None})
    if not known:
        raise ValueError("groups: expected names of people or images of these faces, got none of them")
    masks = {name: np.array([group == name for group in of_image]) for name in known}
    return _by(judge, scores, masks, "group")


def _poses(judge: Judge, scores: Mapping[str, PairScores], faces: FaceDataset) -> list[Group]:
    """Group the probes by how far the nose lies from the middle of the eyes, in units of their distance."""
    if faces.landmarks is None:
        return []
    points = faces.landmarks
    turned = (points[:, 2, 1] - points[:, :2, 1].mean(1)).abs() / (points[:, 1, 1] - points[:, 0, 1]).abs().clamp(min=1)
    bins = {"frontal": turned < 0.1, "turned": (turned >= 0.1) & (turned < 0.3), "profile": turned >= 0.3}
    masks = {name: mask.numpy() for name, mask in bins.items() if int(mask.sum()) >= 20}
    return _by(judge, scores, masks, "pose") if len(masks) > 1 else []


def _by(judge: Judge, scores: Mapping[str, PairScores], masks: Mapping[str, np.ndarray], kind: str) -> list[Group]:
    """Return rates by covering and group."""
    found = []
    for covering, pairs in scores.items():
        for name, mask in masks.items():
            inside = mask[pairs.genuine_probes]
            if not inside.any():
                continue
            part = replace(
                pairs,
                genuine=pairs.genuine[inside],
                genuine_people=pairs.genuine_people[inside],
                genuine_probes=pairs.genuine_probes[inside],
            )
            count = len(np.unique(part.genuine_people))
            found.append(Group(kind, name, covering, judge.rate(part), int(mask.sum()), count))
    return found


def _worst(
    judge: Judge, scores: Mapping[str, PairScores], faces: FaceDataset, count: int = 10
) -> list[tuple[str, float]]:
    """Return the images whose genuine pairs are rejected most often when covered, with that share."""
    if not scores:
        return []
    threshold = judge.thresholds[judge.fmr][0]
    rejected, pairs = np.zeros(len(faces)), np.zeros(len(faces))
    for one in scores.values():
        np.add.at(rejected, one.genuine_probes, one.genuine < threshold)
        np.add.at(pairs, one.genuine_probes, 1)
    share = np.divide(rejected, pairs, out=np.zeros(len(faces)), where=pairs > 0)
    order = np.argsort(-share, kind="stable")[:count]
    return [(faces.names[k], float(share[k])) for k in order if share[k] > 0]
