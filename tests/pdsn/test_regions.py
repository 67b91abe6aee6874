"""Regions against hand-computed geometry."""

from __future__ import annotations

import math

import pytest
import torch

from occfast import DataError
from occfast.pdsn import Regions, boxes, grid, landmark_bands, landmark_boxes
from occfast.pdsn.regions import named, paint

# Two faces whose landmarks differ by ±(1, 2) about a mean: σ of rows 1, of columns 2, for every landmark.
MEAN = torch.tensor([[30.0, 20.0], [30.0, 60.0], [50.0, 40.0], [70.0, 25.0], [70.0, 55.0]], dtype=torch.float64)
SHIFT = torch.tensor([1.0, 2.0], dtype=torch.float64)
TWO = torch.stack([MEAN - SHIFT, MEAN + SHIFT])
SIZE = (100, 80)


def test_grid_covers_every_pixel_once():
    regions = grid(3, 3, (128, 96))
    assert len(regions) == 9 and regions.percentile == 25
    assert regions.boxes[0].tolist() == [0, 0, 43, 32] and regions.boxes[8].tolist() == [85, 64, 128, 96]
    assert bool((regions.masks.sum(0) == 1).all())


def test_lm1_by_hand():
    regions = landmark_boxes(TWO, SIZE)
    assert regions.names == ("left eye", "right eye", "nose", "mouth") and regions.percentile == 20
    # Rows 30 ± 2·1 and columns 20 ± 2·2, both ends included.
    assert regions.boxes.tolist() == [[28, 16, 33, 25], [28, 56, 33, 65], [48, 36, 53, 45], [68, 36, 73, 45]]
    shares, whole = regions.inside(TWO)
    assert shares.tolist() == [1.0] * 4 and whole == 1.0


def test_lm2_by_hand():
    regions = landmark_bands(TWO, SIZE)
    assert regions.names == ("forehead", "eyes", "nose", "mouth", "chin") and regions.percentile == 30
    # Eyes 30 - 3 to 30 + 2, mouth 70 - 2 to 70 + 2.
    assert regions.boxes[:, 0].tolist() == [0, 27, 33, 68, 73]
    assert regions.boxes[:, 2].tolist() == [27, 33, 68, 73, 100]
    assert bool((regions.boxes[:, 1] == 0).all()) and bool((regions.boxes[:, 3] == 80).all())
    assert bool((regions.masks.sum(0) == 1).all())
    shares, whole = regions.inside(TWO)
    assert math.isnan(shares[0]) and math.isnan(shares[4]) and shares[1:4].tolist() == [1, 1, 1] and whole == 1


def test_lm2_spread_is_of_all_eyes():
    tilted = MEAN.clone()
    tilted[0, 0], tilted[1, 0] = 28.0, 32.0
    faces = torch.stack([tilted - SHIFT, tilted + SHIFT])  # rows 27, 29, 31, 33: mean 30, σ = √5
    regions = landmark_bands(faces, SIZE)
    assert regions.spread["eyes"][0] == pytest.approx(math.sqrt(5))
    assert regions.boxes[1].tolist() == [math.ceil(30 - 3 * 5**0.5), 0, math.floor(30 + 2 * 5**0.5) + 1, 80]


def test_split_parts_each_band_at_the_nose():
    regions = landmark_bands(TWO, SIZE, split=True)
    assert len(regions) == 10 and regions.names[2:4] == ("left eyes", "right eyes")
    assert regions.boxes[2].tolist() == [27, 0, 33, 40] and regions.boxes[3].tolist() == [27, 40, 33, 80]
    assert bool((regions.masks.sum(0) == 1).all())
    assert regions.inside(TWO)[1] == 1.0


def test_regions_of_one_image_move_with_its_landmarks():
    for regions in (landmark_boxes(TWO, SIZE), landmark_bands(TWO, SIZE), landmark_bands(TWO, SIZE, split=True)):
        assert torch.equal(regions.at(MEAN[None])[0], regions.boxes)
    lower = MEAN + torch.tensor([5.0, -4.0], dtype=torch.float64)
    assert landmark_boxes(TWO, SIZE).at(lower[None])[0, 0].tolist() == [33, 12, 38, 21]
    assert landmark_bands(TWO, SIZE).at(lower[None])[0, :, 0].tolist() == [0, 32, 38, 73, 78]
    regions = landmark_bands(TWO, SIZE)
    off = (MEAN + torch.tensor([20.0, 0.0], dtype=torch.float64))[None]
    assert regions.inside(off)[1] == 0.0 and regions.inside(off, own=True)[1] == 1.0


