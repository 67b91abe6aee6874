"""Philox, normals and noisy occluders: known answers, distributions and reproducible bits."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri

from occfast.native import loader, ops, reference


def native_words(counters, keys):
    module = loader.module("cpu")
    c, k = torch.tensor(counters, dtype=torch.int64).to(torch.uint32), torch.tensor(keys).to(torch.uint32)
    out = torch.empty(len(counters), 4, dtype=torch.uint32)
    context = module.ExecContext(threads=1, stream=None)
    module.philox_words(
        counters=c.data_ptr(), keys=k.data_ptr(), n=len(counters), words=out.data_ptr(), context=context
    )
    return out.to(torch.int64)


# The vectors that the authors of Philox publish with their library Random123 (kat_vectors, philox4x32 10).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words):
    assert tuple(native_words([counter], [key])[0].tolist()) == words
    twin = reference.philox(*(torch.tensor([c]) for c in counter), *key)
    assert tuple(int(w) for w in twin) == words


def test_philox_equals_the_twin():
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(0, 2**32, (500, 4), generator=generator)
    keys = torch.randint(0, 2**32, (500, 2), generator=generator)
    words = native_words(counters.tolist(), keys.tolist())
    for n in range(0, 500, 25):
        twin = reference.philox(*counters[n, :, None], int(keys[n, 0]), int(keys[n, 1]))
        assert [int(w) for w in twin] == words[n].tolist()


def every_normal():
    """Return all 2^24 distinct normals: a sign and 23 bits."""
    words = (torch.arange(2**23) << 9).repeat_interleave(2)
    words[1::2] |= 1
    values = torch.empty(words.numel())
    held = words.to(torch.uint32)
    native = loader.module("cpu")
    context = native.ExecContext(threads=2, stream=None)
    native.normals(words=held.data_ptr(), n=words.numel(), values=values.data_ptr(), context=context)
    return words, values


def test_normals_are_the_quantiles_to_a_stated_bound():
    """All normals are within 1e-6 of the exact quantile, bit-equal to the twin's and exactly symmetric."""
    words, values = every_normal()
    assert torch.equal(values, reference.normals(words))
    assert torch.equal(values[::2], -values[1::2])
    p = ((words[::2] >> 9).double() + 0.5) * 2.0**-24
    exact = -ndtri(p.numpy())
    assert np.abs(values[::2].double().numpy() - exact).max() < 1e-6
    z = values.double()
    # Moments over the whole population, not a sample: the mean is 0 by symmetry.
    assert z.mean() == 0
    assert abs(z.pow(2).mean() - 1) < 1e-6
    assert abs(z.pow(4).mean() - 3) < 3e-5  # the population ends at 5.42, which cuts a little of the tail
    for sigma in (1, 2, 3, 4):
        share = (z > sigma).double().mean().item()
        assert share == pytest.approx(scipy.stats.norm.sf(sigma), rel=2e-3)


def test_a_sample_of_normals_passes_kolmogorov_smirnov():
    words = native_words([(k, 0, 0, 0) for k in range(5000)], [(7, 9)] * 5000).flatten()
    z = reference.normals(words).double().numpy()
    assert scipy.stats.kstest(z, "norm").pvalue > 0.01
    pairs = z.reshape(-1, 2)
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.03


# -- drawing and painting ------------------------------------------------------------------------------


