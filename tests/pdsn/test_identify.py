"""Identification under masks: grouping, exact sums, ties."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from occfast.pdsn import Base, MaskDictionary, identify, match
from occfast.pdsn.matching import fixed_point
from tests.pdsn.toys import CHANNELS, SIZE, toy_base, toy_images, toy_regions

SHAPE = (12, 4, 3)


def maps(n: int, seed: int) -> torch.Tensor:
    """Like a network's: not negative, mostly zero, of very different sizes."""
    random = torch.Generator().manual_seed(seed)
    size = torch.exp(2 * torch.randn(n, 1, 1, 1, generator=random))
    return torch.randn(n, *SHAPE, generator=random).clamp_min(0) * size


def problem(soft: bool = False, probes: int = 40, gallery: int = 70):
    random = torch.Generator().manual_seed(7)
    masks = torch.rand(5, *SHAPE, generator=random)
    masks = masks if soft else masks > 0.3
    masks[0] = 1
    group = torch.randint(0, 5, (probes,), generator=random)
    labels = torch.randint(0, 9, (gallery,), generator=random)
    return maps(gallery, 1), labels, maps(probes, 2), (masks, group)


def exact_cosine(p: torch.Tensor, g: torch.Tensor, w: torch.Tensor) -> float:
    """One pair by Python's integers, rounded once at each of the four operations of the definition."""
    p, g, w = (list(map(int, x.flatten().tolist())) for x in (p, g, w))
    dot = sum(a * b * c for a, b, c in zip(p, g, w, strict=True))
    norms = float(sum(a * a * c for a, c in zip(p, w, strict=True))) * float(
        sum(b * b * c for b, c in zip(g, w, strict=True))
    )
    return float(dot) / math.sqrt(norms) if norms else 0.0


@pytest.mark.parametrize("soft", [False, True])
def test_grouping_equals_the_loop_over_pairs_to_the_bit(soft):
    gallery, labels, probes, (masks, group) = problem(soft, probes=12, gallery=20)
    found = match(gallery, labels, probes, (masks, group), k=20)
    for i in range(len(probes)):
        bits = 8 if soft and group[i] else 0  # mask 0 keeps everything
        p, g = fixed_point(probes[i : i + 1].flatten(1), bits)[0], fixed_point(gallery.flatten(1), bits)
        w = (masks[group[i]].double().square() * 2**bits).round().flatten()
        row = torch.tensor([exact_cosine(p, each, w) for each in g], dtype=torch.float64)
        order = sorted(range(20), key=lambda j: (-row[j], j))
        assert found.neighbors[i].tolist() == order
        assert torch.equal(found.similarities[i], row[order])
        assert torch.equal(found.labels[i], labels[order])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_grouping_equals_each_probe_alone_to_the_bit(soft, threads):
    torch.set_num_threads(threads)
    gallery, labels, probes, (masks, group) = problem(soft)
    masks[::2] = masks[::2] > 0.5  # soft masks of ones and zeros keep all bits, whatever is beside them
    together = match(gallery, labels, probes, (masks, group), k=70)
    for i in range(len(probes)):
        alone = match(
            gallery, labels, probes[i : i + 1], (masks[group[i]][None], torch.zeros(1, dtype=torch.int64)), k=70
        )
        assert torch.equal(alone.neighbors[0], together.neighbors[i])
        assert torch.equal(alone.similarities[0], together.similarities[i])


def test_tiles_change_nothing(monkeypatch):
    gallery, labels, probes, masks = problem()
    whole = match(gallery, labels, probes, masks, k=70)
    module = sys.modules[match.__module__]
    monkeypatch.setattr(module, "_TILE", 9)
    monkeypatch.setattr(module, "_PROBES", 7)
    tiled = match(gallery, labels, probes, masks, k=70)
    assert torch.equal(whole.similarities, tiled.similarities) and torch.equal(whole.neighbors, tiled.neighbors)


@pytest.mark.parametrize("soft", [False, True])
def test_cosines_of_the_definition(soft):
    gallery, labels, probes, (masks, group) = problem(soft)
    found = match(gallery, labels, probes, (masks, group), k=70)
    m = masks.double()[group].flatten(1)
    for i in range(len(probes)):
        cosine = F.cosine_similarity(gallery.double().flatten(1) * m[i], probes[i].double().flatten()[None] * m[i])
        torch.testing.assert_close(
            found.similarities[i], cosine[found.neighbors[i]], rtol=0, atol=3e-3 if soft else 1e-6
        )


