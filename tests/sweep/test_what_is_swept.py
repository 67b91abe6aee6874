"""Occluders of any shape, regions, fills, scores and targets against their definitions in float64, one copy at a time."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import occfast
from occfast import SweepGrid
from occfast.sweep import band, disk
from occfast.sweep.options import _named, blurred
from tests import networks

SIZE = (21, 26)


@pytest.fixture(scope="module")
def net():
    return networks.lively(networks.Split()).double()


@pytest.fixture(scope="module")
def images():
    return torch.rand((3, 3, *SIZE), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def covered(grid, p):
    """Return the pixels under the occluder, bool [H, W], from the geometry's sentences."""
    row, column = divmod(p, grid.columns)
    top = grid.first[0] + row * grid.stride[0] - grid.occluder[0] // 2
    left = grid.first[1] + column * grid.stride[1] - grid.occluder[1] // 2
    mask = np.ones(grid.occluder, bool) if grid.mask is None else grid.mask.covered
    inside = torch.zeros(grid.image, dtype=torch.bool)
    for i, j in zip(*np.nonzero(mask), strict=True):
        if 0 <= top + i < grid.image[0] and 0 <= left + j < grid.image[1]:
            inside[top + i, left + j] = True
    return inside


@torch.no_grad()
def slow(net, images, grid, fill, value):
    """Return values of outputs with the occluder at each position, [N, rows, columns]; value(outputs [1, K], n)."""
    found = np.zeros((len(images), grid.positions))
    for n, image in enumerate(images):
        for p in range(grid.positions):
            copy = torch.where(covered(grid, p), fill[n], image)
            found[n, p] = float(value(net(copy[None]), n))
    return found.reshape(len(images), grid.rows, grid.columns)


def both(net, images, labels, occluder, **options):
    """Return the maps of the dense and of the incremental sweep."""
    maps = [
        occfast.occlusion_map(net, images, labels, occluder, method=method, progress=False, **options)
        for method in ("dense", "incremental")
    ]
    assert [m.method for m in maps] == ["dense", "incremental"]
    return maps


SHAPES = {
    "disk": disk(9),
    "ellipse": disk((6, 13)),
    "band": band(17, 3, 30),
    "two blots": torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 1]], dtype=torch.bool),
    "all of a box": np.ones((5, 8), bool),
}


