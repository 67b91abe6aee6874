"""Occlusions, identification and streaming curves are the same on a GPU as on the CPU."""

from __future__ import annotations

import pytest
import torch

from occfast.evaluate import all_pairs_roc, embed, identification, pair_scores
from occfast.occlude.named import named_occlusion
from tests.evaluate.test_embedding import OFF, PRE, Projection, Squares

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible to PyTorch"),
]


@pytest.mark.parametrize("name", ["eyes", "sunglasses", "mask", "scarf", "hand", "block:5x9", "nose+chin"])
def test_occlusions(name: str) -> None:
    faces = Squares()
    cpu = named_occlusion(name)(faces.images, faces.landmarks)
    gpu = named_occlusion(name)(faces.images.cuda(), faces.landmarks.cuda())
    # Soft edges are evaluated in floating point, whose last bit may differ.
    assert (gpu.mask.cpu() != cpu.mask).float().mean() < 1e-3
    assert (gpu.images.cpu().int() - cpu.images.int()).abs().float().mean() < 0.1


def test_identification_and_curves() -> None:
    faces = Squares(people=20, images=6)
    x, y = faces.images.flatten(1).float(), faces.labels
    a = identification(x[::2], y[::2], x[1::2], y[1::2])
    b = identification(x[::2].cuda(), y[::2].cuda(), x[1::2].cuda(), y[1::2].cuda())
    assert a.ranks == pytest.approx(b.ranks, abs=0.05)
    assert all_pairs_roc(x.cuda(), y).auc == pytest.approx(all_pairs_roc(x, y).auc, abs=1e-3)
    i, j = torch.arange(60), torch.arange(60, 120)
    assert torch.allclose(pair_scores(x.cuda(), x.cuda(), i, j).cpu(), pair_scores(x, x, i, j), atol=1e-5)


def test_features() -> None:
    faces, model = Squares(), Projection()
    cpu = embed(model, faces, PRE, occlusion=named_occlusion("sunglasses:round"), **OFF)
    gpu = embed(model.cuda(), faces, PRE, occlusion=named_occlusion("sunglasses:round"), **OFF)
    assert torch.nn.functional.cosine_similarity(cpu.features, gpu.features).min() > 0.999
