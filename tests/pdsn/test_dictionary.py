"""The mask dictionary: percentiles, products, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from occfast import DataError
from occfast.pdsn import Base, MaskDictionary, build_dictionary, grid, train_generators
from occfast.pdsn.generator import cover
from tests.pdsn.toys import CHANNELS, SIZE, toy_base, toy_images, toy_regions


def made(percentile: float = 25.0, shape: tuple[int, ...] = (5, 4, 4)) -> MaskDictionary:
    means = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    return MaskDictionary(toy_regions(), means, percentile, "0" * 16, (7, 7, 7))


@pytest.mark.parametrize("percentile", [0, 5, 20, 25, 30, 50, 100])
def test_percentile_discards_that_share(percentile):
    dictionary = made(percentile)
    for mean, mask, threshold in zip(dictionary.means, dictionary.masks, dictionary.thresholds, strict=True):
        expected = np.percentile(mean.double().numpy(), percentile)
        assert float(threshold) == pytest.approx(expected, abs=1e-15)
        assert torch.equal(mask, mean.double() > threshold)
        # Of 80 values p % lie below: the lowest is at or below its own value, so at least one goes.
        assert int((~mask).sum()) == int(79 * percentile / 100) + 1


def test_percentile_by_hand():
    means = torch.arange(10.0).view(1, 10, 1, 1)
    one = MaskDictionary(grid(1, 1, (4, 4)), means, 30.0, "", (1,))
    assert float(one.thresholds) == pytest.approx(2.7)
    assert one.masks.flatten().tolist() == [False] * 3 + [True] * 7
    assert one.with_percentile(50).masks.sum() == 5
    assert one.soft_masks.flatten().tolist() == pytest.approx([k / 9 for k in range(10)])


def test_papers_percentiles_are_the_defaults():
    base, (images, labels) = toy_base(), toy_images(each=4)
    from occfast.pdsn import landmark_bands, landmark_boxes

    landmarks = (
        torch.tensor([[5.0, 3], [5, 8], [8, 6], [11, 4], [11, 8]])[None] + torch.tensor([-0.3, 0.0, 0.4])[:, None, None]
    )
    wanted = {25: grid(3, 3, SIZE), 20: landmark_boxes(landmarks, SIZE), 30: landmark_bands(landmarks, SIZE)}
    for percentile, regions in wanted.items():
        found = build_dictionary(base, regions, [(images, labels)], epochs=1, batch_size=15, progress=False)
        assert found.percentile == percentile


def test_means_are_of_normalized_outputs():
    """Against the definition, pair by pair."""
    base, regions, (images, labels) = toy_base(), toy_regions(), toy_images(each=3)
    generators = train_generators(base, regions, images, labels, epochs=2, batch_size=9, progress=False)
    dictionary = build_dictionary(
        base,
        regions,
        [(images[:8], labels[:8]), (images[8:], labels[8:])],
        generators=generators,
        intensity=(0.5, 0.5),
        batch_size=4,
        progress=False,
    )
    assert dictionary.means.shape == (3, CHANNELS, 4, 3) and dictionary.pairs == (15, 15, 15)
    with torch.no_grad():
        for k in range(3):
            total = torch.zeros(CHANNELS, 4, 3, dtype=torch.float64)
            for image in images:
                covered = cover(image[None], regions.boxes[k : k + 1], torch.tensor([0.5]))
                m = generators.each[k]((base.maps(image[None]) - base.maps(covered)).abs())[0]
                total += ((m - m.min()) / (m.max() - m.min())).double()
            torch.testing.assert_close(dictionary.means[k].double(), total / 15, rtol=1e-5, atol=1e-6)


def test_discard_mask_is_the_product_of_the_occluded():
    dictionary = made()
    masks = dictionary.masks
    occlusion = torch.zeros(4, *SIZE, dtype=torch.bool)
    occlusion[1, 0:4] = True  # all of the top
    occlusion[2, 0:2] = occlusion[2, 4:12] = True  # half of the top, all of the middle
    occlusion[3, 0:2] = True
    occlusion[3, 0, 0] = False  # one pixel less than half
    found = dictionary.discard_mask(occlusion)
    assert found.dtype == torch.bool and bool(found[0].all()) and bool(found[3].all())
    assert torch.equal(found[1], masks[0]) and torch.equal(found[2], masks[0] & masks[1])
    soft = dictionary.discard_mask(occlusion, soft=True)
    assert bool((soft[0] == 1).all())
    torch.testing.assert_close(soft[2], dictionary.soft_masks[0] * dictionary.soft_masks[1])


def test_per_image_regions():
    dictionary = made()
    own = dictionary.regions.boxes.expand(2, -1, -1).clone()
    own[1] += torch.tensor([2, 0, 2, 0])  # this face lies two pixels lower
    own[1, 2, 2] = 16
    occlusion = torch.zeros(2, *SIZE, dtype=torch.bool)
    occlusion[:, 4:6] = True
    assert dictionary.regions.occluded(occlusion, own).tolist() == [[False, False, False], [True, False, False]]
    assert torch.equal(dictionary.discard_mask(occlusion, boxes=own)[1], dictionary.masks[0])


def test_report_counts():
    rows = made().report([25, 50])
    assert [row["percentile"] for row in rows] == [25, 50]
    assert rows[0]["discarded"] == {"top": 0.25, "middle": 0.25, "bottom": 0.25}
    gone = ~made(50).masks
    assert rows[1]["all_regions"] == pytest.approx(float(gone.any(0).double().mean()))
    pairs = [(0, 1), (0, 2), (1, 2)]
    jaccard = [float((gone[a] & gone[b]).sum() / (gone[a] | gone[b]).sum()) for a, b in pairs]
    assert rows[1]["overlap"] == pytest.approx(max(jaccard))


def test_saved_and_loaded(tmp_path):
    dictionary = made()
    path = dictionary.save(tmp_path / "d.npz")
    again = MaskDictionary.load(path)
    assert torch.equal(again.means, dictionary.means) and torch.equal(again.masks, dictionary.masks)
    assert again.regions.to_json() == dictionary.regions.to_json()
    assert (again.percentile, again.base, again.pairs) == (25.0, "0" * 16, (7, 7, 7))


def test_another_base_is_refused():
    base, (images, labels) = toy_base(), toy_images(each=3)
    dictionary = build_dictionary(base, toy_regions(), [(images, labels)], epochs=1, batch_size=9, progress=False)
    dictionary.check_base(base)
    with torch.no_grad():
        base.trunk[0].bias[0] += 1e-3
    with pytest.raises(ValueError, match="features differ"):
        dictionary.check_base(base)
    generators = train_generators(base, toy_regions(), images, labels, epochs=1, batch_size=9, progress=False)
    other = Base(base.trunk, nn.Flatten(), base.head, mean=0.4)
    with pytest.raises(ValueError, match="trained with base"):
        build_dictionary(other, toy_regions(), [(images, labels)], generators=generators)
    with pytest.raises(ValueError, match="other regions"):
        build_dictionary(base, grid(1, 1, SIZE), [(images, labels)], generators=generators)


def test_damaged_files_are_found(tmp_path):
    path = made().save(tmp_path / "d.npz")
    content = dict(np.load(path))
    for change in (
        {"kind": "another"},
        {"about": "{"},
        {"about": json.dumps({})},
        {"regions": "[]"},
        {"means": content["means"][:2]},
        {"means": content["means"].astype(np.float64)},
    ):
        np.savez(tmp_path / "bad.npz", **{**content, **change})
        with pytest.raises(DataError, match=r"bad\.npz"):
            MaskDictionary.load(tmp_path / "bad.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError):
        MaskDictionary.load(path)
    with pytest.raises(FileNotFoundError):
        MaskDictionary.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="npz"):
        made().save(tmp_path / "d.txt")


def test_bad_input():
    with pytest.raises(ValueError, match="percentile"):
        made().with_percentile(101)
    with pytest.raises(ValueError, match="means"):
        made(shape=(5, 4))
    with pytest.raises(TypeError, match="bool"):
        made().combine(torch.ones(2, 3))
    with pytest.raises(ValueError, match="occluded"):
        made().combine(torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="loader"):
        build_dictionary(toy_base(), toy_regions(), [])
    with pytest.raises(TypeError, match="epochs: only valid without generators"):
        build_dictionary(toy_base(), toy_regions(), [toy_images(each=1)], generators=object(), epochs=3)
