"""Maps of two photographs that a recognizer compares, against loops over positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from occfast.sweep import PairMap, SmallestOccluder, pair_map

SIZE = (20, 16)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.LazyLinear(16)).eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    found = network()
    found(torch.zeros(1, 3, *SIZE))
    return found.double()


@pytest.fixture(scope="module")
def photos() -> Tensor:
    random = torch.Generator().manual_seed(1)
    shared = torch.rand(1, 3, *SIZE, generator=random, dtype=torch.float64)
    return (shared + 0.5 * torch.rand(2, 3, *SIZE, generator=random, dtype=torch.float64)).clamp(0, 1)


def covered(image: Tensor, row: int, column: int, size: tuple[int, int], fill: float) -> Tensor:
    top, left = row - size[0] // 2, column - size[1] // 2
    found = image.clone()
    found[:, max(0, top) : max(0, top + size[0]), max(0, left) : max(0, left + size[1])] = fill
    return found


def similarities(
    model: nn.Module, photos: Tensor, size: tuple[int, int], fill: float, stride: tuple[int, int]
) -> Tensor:
    """Similarity with an occluder at each position of each photograph, [2, rows, columns]."""
    found = []
    with torch.no_grad():
        for photo in (0, 1):
            other = model(photos[1 - photo : 2 - photo])
            rows = [
                [
                    F.cosine_similarity(model(covered(photos[photo], r, c, size, fill)[None]), other)
                    for c in range(0, SIZE[1], stride[1])
                ]
                for r in range(0, SIZE[0], stride[0])
            ]
            found.append(torch.stack([torch.cat(row) for row in rows]))
    return torch.stack(found)


def test_values_and_intervals_are_those_of_a_loop(model: nn.Module, photos: Tensor) -> None:
    fills = (0.0, 0.4, 1.0)
    found = pair_map(model, *photos, (7, 6), fills=fills, stride=3, progress=False)
    whole = float(F.cosine_similarity(*model(photos).detach().split(1)))
    drops = np.stack([whole - similarities(model, photos, (7, 6), fill, (3, 3)).numpy() for fill in fills])
    assert found.similarity == pytest.approx(whole, abs=1e-12) and found.accepted is None and found.smallest is None
    np.testing.assert_allclose(found.drops, drops, atol=1e-9)
    np.testing.assert_allclose(found.values, drops.mean(0), atol=1e-9)
    np.testing.assert_allclose(found.standard_error, drops.std(0, ddof=1) / np.sqrt(3), atol=1e-9)
    reach = 4.302652729911275 * drops.std(0, ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
    np.testing.assert_allclose(found.interval, [drops.mean(0) - reach, drops.mean(0) + reach], atol=1e-8)
    assert np.array_equal(found.similar, drops.mean(0) - reach > 0) and not (found.similar & found.dissimilar).any()
    assert found.evaluations >= 3 * 2 * 7 * 6


@pytest.mark.parametrize("accepted", [True, False])
def test_the_smallest_occluder_changes_the_decision(model: nn.Module, photos: Tensor, accepted: bool) -> None:
    whole = float(F.cosine_similarity(*model(photos).detach().split(1)))
    # Where the network accepts, far below the similarity; else just above it, where some occluder helps.
    most = float(similarities(model, photos, (6, 6), 0.4, (1, 1)).max())
    threshold = whole - 0.05 if accepted else whole + 0.5 * (most - whole)
    found = pair_map(model, *photos, (6, 6), threshold=threshold, fills=(0.4, "mean"), stride=6, progress=False)
    box = found.smallest
    assert found.accepted is accepted and box is not None and f"photograph {box.photo}" in str(found)
    image = photos[box.photo].clone()
    image[:, box.top : box.bottom, box.left : box.right] = 0.4
    with torch.no_grad():
        value = float(F.cosine_similarity(model(image[None]), model(photos[1 - box.photo][None])))
    assert value == pytest.approx(box.similarity, abs=1e-6) and (value >= threshold) is not accepted
    # One pixel less changes nothing at the positions that were tried (all of them at this size).
    side = max(box.bottom - box.top, box.right - box.left) - 1
    if side:
        smaller = similarities(model, photos, (side, side), 0.4, (1, 1))
        assert bool(((smaller >= threshold) == accepted).all())


def test_no_occluder_may_change_the_decision(model: nn.Module, photos: Tensor) -> None:
    found = pair_map(model, photos[0], photos[0], 6, threshold=-0.999, fills=(0.0, 1.0), stride=6, progress=False)
    assert found.accepted and found.smallest is None and "no occluder" in str(found)
    assert found.similarity == pytest.approx(1, abs=1e-12) and not found.dissimilar.any()


def test_float32_and_functions(model: nn.Module, photos: Tensor) -> None:
    whole = pair_map(model, *photos, 6, fills=(0.0, 0.5), stride=5, progress=False)
    single = network()
    single(torch.zeros(1, 3, *SIZE))
    single.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    found = pair_map(lambda x: single(x), *photos.float(), 6, fills=(0.0, 0.5), stride=5, progress=False)
    np.testing.assert_allclose(found.values, whole.values, atol=1e-5)


def test_picture(model: nn.Module, photos: Tensor) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    found = pair_map(model, *photos, 6, threshold=0.9, fills=(0.0, 0.5), stride=4, progress=False)
    box = SmallestOccluder(1, 2, 3, 8, 9, 0.4)
    marked = PairMap(**{**vars(found), "smallest": box})
    assert not marked.plot(0).patches
    (patch,) = marked.plot(1, image=photos[1]).patches
    assert (patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) == (2.5, 1.5, 6, 6)
    with pytest.raises(ValueError, match="photo"):
        found.plot(2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"threshold": 1.5}, ValueError, r"threshold: expected a cosine similarity in \(-1, 1\), got 1.5"),
        ({"threshold": "x"}, TypeError, "threshold"),
        ({"fills": (0.0,)}, ValueError, "fills: expected at least two contents, whose spread is the error, got 1"),
        ({"fills": "mean"}, TypeError, "fills: expected a list of at least two contents, got 'mean'"),
        ({"fills": ("mean", "stripes")}, ValueError, "fill: expected"),
        ({"occluder": 40}, ValueError, "occluder: expected at most the image's 20x16"),
        ({"first": torch.zeros(1, 3, *SIZE)}, ValueError, r"first: expected a prepared photograph \[C, H, W\]"),
        ({"second": torch.zeros(3, 20, 17, dtype=torch.float64)}, ValueError, "second: expected shape and dtype"),
        ({"model": nn.Identity().train()}, ValueError, "model: expected evaluation mode"),
    ],
)
def test_bad_arguments(model: nn.Module, photos: Tensor, changes: dict, error: type, message: str) -> None:
    given = {"model": model, "first": photos[0], "second": photos[1], "occluder": 6, "progress": False, **changes}
    with pytest.raises(error, match=message):
        pair_map(**given)
