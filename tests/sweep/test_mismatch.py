"""The score "mismatch": whether a recognizer still accepts a covered face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from occfast import Adaptive, Mismatch, OcclusionMap, occlusion_map

SIZE, BOX = (30, 26), (9, 8)


class Embedder(nn.Module):
    """An embedding network whose similarity under an occluder varies smoothly with its place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.Tanh()
        )
        self.head = nn.Linear(12 * 15 * 13, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Embedder().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    noise = torch.rand(5, 1, 8, 7, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, SIZE, mode="bicubic").clamp(0, 1)


@torch.no_grad()
def by_hand(model: nn.Module, images: Tensor, references: Tensor, threshold: float, stride: int = 1) -> np.ndarray:
    rows, columns = range(0, SIZE[0], stride), range(0, SIZE[1], stride)
    found = np.zeros((len(images), len(rows), len(columns)))
    for k, image in enumerate(images):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                covered = image.clone()
                top, left = row - BOX[0] // 2, column - BOX[1] // 2
                covered[:, max(top, 0) : top + BOX[0], max(left, 0) : left + BOX[1]] = 0.5
                similarity = F.cosine_similarity(model(covered[None]).double(), references[k : k + 1].double())
                found[k, i, j] = float(similarity) < threshold
    return found


def swept(model: nn.Module, images: Tensor, labels: Tensor | None = None, **options: object) -> OcclusionMap:
    return occlusion_map(model, images, labels, BOX, fill=0.5, progress=False, **options)  # type: ignore[arg-type]


@torch.no_grad()
def middle(model: nn.Module, images: Tensor) -> float:
    """Return a threshold that about half of the positions fall below."""
    drop = swept(model, images, score="similarity_drop")
    assert drop.per_image is not None
    return 1 - float(np.median(drop.per_image))


@pytest.mark.parametrize("method", ["dense", "incremental"])
def test_an_image_against_itself_equals_brute_force(model: nn.Module, images: Tensor, method: str) -> None:
    threshold = middle(model, images)
    found = swept(model, images, score=Mismatch(threshold), method=method, stride=2)
    with torch.no_grad():
        truth = by_hand(model, images, model(images), threshold, 2)
    assert 0.2 < truth.mean() < 0.8
    assert found.per_image is not None and found.per_image.dtype == np.uint8
    np.testing.assert_array_equal(found.per_image, truth)
    np.testing.assert_allclose(found.values, truth.mean(0))
    assert found.score == "mismatch" and found.binary
    assert found.accuracy[0] == pytest.approx(1 - truth.mean())


def test_references_that_do_not_match_are_left_out(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        references = model(images)
    references[1] = -references[1]  # a pair that is rejected uncovered
    threshold = middle(model, images)
    found = swept(model, images, references, score=Mismatch(threshold), stride=3)
    assert found.image_indices is not None and found.image_indices.tolist() == [0, 2, 3, 4]
    assert found.n_skipped == 1
    kept = torch.tensor([0, 2, 3, 4])
    np.testing.assert_array_equal(found.per_image, by_hand(model, images[kept], references[kept], threshold, 3))
    every = swept(model, images, references, score=Mismatch(threshold), stride=3, skip_misclassified=False)
    assert every.n_images == 5
    np.testing.assert_array_equal(every.per_image, by_hand(model, images, references, threshold, 3))


def test_adaptive_follows_the_border(model: nn.Module, images: Tensor) -> None:
    score = Mismatch(middle(model, images))
    full = swept(model, images, score=score)
    found = swept(model, images, score=score, method=Adaptive(check=0.05))
    assert found.per_image is not None and full.per_image is not None
    assert float((found.per_image == full.per_image).mean()) > 0.97
    assert found.n_evaluations < 0.75 * full.n_evaluations
    assert found.estimate is not None


def test_the_map_is_saved_shown_and_resumed(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    score = Mismatch(middle(model, images))
    found = swept(model, images, score=score, stride=5, checkpoint=path)
    assert "accuracy" in repr(found)
    assert "no longer match" in Path(found.to_html(tmp_path / "m.html")).read_text()
    with pytest.raises(ValueError, match="checkpoint"):
        swept(model, images, score=Mismatch(score.threshold - 0.1), stride=5, checkpoint=path)
    again = swept(model, images, score=score, stride=5, checkpoint=path)
    np.testing.assert_array_equal(again.values, found.values)
    found.save(path)
    np.testing.assert_array_equal(OcclusionMap.load(path).values, found.values)


def test_the_sampled_mean_is_near(model: nn.Module) -> None:
    noise = torch.rand(60, 1, 8, 7, generator=torch.Generator().manual_seed(1))
    many = F.interpolate(noise, SIZE, mode="bicubic").clamp(0, 1)
    score = Mismatch(middle(model, many[:5]))
    full, found = (swept(model, many, score=score, method=method) for method in ("auto", "sampled"))
    assert float(np.abs(full.values - found.values).mean()) < 0.1


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda: Mismatch(1.0), ValueError, "threshold: expected a cosine similarity"),
        (lambda: Mismatch(-1.0), ValueError, "threshold: expected"),
        (lambda: Mismatch("a"), TypeError, "threshold: expected a number"),
        (lambda: "mismatch", ValueError, r"score: expected Mismatch\(threshold\)"),
    ],
)
def test_bad_thresholds(model: nn.Module, images: Tensor, score: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        swept(model, images, score=score())  # type: ignore[operator]


def test_references_of_another_width_are_refused(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match="reference embeddings"):
        swept(model, images, torch.zeros(5, 7), score=Mismatch(0.3))
    with pytest.raises(ValueError, match="K of at least 2"):
        swept(nn.Sequential(nn.Flatten(), nn.Linear(30 * 26, 1)).eval(), images, score=Mismatch(0.3))
