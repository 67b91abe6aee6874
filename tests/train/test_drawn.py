"""Drawn occlusions in training: shares, determinism, landmarks, and runs that resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from occfast.data import Face
from occfast.models import Preprocessing
from occfast.occlude import named_occlusion
from occfast.occlude.drawn import BANDS
from occfast.train import train
from occfast.train.augment import Augment, occlusions_of
from occfast.train.checkpoint import load_checkpoint
from occfast.train.drawn import AnyBand, DrawnOccluders
from occfast.train.recipe import OccluderPart
from tests.train.tiny import SIZE, Patterns, recipe

POINTS = torch.tensor([[6.0, 4.0], [6.0, 12.0], [10.0, 8.0], [14.0, 5.0], [14.0, 11.0]], dtype=torch.float64)
SHARES = {"sunglasses": 0.2, "mask:cloth": 0.15, "band": 0.25}


class Marked(Patterns):
    """Patterns with the landmarks of a face, a little apart from image to image."""

    def __init__(self, moved: float = 0.0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.landmarks = POINTS + torch.rand(len(self.labels), 1, 2, generator=random, dtype=torch.float64) + moved

    def __getitem__(self, k: int) -> Face:
        assert self.landmarks is not None
        return replace(super().__getitem__(k), landmarks=self.landmarks[k])


def covered(images: Tensor, landmarks: Tensor, ids: Tensor) -> Tensor:
    preprocessing = Preprocessing(SIZE, "gray", 0.0, 1.0)
    part = OccluderPart(share=0.3, size=[6, 6], noise=["gaussian"])
    noisy, drawn = occlusions_of(part, SHARES, SIZE, 5)
    return Augment(preprocessing, None, noisy, drawn)(images, ids, torch.empty(len(images), 0), landmarks)


def test_each_image_gets_one_kind_by_its_share() -> None:
    n = 4000
    drawn = DrawnOccluders(SHARES, 0.3, 5)
    kinds = drawn.kinds(torch.arange(n))
    counts = torch.bincount(kinds, minlength=5).double()
    for count, share in zip(counts.tolist(), [0.3, *SHARES.values(), 0.1], strict=True):
        assert abs(count - n * share) < 5 * (n * share * (1 - share)) ** 0.5
    faces, ids = Marked(), torch.arange(60) + 3
    got = covered(faces.images, faces.landmarks, ids)
    plain, kinds = faces.images.float() / 255, drawn.kinds(ids)
    assert set(kinds.tolist()) == set(range(5))
    assert torch.equal(got[kinds == 4], plain[kinds == 4])
    for number, name in enumerate(SHARES, 1):
        rows = kinds == number
        occlusion = AnyBand(5) if name == "band" else named_occlusion(name, 5)
        assert torch.equal(got[rows], occlusion(plain[rows], faces.landmarks[rows], ids[rows]).images)
    changed = (got != plain).flatten(1).any(1)
    assert bool(changed[(kinds > 0) & (kinds < 4)].all()) and float(changed[kinds == 0].double().mean()) > 0.9
    # A sample's result does not depend on its batch.
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:17]
    again = covered(faces.images[order], faces.landmarks[order], ids[order])
    assert torch.equal(again, got[order])


def test_a_band_covers_one_part() -> None:
    images, ids = torch.full((40, 3, 20, 16), 0.5), torch.arange(40)
    out, mask = AnyBand(3)(images, POINTS.expand(40, 5, 2), ids)
    seen = set()
    for k in range(40):
        rows = mask[k].all(1).nonzero()[:, 0].tolist()
        assert torch.equal(mask[k].any(1), mask[k].all(1)) and len(out[k][:, mask[k]].unique()) == 1
        # Of POINTS: the eyes are in row 6, the mouth in row 14.
        parts = {name: [r for r in range(20) if a <= (r - 6) / 8 < b] for name, (a, b) in BANDS.items()}
        seen.add(next(name for name, part in parts.items() if part == rows))
    assert seen == set(BANDS)


def test_a_run_with_drawn_occlusions_resumes_to_the_same_result(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = recipe("classify", "drawn={sunglasses: 0.1, mask: 0.1, hand: 0.1, band: 0.1}", "log.checkpoint=2")

    class Stop(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done == 7 * 12:
            raise Stop

    train(run, tmp_path / "one", progress=False, faces=Marked())
    with pytest.raises(Stop):
        train(run, tmp_path / "two", progress=stop, faces=Marked())
    with pytest.raises(ValueError, match="the names are the same, but the landmarks of images differ"):
        train(run, tmp_path / "two", resume=True, progress=False, faces=Marked(moved=0.5))
    with pytest.raises(ValueError, match=r"drawn.sunglasses: the run in .* used 0.1"):
        other = replace(run, drawn={**run.drawn, "sunglasses": 0.2})
        train(other, tmp_path / "two", resume=True, progress=False, faces=Marked())
    train(run, tmp_path / "two", resume=True, progress=False, faces=Marked())
    one, two = (load_checkpoint(tmp_path / name / "checkpoint.safetensors")[0] for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_landmarks_are_checked_before_training(tmp_path: Path) -> None:
    run = recipe("classify", "drawn.mask=0.1")
    with pytest.raises(ValueError, match="drawn: expected a data set with landmarks to draw by, got none"):
        train(run, tmp_path / "a", progress=False, faces=Patterns())
    lost = Marked()
    lost.landmarks[:5] = torch.nan
    with pytest.raises(ValueError, match=r"drawn: expected landmarks to draw by on every image, not on \d, such as"):
        train(run, tmp_path / "a", progress=False, faces=lost)
    upside_down = Marked()
    upside_down.landmarks[:] = POINTS.flip(0)
    with pytest.raises(ValueError, match="drawn: expected the mouth below two eyes and the nose in the image"):
        train(run, tmp_path / "a", progress=False, faces=upside_down)
    assert not (tmp_path / "a" / "recipe.yaml").exists()
