"""``python -m bench.verification_maps``: maps of where a recognizer stops accepting a face, adaptive against full.

    python -m bench.verification_maps          # eight faces of LFW, every position, twenty minutes on one core

MobileFaceNet's weights and LFW are read from $OCCFAST_DATA or ``--data``. Each face is that of another person and is
compared with another photograph of the same person, at the threshold that gives a false match rate of 1e-3 among the
photographs. "adaptive" is the map of :class:`~occfast.Mismatch` and that of "similarity_drop", each against the full
sweep of the same faces: the share of equal labels, the root mean square error over the map's range, and how many times
fewer positions were evaluated, with intervals over faces. Written to ``bench/results/verification-maps.json``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench.harness import RESULTS, environment, write
from occfast import Mismatch, occlusion_map
from occfast.data import Aligned, Subset, open_dataset
from occfast.evaluate import embed
from occfast.evaluate.curves import all_pairs_roc
from occfast.models import load

_POOL = 1000  # photographs that set the threshold


def interval(values: list[float], seed: int = 0) -> list[float]:
    """Return the mean and its 95 % bootstrap interval over faces."""
    array = np.array(values)
    drawn = array[np.random.default_rng(seed).integers(len(array), size=(2000, len(array)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(array.mean()), float(low), float(high)]


def main() -> int:
    """Compare the maps."""
    parser = argparse.ArgumentParser(prog="python -m bench.verification_maps", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("OCCFAST_DATA"))
    parser.add_argument("--faces", type=int, default=8)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--occluder", type=int, nargs=2, default=[24, 24])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "verification-maps.json")
    arguments = parser.parse_args()
    data = Path(arguments.data)
    recognizer = load(
        data / "models" / "mobilefacenet-112x96.safetensors", network="mobilefacenet", preset="sphereface"
    )
    how, model = recognizer.preprocessing, recognizer.embedding()
    assert how is not None
    whole = open_dataset("lfw", root=data / "lfw").select(min_images=4)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(arguments.seed))[:_POOL]
    faces = Aligned(Subset(whole, order), "sphereface-112x96", gray=False)
    features = embed(model, faces, how, flip="none", progress=False).features
    threshold = all_pairs_roc(features, faces.labels).tar_at_far(1e-3).threshold
    probes, references = [], []
    for person in faces.labels.unique().tolist():
        own = (faces.labels == person).nonzero()[:, 0].tolist()
        if len(own) > 1 and float(F.cosine_similarity(features[own[0]], features[own[1]], dim=0)) >= threshold:
            probes.append(own[0])
            references.append(own[1])
    chosen = torch.randperm(len(probes), generator=torch.Generator().manual_seed(arguments.seed))[: arguments.faces]
    images = how(torch.stack([faces[probes[k]].image for k in chosen.tolist()]))
    others = features[[references[k] for k in chosen.tolist()]]
    rows = []
    for name, score in (("mismatch", Mismatch(threshold)), ("similarity_drop", "similarity_drop")):
        settings: dict[str, Any] = dict(
            occluder=tuple(arguments.occluder), stride=arguments.stride, fill=how.scaled(0.5), score=score
        )
        full = occlusion_map(model, images, others, **settings)
        one = occlusion_map(model, images[:1], others[:1], method="adaptive", **settings)
        found = occlusion_map(model, images, others, method="adaptive", **settings)
        assert full.per_image is not None and found.per_image is not None
        truth, estimate = full.per_image.astype(float), found.per_image.astype(float)
        spread = np.ptp(truth, axis=(1, 2)) if name == "similarity_drop" else np.ones(len(truth))
        errors = np.sqrt(((truth - estimate) ** 2).mean((1, 2))) / spread
        rows.append(
            {
                "score": name,
                "fewer_evaluations": full.n_evaluations / found.n_evaluations,
                "one_face_fewer_evaluations": full.n_evaluations / len(images) / one.n_evaluations,
                "equal": interval(list((truth == estimate).mean((1, 2)))),
                "rmse_over_range": interval(list(errors)),
                "mean": float(truth.mean()),
                "seconds": {"full": full.seconds, "adaptive": found.seconds, "one face": one.seconds},
                "method": full.method,
            }
        )
        print(rows[-1])
    about = {"faces": len(images), "stride": arguments.stride, "occluder": arguments.occluder, "threshold": threshold}
    write(arguments.output, {**environment(), "data": "LFW", "seed": arguments.seed, **about, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