@st.composite
def batches(draw):
    n, c = draw(st.integers(0, 5)), draw(st.integers(1, 6))
    h, w = draw(st.integers(1, 23)), draw(st.integers(1, 41))
    dtype = draw(st.sampled_from(list(ops.IMAGE_DTYPES)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    images = torch.rand((n, c, h, w), generator=generator)
    images = (images * 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)
    layout = draw(st.sampled_from(["plain", "channels_last", "strided"]))
    if layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        images = images.repeat_interleave(2, dim=2)[:, :, ::2]
    ids = torch.randint(0, 2**62, (n,), generator=generator)
    heights = sorted([draw(st.integers(1, h)), draw(st.integers(1, h))])
    widths = sorted([draw(st.integers(1, w)), draw(st.integers(1, w))])
    cells = torch.rand(h * w, generator=generator, dtype=torch.float64)
    cdf = (cells / cells.sum()).cumsum(0)
    cdf[-1] = 1.0
    seed = draw(st.integers(0, 2**63 - 1))
    kinds = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
    params = (
        c,
        h,
        w,
        seed,
        draw(st.sampled_from([0.0, 0.5, 1.0])),
        [*heights, *widths],
        [0.05, 0.4, 0.1, 0.9],
        kinds,
        draw(st.booleans()),
    )
    return images, ids, cdf, params


@given(batches())
def test_native_equals_the_twin_to_the_bit(case):
    images, ids, cdf, params = case
    _, h, w, seed, *_ = params
    rows, columns = torch.arange(h), torch.arange(w)
    drawn = ops.draw_occluders(ids, cdf, rows, columns, *params)
    twin = reference.draw_occluders(ids, cdf, rows, columns, *params)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(drawn, twin, strict=True))
    out = ops.paint_occluders(images, ids, *drawn, seed, -1.0, 1.0)
    expected = torch.empty_like(images)
    reference.paint_occluders(images, expected, ids, *drawn, seed, -1.0, 1.0)
    assert torch.equal(out, expected) and out.dtype == images.dtype
    in_place = images.clone(memory_format=torch.contiguous_format)
    ops.paint_occluders_(in_place, ids, *drawn, seed, -1.0, 1.0)
    assert torch.equal(in_place, expected)
    both = ops.occlude(images, ids, cdf, rows, columns, *params[3:], -1.0, 1.0)
    in_place = images.clone(memory_format=torch.contiguous_format)
    both_in_place = (in_place, *ops.occlude_(in_place, ids, cdf, rows, columns, *params[3:], -1.0, 1.0))
    for one in (both, both_in_place):
        assert all(torch.equal(a, b) for a, b in zip(one, (expected, *twin), strict=True))


def test_boxes_of_every_width_and_place():
    """Rows of 1 to 150 pixels at every offset modulo 4 cover each copy length and boxes of several steps."""
    for dtype in (torch.uint8, torch.float32):
        widths = torch.arange(1, 151)
        left = torch.arange(150) % 7
        boxes = torch.stack((widths * 0, left, widths * 0 + 9, left + widths), 1).int()
        images = torch.zeros(150, 2, 9, 160, dtype=dtype)
        ids, kind = torch.arange(150), (torch.arange(150) % 4).to(torch.uint8)
        drawn = (ids, boxes, kind, torch.full((150,), 0.2), torch.full((150, 2), 0.5))
        expected = torch.empty_like(images)
        reference.paint_occluders(images, expected, *drawn, 3, 0.0, 1.0)
        assert torch.equal(ops.paint_occluders(images, *drawn, 3, 0.0, 1.0), expected)


def draw(n=4000, size=(20, 40), **changes):
    params = dict(
        channels=1,
        height=100,
        width=100,
        seed=5,
        probability=1.0,
        sizes=[size[0]] * 2 + [size[1]] * 2,
        ranges=[0.2, 0.2, 0.5, 0.5],
        kinds=[2],
        gray=False,
    )
    params.update(changes)
    cdf = torch.linspace(0, 1, params["height"] * params["width"] + 1, dtype=torch.float64)[1:]
    rows, columns = torch.arange(params["height"]), torch.arange(params["width"])
    return ops.draw_occluders(torch.arange(n), cdf, rows, columns, *params.values()), params


def test_threads_order_and_batch_change_nothing():
    images = torch.rand(64, 3, 50, 60)
    ids = torch.arange(64) * 7
    params = (3, 50, 60, 11, 0.9, [5, 20, 5, 30], [0.0, 0.3, 0.0, 1.0], [0, 1, 2], False)
    cdf = torch.linspace(0, 1, 3001, dtype=torch.float64)[1:]

    def run(images, ids):
        drawn = ops.draw_occluders(ids, cdf, torch.arange(50), torch.arange(60), *params)
        return ops.paint_occluders(images, ids, *drawn, 11, 0.0, 1.0)

    whole = run(images, ids)
    torch.set_num_threads(1)
    assert torch.equal(run(images, ids), whole)
    order = torch.randperm(64)
    assert torch.equal(run(images[order], ids[order]), whole[order])
    assert torch.equal(torch.cat([run(images[k : k + 1], ids[k : k + 1]) for k in range(64)]), whole)
    assert not torch.equal(run(images, ids + 1), whole)


def test_the_probability_of_covering():
    for p in (0.0, 0.3, 1.0):
        (boxes, kind, level, intensity), _ = draw(probability=p)
        covered = kind != 255
        assert abs(covered.double().mean() - p) < 4 * (p * (1 - p) / 4000) ** 0.5 + 1e-12
        assert (boxes[~covered] == 0).all() and (level[~covered] == 0).all() and (intensity[~covered] == 0).all()


def test_sizes_levels_and_intensities_are_uniform():
    (boxes, _, level, intensity), _ = draw(
        sizes=[3, 6, 10, 10], ranges=[0.1, 0.3, 0.25, 0.75], channels=3, height=400, width=400, n=20000
    )
    heights = boxes[:, 2] - boxes[:, 0]
    inner = heights[(boxes[:, 0] > 0) & (boxes[:, 2] < 400)]
    counts = torch.bincount(inner, minlength=7)[3:7]
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert scipy.stats.kstest(level.numpy(), scipy.stats.uniform(0.1, 0.2).cdf).pvalue > 1e-3
    for c in range(3):
        assert scipy.stats.kstest(intensity[:, c].numpy(), scipy.stats.uniform(0.25, 0.5).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(intensity.T.numpy())[0, 1]) < 0.03
    (_, _, _, gray), _ = draw(ranges=[0.1, 0.3, 0.25, 0.75], channels=3, gray=True)
    assert (gray[:, 0] == gray[:, 1]).all() and (gray[:, 0] == gray[:, 2]).all()


def test_kinds_are_equally_likely():
    (_, kind, _, _), _ = draw(kinds=[0, 1, 2], n=9000)
    assert scipy.stats.chisquare(torch.bincount(kind.int(), minlength=3).numpy()).pvalue > 1e-3


def painted(kind, level, intensity=0.5, dtype=torch.float32):
    """Return the pixels of one large occluder as float64 in [0, 1]."""
    size = (400, 500)
    images = torch.zeros(1, 1, *size, dtype=dtype)
    boxes = torch.tensor([[0, 0, *size]], dtype=torch.int32)
    out = ops.paint_occluders(
        images,
        torch.tensor([3]),
        boxes,
        torch.tensor([kind], dtype=torch.uint8),
        torch.tensor([level]),
        torch.tensor([[intensity]]),
        9,
        0.0,
        1.0,
    )
    values = out.double().flatten().numpy()
    return values / 255 if dtype == torch.uint8 else values


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize(("kind", "mode"), [(2, "gaussian"), (1, "speckle"), (0, "s&p")])
def test_moments_agree_with_scikit_image(kind, mode, dtype):
    """Mean, deviation and two quantiles of 200,000 pixels agree with skimage.util.random_noise."""
    from skimage.util import random_noise

    level, intensity = 0.2, 0.4
    ours = painted(kind, level, intensity, dtype)
    image = np.full((400, 500), intensity)
    options = {"amount": level} if mode == "s&p" else {"var": level**2}
    theirs = random_noise(image, mode=mode, rng=np.random.default_rng(0), **options).ravel()
    assert abs(ours.mean() - theirs.mean()) < 5 * theirs.std() * (2 / 200_000) ** 0.5 + 1e-3
    assert ours.std() == pytest.approx(theirs.std(), rel=0.01)
    for q in (0.05, 0.3, 0.7, 0.95):
        assert np.quantile(ours, q) == pytest.approx(np.quantile(theirs, q), abs=0.004)


def test_no_noise_is_a_block_of_one_intensity():
    assert (painted(3, 0.5, 0.25) == 0.25).all()
    assert (painted(2, 0.0, 0.25) == 0.25).all()


def test_salt_and_pepper_are_as_likely():
    values = painted(0, 0.4, 0.5)
    salt, pepper = (values == 1).mean(), (values == 0).mean()
    assert abs(salt - 0.2) < 0.004 and abs(pepper - 0.2) < 0.004 and (values == 0.5).mean() == 1 - salt - pepper


def test_only_the_boxes_change():
    images = torch.rand(300, 2, 40, 50) * 0.5 + 2  # no occluder pixel can equal one of these
    (boxes, kind, level, intensity), params = draw(n=300, size=(7, 9), channels=2, height=40, width=50, probability=0.8)
    out = ops.paint_occluders(images, torch.arange(300), boxes, kind, level, intensity, params["seed"], 0.0, 1.0)
    changed = (out != images).all(1)
    for n in range(300):
        expected = torch.zeros(40, 50, dtype=torch.bool)
        top, left, bottom, right = boxes[n]
        expected[top:bottom, left:right] = True
        assert torch.equal(changed[n], expected)
        assert torch.equal((out[n] != images[n]).any(0), expected)


def test_opcheck():
    images = torch.rand(3, 2, 8, 9)
    (boxes, kind, level, intensity), params = draw(n=3, size=(3, 4), channels=2, height=8, width=9)
    cdf = torch.linspace(0, 1, 73, dtype=torch.float64)[1:]
    ids = torch.arange(3)
    torch.library.opcheck(ops.draw_occluders, (ids, cdf, torch.arange(8), torch.arange(9), *params.values()))
    for memory in (torch.contiguous_format, torch.channels_last):
        arguments = (images.contiguous(memory_format=memory), ids, boxes, kind, level, intensity, 5, 0.0, 1.0)
        torch.library.opcheck(ops.paint_occluders, arguments)
        torch.library.opcheck(ops.paint_occluders_, arguments)
        arguments = (arguments[0], ids, cdf, torch.arange(8), torch.arange(9), *list(params.values())[3:], 0.0, 1.0)
        torch.library.opcheck(ops.occlude, arguments)
        torch.library.opcheck(ops.occlude_, arguments)


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        (dict(images=torch.rand(3, 8, 9)), ValueError, "images"),
        (dict(images=torch.rand(3, 2, 8, 9).double()), TypeError, "images"),
        (dict(sample_ids=torch.arange(2)), ValueError, "sample_ids"),
        (dict(boxes=torch.tensor([[0, 0, 9, 9]] * 3, dtype=torch.int32)), ValueError, "boxes"),
        (dict(boxes=torch.tensor([[-1, 0, 3, 3]] * 3, dtype=torch.int32)), ValueError, "boxes"),
        (dict(kind=torch.zeros(3)), TypeError, "kind"),
        (dict(level=torch.zeros(3, 1)), ValueError, "level"),
        (dict(intensity=torch.zeros(3, 3)), ValueError, "intensity"),
        (dict(seed=-1), ValueError, "seed"),
    ],
)
def test_bad_input_is_named(change, error, name):
    arguments = dict(
        images=torch.rand(3, 2, 8, 9),
        sample_ids=torch.arange(3),
        boxes=torch.zeros(3, 4, dtype=torch.int32),
        kind=torch.zeros(3, dtype=torch.uint8),
        level=torch.zeros(3),
        intensity=torch.zeros(3, 2),
        seed=1,
        low=0.0,
        high=1.0,
    )
    with pytest.raises(error, match=f"^{name}: expected"):
        ops.paint_occluders(*{**arguments, **change}.values())


def test_negative_sample_ids_are_refused():
    with pytest.raises(ValueError, match="sample_ids: expected no negative number, got -4"):
        cdf = torch.ones(1, dtype=torch.float64)
        one = torch.zeros(1, dtype=torch.int64)
        ops.draw_occluders(torch.tensor([-4]), cdf, one, one, 1, 5, 5, 0, 1.0, [1, 1, 1, 1], [0.0] * 4, [0], False)