def test_a_region_that_leaves_the_image_is_empty_and_never_covered():
    regions = landmark_boxes(TWO, SIZE)
    gone = (MEAN + torch.tensor([200.0, 0.0], dtype=torch.float64))[None]
    own = regions.at(gone)
    everything = torch.ones(1, *SIZE, dtype=torch.bool)
    assert regions.coverage(everything, own).tolist() == [[0.0] * 4]
    assert regions.coverage(everything).tolist() == [[1.0] * 4]


def test_coverage_by_counting():
    regions = boxes({"a": (0, 0, 4, 5), "b": (2, 3, 9, 8)}, (10, 8))
    occlusion = torch.rand(6, 10, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = torch.stack(
        [occlusion[:, 0:4, 0:5].double().mean((1, 2)), occlusion[:, 2:9, 3:8].double().mean((1, 2))], 1
    )
    torch.testing.assert_close(regions.coverage(occlusion), expected, rtol=0, atol=0)
    assert torch.equal(regions.masks, paint(regions.boxes, (10, 8)))


def test_half_is_enough():
    regions = boxes({"a": (0, 0, 2, 5)}, (4, 5))
    occlusion = torch.zeros(2, 4, 5, dtype=torch.bool)
    occlusion[0, 0] = True  # 5 of 10 pixels
    occlusion[1, 0, :4] = True  # 4 of 10
    assert regions.occluded(occlusion).tolist() == [[True], [False]]
    assert not bool(regions.occluded(torch.zeros(3, 4, 5, dtype=torch.bool)).any())


def test_named_and_json():
    for kind in ("3x3", "2x4", "lm1", "lm2", "lm2-split"):
        regions = named(kind, SIZE, TWO)
        again = Regions.from_json(regions.to_json())
        assert torch.equal(again.boxes, regions.boxes) and again.to_json() == regions.to_json()
        assert torch.equal(again.masks, regions.masks)
    with pytest.raises(DataError, match="here: not a description of regions"):
        Regions.from_json('{"kind": "lm1"}', "here")


def test_drawing_tells_the_share():
    ax = landmark_bands(TWO, SIZE).draw(torch.rand(1, *SIZE), landmarks=TWO)
    assert [text.get_text() for text in ax.texts] == ["forehead", "eyes 100 %", "nose 100 %", "mouth 100 %", "chin"]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: grid(0, 3, SIZE), "rows, columns"),
        (lambda: grid(3, 99, SIZE), "one cell a pixel"),
        (lambda: boxes({}, SIZE), "at least one"),
        (lambda: boxes({"a": (0, 0, 101, 3)}, SIZE), "inside 100×80"),
        (lambda: boxes({"a": (5, 0, 5, 3)}, SIZE), "at least one pixel"),
        (lambda: boxes({"a": (0, 0, 5)}, SIZE), "four ints"),
        (lambda: landmark_boxes(TWO[:, :4], SIZE), r"\[N, 5, 2\]"),
        (lambda: landmark_boxes(TWO * float("nan"), SIZE), "finite"),
        (lambda: landmark_bands(TWO + 1000, SIZE), "no pixel is left"),
        (lambda: grid(3, 3, SIZE).at(TWO), "made from landmarks"),
        (lambda: named("lm3", SIZE, TWO), "lm3"),
        (lambda: named("lm2", SIZE), "landmarks"),
        (lambda: grid(3, 3, SIZE).coverage(torch.ones(1, 3, 3, dtype=torch.bool)), "occlusion"),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_wrong_types():
    with pytest.raises(TypeError, match="bool"):
        grid(3, 3, SIZE).coverage(torch.ones(1, *SIZE))
    with pytest.raises(TypeError, match="floating"):
        landmark_boxes(torch.ones(2, 5, 2, dtype=torch.int64), SIZE)