def test_no_mask_is_a_mask_of_ones_to_the_bit():
    gallery, labels, probes, (masks, group) = problem()
    plain = match(gallery, labels, probes, k=70)
    ones = match(gallery, labels, probes, (torch.ones_like(masks), group), k=70)
    assert torch.equal(plain.similarities, ones.similarities) and torch.equal(plain.neighbors, ones.neighbors)
    assert plain.groups == ones.groups == 1
    mixed = match(gallery, labels, probes, (masks, group), k=70)
    clean = group == 0
    assert 0 < int(clean.sum()) < len(clean)
    assert torch.equal(mixed.similarities[clean], plain.similarities[clean])


@pytest.mark.parametrize("d", [1, 3, 100, 24_576])
@pytest.mark.parametrize("weight_bits", [0, 8])
def test_fixed_point_sums_are_exact(d, weight_bits):
    rows = torch.randn(2, d, generator=torch.Generator().manual_seed(d)).float()
    rows[1] = 3e30  # all of the largest size: the worst case
    fixed = fixed_point(rows, weight_bits)
    assert torch.equal(fixed, fixed.round())
    assert d * 2**weight_bits * float(fixed.abs().max()) ** 2 <= 2**53
    scale = fixed[0].abs().max() / rows[0].abs().max().double()
    torch.testing.assert_close(fixed[0] / scale, rows[0].double(), rtol=0, atol=float(1.01 / scale))
    exact = sum(Fraction(a) * Fraction(b) for a, b in zip(fixed[0].tolist(), fixed[1].tolist(), strict=True))
    assert Fraction(float(fixed[0] @ fixed[1])) == exact
    backwards = fixed.flip(1)
    assert float(backwards[0] @ backwards[1]) == float(exact)


def test_zero_maps_match_nothing():
    gallery, labels, probes, masks = problem()
    probes[3] = 0
    gallery[5] = 0
    found = match(gallery, labels, probes, masks, k=70)
    assert bool((found.similarities[3] == 0).all()) and found.neighbors[3].tolist() == list(range(70))
    assert bool(torch.isfinite(found.similarities).all())


def test_of_equals_the_first_wins():
    gallery = maps(1, 1).repeat(6, 1, 1, 1)
    found = match(gallery, torch.arange(6), maps(4, 2), k=3)
    assert found.neighbors.tolist() == [[0, 1, 2]] * 4


def test_ranking_counts():
    gallery, labels, probes, masks = problem()
    found = match(gallery, labels, probes, masks, k=5)
    truth = found.labels[:, 2].clone()
    assert found.accuracy(truth, 3) == 1.0
    assert found.accuracy(truth, 1) == float((found.labels[:, 0] == truth).double().mean())
    with pytest.raises(ValueError, match="k:"):
        found.accuracy(truth, 6)
    with pytest.raises(ValueError, match="labels"):
        found.accuracy(truth[1:], 1)


# -- identify: from images ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base() -> Base:
    return toy_base()


@pytest.fixture(scope="module")
def dictionary(base) -> MaskDictionary:
    """The truth instead of a learned one: the rows of features that each band covers."""
    means = torch.ones(3, CHANNELS, 4, 3) - 0.1 * torch.rand(
        3, CHANNELS, 4, 3, generator=torch.Generator().manual_seed(0)
    )
    for k, rows in enumerate((slice(0, 1), slice(1, 3), slice(3, 4))):
        means[k, :, rows] *= 0.1
    return MaskDictionary(toy_regions(), means, 25.0, base.fingerprint(), (1, 1, 1))