@pytest.mark.parametrize("border", ["clip", "valid"])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(net, images, name, border):
    labels = torch.tensor([1, 4, 0])
    grid = SweepGrid.over(SIZE, SHAPES[name], stride=(3, 4), border=border)
    fill = torch.full_like(images, 0.3)
    with torch.no_grad():
        clean = net(images)
    expected = slow(net, images, grid, fill, lambda out, n: clean[n, labels[n]] - out[0, labels[n]])
    for m in both(net, images, labels, SHAPES[name], stride=(3, 4), border=border, fill=0.3, score="score_drop"):
        np.testing.assert_allclose(m.per_image, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(m.values, expected.mean(0), rtol=1e-9, atol=1e-11)
        assert m.grid == grid and (m.grid.mask is None) == (name == "all of a box")
    assert np.ptp(expected) > 0.01


def test_masks_are_their_bounding_boxes():
    padded = np.zeros((9, 12), bool)
    padded[2:7, 3:8] = disk(5)
    assert SweepGrid.over(SIZE, padded) == SweepGrid.over(SIZE, disk(5)) != SweepGrid.over(SIZE, (5, 5))
    assert SweepGrid.over(SIZE, torch.ones(5, 5, dtype=torch.bool)) == SweepGrid.over(SIZE, 5)
    assert SweepGrid.over(SIZE, disk(5)).occluder_text == "mask 5x5"
    assert disk(1).all() and disk(2).all() and disk(3).sum() == 9 - 4 * (2 / 3 > 2**-0.5)
    for diameter in (7, 8, (6, 11)):
        shape = disk(diameter)
        assert np.array_equal(shape, shape[::-1]) and np.array_equal(shape, shape[:, ::-1])
        assert abs(shape.mean() - np.pi / 4) < 0.08
    assert band(7, 3).shape == (3, 7) and band(8, 2).all() and band(7, 3, 90).shape == (7, 3)
    slanted = band(21, 1, 45)
    assert slanted.shape[0] == slanted.shape[1] and slanted[0, -1] and slanted[-1, 0] and not slanted[0, 0]


@pytest.mark.parametrize("border", ["clip", "valid"])
def test_regions(net, images, border):
    labels = torch.tensor([1, 4, 0])
    whole = SweepGrid.over(SIZE, (7, 6), border=border)
    region = (2, 9, 19, 20)
    options = dict(border=border, score="score_drop")
    full = occfast.occlusion_map(net, images, labels, (7, 6), method="dense", progress=False, **options)
    rows, columns = (each.numpy() for each in whole.centers)
    for step in (1, 3):
        for m in both(net, images, labels, (7, 6), region=region, stride=step, **options):
            inside = [(rows >= 2) & (rows < 19), (columns >= 9) & (columns < 20)]
            wanted = full.values[np.ix_(*inside)][::step, ::step]
            np.testing.assert_allclose(m.values, wanted, rtol=1e-9, atol=1e-11)
            assert np.array_equal(m.centers[0], rows[inside[0]][::step])
            assert np.array_equal(m.centers[1], columns[inside[1]][::step])
    assert SweepGrid.over(SIZE, (7, 6), border=border, region=(0, 0, *SIZE)).positions == whole.positions
    for method in ("adaptive", "sampled"):
        m = occfast.occlusion_map(net, images, labels, (7, 6), region=region, method=method, progress=False, **options)
        assert m.values.shape == (m.grid.rows, m.grid.columns) and m.grid.region == region


FILLS = {
    "each image": (lambda images: torch.linspace(0, 1, images.numel(), dtype=torch.float64).view(images.shape), None),
    "one image": (lambda images: images[:1].flip(-1), None),
    "blur": ("blur", lambda images: blurred(images, 2.1)),
    "function": (lambda: lambda x: x.flip(-1), lambda images: images.flip(-1)),
    "function of a color": (
        lambda: lambda x: x.amax((2, 3), keepdim=True),
        lambda images: images.amax((2, 3), keepdim=True).expand_as(images),
    ),
}


@pytest.mark.parametrize("name", FILLS)
def test_fills(net, images, name):
    made, definition = FILLS[name]
    if definition is None:
        fill = made(images)
        content = fill.expand_as(images)
    else:
        fill, content = made if isinstance(made, str) else made(), definition(images)
    labels = torch.tensor([1, 4, 0])
    grid = SweepGrid.over(SIZE, (7, 6), stride=5)
    with torch.no_grad():
        clean = net(images)
    expected = slow(net, images, grid, content, lambda out, n: clean[n, labels[n]] - out[0, labels[n]])
    for m in both(net, images, labels, (7, 6), stride=5, fill=fill, score="score_drop"):
        np.testing.assert_allclose(m.values, expected.mean(0), rtol=1e-9, atol=1e-11)
    # The rows of a fill for each image follow the images through batches, shuffling and images left out.
    if name == "each image":
        with torch.no_grad():
            right = net(images).argmax(1)
        right[1] = (right[1] + 1) % 5
        batches = [(images[:2], right[:2]), (images[2:], right[2:])]
        m = occfast.occlusion_map(net, batches, None, (7, 6), stride=5, fill=fill, progress=False)
        assert m.image_indices.tolist() == [0, 2]
        wrong = slow(net, images, grid, content, lambda out, n: out[0].argmax() != right[n])
        assert np.array_equal(m.per_image, wrong[[0, 2]])


def test_blur_is_a_normalized_gaussian():
    image = torch.rand(1, 1, 9, 11, dtype=torch.float64)
    found = blurred(image, 1.5)
    y, x = np.mgrid[:9, :11]
    for i, j in ((0, 0), (4, 5), (8, 3)):
        weights = np.exp(-0.5 * ((y - i) ** 2 + (x - j) ** 2) / 1.5**2)
        assert float(found[0, 0, i, j]) == pytest.approx(float((weights * image[0, 0].numpy()).sum() / weights.sum()))
    assert torch.allclose(blurred(torch.ones(1, 2, 5, 6), 2.0), torch.ones(1, 2, 5, 6))


def cross_entropy(outputs, labels):
    return -F.cross_entropy(outputs.double(), labels, reduction="none")


def to_a_point(outputs, labels):
    return -(outputs.double() - labels).square().sum(1)


def largest(outputs, labels):
    assert labels is None
    return outputs.amax(1)


SCORES = {
    "probability": ("probability_drop", lambda out, label: out.softmax(1)[0, label], torch.tensor([1, 4, 0])),
    "cross entropy": (cross_entropy, lambda out, label: out.log_softmax(1)[0, label], torch.tensor([1, 4, 0])),
    "embeddings": (to_a_point, lambda out, label: -((out[0] - label) ** 2).sum(), torch.rand(3, 5).double()),
    "no labels": (largest, lambda out, label: out.max(), None),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores(net, images, name):
    score, value, labels = SCORES[name]
    if labels is not None and labels.is_floating_point():
        with torch.no_grad():
            labels = labels.repeat(1, 20)[:, : net(images).shape[1]]
    grid = SweepGrid.over(SIZE, (7, 6), stride=4)

    def each(out, n):
        return value(out, None if labels is None else labels[n])

    with torch.no_grad():
        clean = [float(each(net(image[None]), n)) for n, image in enumerate(images)]
    expected = np.array(clean)[:, None, None] - slow(net, images, grid, torch.zeros_like(images), each)
    for m in both(net, images, labels, (7, 6), stride=4, score=score):
        np.testing.assert_allclose(m.values, expected.mean(0), rtol=1e-9, atol=1e-11)
        assert m.score == (score if isinstance(score, str) else f"drop of {score.__name__}")
        assert m.n_images == 3 and m.per_image.dtype == np.float32
    found = occfast.occlusion_map(net, images, labels, (7, 6), score=score, method="adaptive", progress=False)
    assert found.estimate is not None
    assert (
        occfast.occlusion_map(net, images, labels, (7, 6), score=score, method="sampled", progress=False).n_images == 3
    )


def test_several_targets_in_one_sweep(net, images):
    labels = torch.tensor([[1, 4], [2, 2], [0, 3]])
    calls = []
    counted = lambda x: calls.append(len(x)) or net(x)  # noqa: E731
    for score in ("score_drop", "probability_drop"):
        singles = [
            occfast.occlusion_map(net, images, labels[:, t], (7, 6), stride=3, score=score, progress=False)
            for t in (0, 1)
        ]
        for method in ("dense", "incremental"):
            maps = occfast.occlusion_maps(
                net, images, labels, (7, 6), stride=3, score=score, method=method, progress=False
            )
            assert len(maps) == 2 and [m.method for m in maps] == [method] * 2
            for m, single in zip(maps, singles, strict=True):
                np.testing.assert_allclose(m.values, single.values, rtol=1e-9, atol=1e-11)
                np.testing.assert_allclose(m.standard_error, single.standard_error, rtol=1e-6)
                np.testing.assert_allclose(m.per_image, single.per_image, rtol=1e-5, atol=1e-7)
    calls.clear()
    occfast.occlusion_maps(counted, images, labels[:, :1], (7, 6), stride=3, batch_size=8, progress=False)
    one = sum(calls)
    calls.clear()
    occfast.occlusion_maps(counted, images, labels, (7, 6), stride=3, batch_size=8, progress=False)
    assert sum(calls) == one  # one forward pass serves all targets
    (alone,) = occfast.occlusion_maps(net, images, labels[:, 0], (7, 6), stride=3, progress=False)
    single = occfast.occlusion_map(net, images, labels[:, 0], (7, 6), stride=3, score="score_drop", progress=False)
    assert np.array_equal(alone.values, single.values)


@pytest.mark.parametrize("score", ["error", "score_drop"])
def test_the_average_over_occluders(net, images, score):
    with torch.no_grad():
        labels = net(images).argmax(1)
    boxes = [(5, 5), disk(9), (11, 7)]
    singles = [
        occfast.occlusion_map(net, images, labels, box, stride=3, score=score, method="dense", progress=False)
        for box in boxes
    ]
    for m in both(net, images, labels, boxes, stride=3, score=score):
        np.testing.assert_allclose(m.values, np.mean([each.values for each in singles], 0), rtol=1e-9, atol=1e-11)
        own = np.mean([each.per_image.astype(float) for each in singles], 0)
        np.testing.assert_allclose(m.per_image, own, rtol=1e-5, atol=1e-7)
        error = own.std(0, ddof=1) / np.sqrt(3)
        np.testing.assert_allclose(m.standard_error, error, rtol=1e-4, atol=1e-7)
        assert m.n_evaluations == sum(each.n_evaluations for each in singles)
        assert m.grids == tuple(each.grid for each in singles) and "5x5, mask 9x9, 11x7" in repr(m)


CASES = {
    "occluders": dict(occluder=[(5, 5), disk(9)], score="error"),
    "mask and region": dict(occluder=disk(9), region=(2, 3, 18, 20), score="probability_drop", fill="blur"),
    "function": dict(occluder=(7, 6), score=cross_entropy, fill=torch.flip),
}


@pytest.mark.parametrize("name", CASES)
def test_files(net, images, name, tmp_path):
    options = dict(CASES[name], stride=3, progress=False)
    if options.get("fill") is torch.flip:
        options["fill"] = lambda x: x.flip(-1)
    with torch.no_grad():
        labels = net(images).argmax(1)
    m = occfast.occlusion_map(net, images, labels, checkpoint=tmp_path / "map.npz", **options)
    m.save(tmp_path / "map.npz")
    loaded = occfast.OcclusionMap.load(tmp_path / "map.npz")
    assert np.array_equal(loaded.values, m.values) and loaded.grids == m.grids and loaded.score == m.score
    assert repr(loaded) == repr(m)
    page = loaded.to_html(tmp_path / "map.html").read_text()
    assert m.occluder_text.replace("x", " × ") in page
    again = occfast.occlusion_map(net, images, labels, checkpoint=tmp_path / "map.npz", **options)
    assert np.array_equal(again.values, m.values) and again.seconds == m.seconds  # the finished map, at once
    other = dict(options, occluder=disk(7)) if name != "function" else dict(options, score=to_a_point)
    with pytest.raises(ValueError, match=r"checkpoint: .* is of another sweep: (occluder|score)"):
        occfast.occlusion_map(net, images, labels, checkpoint=tmp_path / "map.npz", **other)


def test_functions_are_told_apart():
    def scaled(factor):
        return lambda outputs, labels: factor * outputs.amax(1)

    functions = [
        *(scaled(factor) for factor in (1.0, 2.0)),
        *(functools.partial(to_a_point, labels=label) for label in (1, 2)),
        to_a_point,
        cross_entropy,
    ]
    names = [_named(each) for each in functions]
    assert len(set(names)) == len(names) and names[0] == _named(scaled(1.0))
    assert names[3] == _named(functools.partial(to_a_point, labels=2))


def test_maps_of_other_occluders_are_not_subtracted(net, images):
    labels = torch.tensor([1, 4, 0])
    one, other = (
        occfast.occlusion_map(net, images, labels, boxes, stride=7, score="score_drop", progress=False)
        for boxes in ((5, 5), [(5, 5), (7, 7)])
    )
    for call in (lambda: one - other, lambda: other.compare(one)):
        with pytest.raises(ValueError, match="occluder: expected maps with the same occluders"):
            call()


@pytest.mark.parametrize("after", [1, 40, 100, 150, 230])
def test_interrupted_and_resumed(net, images, after, tmp_path):
    """Two occluders and two targets: 2 x 3 x 63 positions."""
    labels = torch.tensor([[1, 4], [2, 2], [0, 3]])
    options = dict(occluder=[(5, 5), disk(9)], stride=3, batch_size=8, method="dense")
    whole = occfast.occlusion_maps(net, images, labels, progress=False, **options)

    def stop(done, total):
        assert total == 2 * 3 * 63
        if done >= after:
            raise KeyboardInterrupt

    file = tmp_path / "map.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        occfast.occlusion_maps(net, images, labels, progress=stop, checkpoint=file, **options)
    calls = []
    count = lambda done, total: calls.append(done)  # noqa: E731
    maps = occfast.occlusion_maps(net, images, labels, progress=count, checkpoint=file, **options)
    assert calls[0] > after
    for m, expected in zip(maps, whole, strict=True):
        assert np.array_equal(m.values, expected.values) and np.array_equal(m.per_image, expected.per_image)
    maps[1].save(tmp_path / "1.npz")
    assert file.exists()
    maps[0].save(tmp_path / "0.npz")
    assert not file.exists()


BAD = {
    "mask dtype": (dict(occluder=torch.ones(3, 4)), TypeError, "occluder: expected a mask of bools"),
    "mask empty": (dict(occluder=np.zeros((3, 4), bool)), ValueError, "occluder: expected a mask with at least one"),
    "mask size": (dict(occluder=np.ones((30, 4), bool)), ValueError, "occluder: expected at most the image's 21x26"),
    "valid": (dict(occluder=[(3, 3), (5, 5)], border="valid"), ValueError, "occluder: expected one for border='valid'"),
    "adaptive": (dict(occluder=[3, (5, 5)], method="adaptive"), ValueError, "occluder: expected one for method='adap"),
    "region type": (dict(region=3), TypeError, r"region: expected \(top, left, bottom, right\), got 3"),
    "region order": (dict(region=(5, 0, 5, 3)), ValueError, "region: expected top < bottom and left < right"),
    "region size": (dict(region=(0, 0, 22, 3)), ValueError, "region: expected a part of the image's 21x26"),
    "region room": (
        dict(region=(0, 0, 2, 3), border="valid"),
        ValueError,
        "region: expected room for a whole occluder of 7x6",
    ),
    "fill count": (dict(fill=torch.zeros(2, 3, 1, 1)), ValueError, "fill: expected one for each image, got 2 for 3"),
    "fill rows": (dict(fill=torch.zeros(3, 3, 5, 1)), ValueError, "fill: expected a tensor that broadcasts"),
    "fill function": (dict(fill=lambda x: 3), TypeError, "fill: expected a function that returns a tensor, got int"),
    "fill result": (dict(fill=lambda x: x[:, :2]), ValueError, "fill: expected a function that returns a tensor that"),
    "fill nan": (dict(fill=lambda x: x / 0), ValueError, "fill: expected a function that returns finite"),
    "score type": (dict(score=lambda o, y: 3), TypeError, "score: expected a function that returns floating-point"),
    "score ints": (dict(score=lambda o, y: o.argmax(1)), TypeError, "score: expected a function .* got int64"),
    "score shape": (dict(score=lambda o, y: o), ValueError, "score: expected a function that returns one number"),
    "targets": (
        dict(labels=torch.zeros(3, 2).long()),
        ValueError,
        "several targets of an image are for occfast.occlusion_maps",
    ),
    "targets of errors": (
        dict(labels=torch.zeros(3, 2).long(), score="error"),
        TypeError,
        r"labels: expected int64 \[N\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(net, images, name):
    change, error, message = BAD[name]
    given = dict(labels=torch.tensor([1, 4, 0]), occluder=(7, 6), score="score_drop", stride=5, progress=False)
    with pytest.raises(error, match=message):
        occfast.occlusion_map(net, images, **{**given, **change})


def test_bad_targets(net, images):
    labels = torch.zeros(3, 2).long()
    with pytest.raises(ValueError, match=r"labels: expected int64 .* for method='sampled'"):
        occfast.occlusion_maps(net, images, labels, (7, 6), method="sampled", progress=False)
    with pytest.raises(ValueError, match="skip_misclassified: expected False"):
        occfast.occlusion_maps(net, images, labels, (7, 6), skip_misclassified=True, progress=False)
    with pytest.raises(ValueError, match=r"labels: expected classes in \[0, "):
        occfast.occlusion_maps(net, images, labels - 1, (7, 6), progress=False)
    with pytest.raises(TypeError, match="unexpected keyword argument 'strides'"):
        occfast.occlusion_maps(net, images, labels, (7, 6), strides=2)