def bands(images: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """White bands over one region each; every fourth image stays clean."""
    regions = toy_regions()
    region = torch.arange(len(images)) % 4
    occlusion = torch.cat([regions.masks, torch.zeros(1, *SIZE, dtype=torch.bool)])[region]
    return torch.where(occlusion[:, None], 1.0, images), occlusion


def test_masks_of_the_truth_win(base, dictionary):
    gallery, labels = toy_images(each=6)
    clean, truth = toy_images(each=12, seed=5)
    probes, occlusion = bands(clean)
    none = identify(base, None, gallery, labels, probes, occlusion)
    masked = identify(base, dictionary, gallery, labels, probes, occlusion)
    assert masked.groups == 4 and masked.occluded.sum() == int((torch.arange(60) % 4 < 3).sum())
    assert masked.accuracy(truth) >= none.accuracy(truth)
    covered = torch.arange(60) % 4 < 3
    assert masked.similarities[covered, 0].mean() > none.similarities[covered, 0].mean()


@pytest.mark.parametrize("compare", ["maps", "features"])
@pytest.mark.parametrize("soft", [False, True])
def test_a_segmentation_of_nothing_equals_no_masking(base, dictionary, compare, soft):
    gallery, labels = toy_images(each=6)
    probes, _ = bands(toy_images(each=4, seed=5)[0])
    nothing = torch.zeros(len(probes), *SIZE, dtype=torch.bool)
    none = identify(base, None, gallery, labels, probes, None, compare=compare)
    for occlusion in (nothing, None):
        found = identify(base, dictionary, gallery, labels, probes, occlusion, compare=compare, soft=soft)
        assert torch.equal(found.neighbors, none.neighbors) and found.groups == 1
        assert torch.equal(found.similarities, none.similarities)


def test_features_go_through_the_tail(base, dictionary):
    """With a pooling tail, against the plain definition; alone and together, to the bit."""
    pooled = Base(base.trunk, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    own = MaskDictionary(dictionary.regions, dictionary.means, 25.0, pooled.fingerprint(), (1, 1, 1))
    gallery, labels = toy_images(each=6)
    probes, occlusion = bands(toy_images(each=4, seed=5)[0])
    found = identify(pooled, own, gallery, labels, probes, occlusion, compare="features", k=30)
    mask = own.discard_mask(occlusion)
    g, p = pooled.all_maps(gallery), pooled.all_maps(probes)
    for i in range(len(probes)):
        cosine = F.cosine_similarity(pooled.features(g * mask[i]), pooled.features(p[i : i + 1] * mask[i]))
        torch.testing.assert_close(found.similarities[i], cosine.double()[found.neighbors[i]], rtol=0, atol=1e-6)
        alone = match(
            g,
            labels,
            p[i : i + 1],
            (mask[i : i + 1], torch.zeros(1, dtype=torch.int64)),
            k=30,
            compare="features",
            base=pooled,
        )
        assert torch.equal(alone.similarities[0], found.similarities[i])


def test_deterministic(base, dictionary):
    gallery, labels = toy_images(each=6)
    probes, occlusion = bands(toy_images(each=4, seed=5)[0])
    a, b = (identify(base, dictionary, gallery, labels, probes, occlusion) for _ in range(2))
    assert torch.equal(a.similarities, b.similarities) and torch.equal(a.neighbors, b.neighbors)


def test_bad_input(base, dictionary):
    gallery, labels = toy_images(each=2)
    probes, occlusion = bands(gallery)
    with pytest.raises(ValueError, match="occlusion"):
        identify(base, dictionary, gallery, labels, probes, occlusion[1:])
    with pytest.raises(ValueError, match="gallery_labels"):
        identify(base, dictionary, gallery, labels[1:], probes, occlusion)
    with pytest.raises(ValueError, match="compare"):
        identify(base, dictionary, gallery, labels, probes, occlusion, compare="pixels")
    with pytest.raises(ValueError, match="k:"):
        identify(base, dictionary, gallery, labels, probes, occlusion, k=11)
    with pytest.raises(ValueError, match="share"):
        identify(base, dictionary, gallery, labels, probes, occlusion, share=0.0)
    with pytest.raises(TypeError, match="bool"):
        identify(base, dictionary, gallery, labels, probes, occlusion.float())
    with pytest.raises(ValueError, match="features differ"):
        identify(Base(base.trunk, base.tail, mean=0.1), dictionary, gallery, labels, probes, occlusion)
    with pytest.raises(ValueError, match="finite"):
        match(maps(2, 1) * math.nan, torch.zeros(2, dtype=torch.int64), maps(2, 2), k=1)
    with pytest.raises(ValueError, match="as those of the gallery"):
        match(maps(2, 1), torch.zeros(2, dtype=torch.int64), maps(2, 2)[:, :3], k=1)
