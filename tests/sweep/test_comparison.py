"""Comparison of maps: the test against its definition, false alarms, pictures, refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import occfast
from bench.false_alarms import CASES, false_alarms
from occfast import SweepGrid
from occfast.sweep import MapComparison
from tests.browser import CHROMIUM, LOOKS, look_over


def a_map(per_image, score="score_drop", indices=None, skipped=0, seed=0):
    n, rows, columns = per_image.shape
    generator = np.random.default_rng(seed)
    kept = np.uint8 if score == "error" else np.float32
    per_image = per_image.astype(kept)
    return occfast.OcclusionMap(
        values=per_image.astype(np.float64).mean(0),
        standard_error=np.zeros((rows, columns)),
        per_image=per_image,
        grid=SweepGrid.over((rows, columns), (2, 3)),
        score=score,
        method="dense",
        n_images=n,
        n_skipped=skipped,
        n_evaluations=per_image.size,
        seconds=1.0,
        mean_image=generator.random((1, rows, columns)).astype(np.float32),
        image_indices=np.arange(n) if indices is None else np.asarray(indices),
    )


def adjusted(apart):
    """Return the adjusted p-values of differences [n, positions] from their definition, by all sign flips."""
    n = len(apart)

    def t(differences):
        mean, error = differences.mean(0), differences.std(0, ddof=1) / np.sqrt(n)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(np.abs(mean) < 1e-12, 0, np.abs(mean) / np.where(error < 1e-12, 0, error))

    mine = t(apart)
    largest = [t(apart * np.array(signs)[:, None]).max() for signs in itertools.product((1, -1), repeat=n)]
    return np.array([np.mean([value >= one * (1 - 1e-9) for value in largest]) for one in mine])


@pytest.mark.parametrize("score", ["score_drop", "error"])
def test_equals_the_definition(score):
    generator = np.random.default_rng(1)
    shape = (9, 4, 5)
    if score == "error":
        first, second = generator.random(shape) < 0.6, generator.random(shape) < 0.3
        first[:, 0, 0], second[:, 0, 0] = 1, 0  # all images differ alike
        first[:, 1, 1] = second[:, 1, 1]  # none differs
    else:
        first, second = generator.normal(0.8, 1, shape), generator.normal(0, 1, shape)
    m, n = a_map(first, score), a_map(second, score)
    found = m.compare(n)
    apart = m.per_image.astype(np.float64) - n.per_image
    assert found.exact and found.flips == 256 and isinstance(found, MapComparison)
    np.testing.assert_allclose(found.p_values.ravel(), adjusted(apart.reshape(9, -1)), rtol=1e-12)
    np.testing.assert_allclose(found.difference.values, (m - n).values, atol=1e-7)
    np.testing.assert_allclose(found.difference.standard_error, (m - n).standard_error, rtol=1e-6)
    if score == "error":
        assert found.statistic[0, 0] == np.inf and found.p_values[0, 0] == 1 / 256
        assert found.statistic[1, 1] == 0 and found.p_values[1, 1] == 1
    assert found.significant.any() and not found.significant.all()
    back = n.compare(m)
    assert np.array_equal(back.p_values, found.p_values) and np.array_equal(back.statistic, -found.statistic)
    assert found.counts() == back.counts()[::-1] and found.p_value == found.p_values.min()


def test_random_flips_approach_all_of_them():
    generator = np.random.default_rng(2)
    m, n = a_map(generator.normal(0.5, 1, (12, 6, 6))), a_map(generator.normal(0, 1, (12, 6, 6)))
    exact = m.compare(n)
    random = m.compare(n, flips=2000)
    assert exact.exact and exact.flips == 2048 and not random.exact and random.flips == 2000
    assert np.abs(exact.p_values - random.p_values).max() < 4 * np.sqrt(0.25 / 2000)
    assert np.array_equal(random.p_values, m.compare(n, flips=2000).p_values)
    assert not np.array_equal(random.p_values, m.compare(n, flips=2000, seed=1).p_values)


def test_images_of_a_group_flip_together():
    generator = np.random.default_rng(3)
    first, second = generator.normal(0.5, 1, (24, 4, 4)), generator.normal(0, 1, (24, 4, 4))
    people = np.repeat(np.arange(6) * 7 % 11, 4)  # any integers
    m, n = a_map(first), a_map(second)
    found = m.compare(n, groups=people)
    apart = (m.per_image.astype(np.float64) - n.per_image).reshape(24, -1)
    sums = np.stack([apart[people == who].sum(0) for who in np.unique(people)])
    np.testing.assert_allclose(found.p_values.ravel(), adjusted(sums), rtol=1e-12)
    assert found.n_groups == 6 and found.flips == 32 and "24 images in 6 groups" in str(found)
    # Copies of each image add no evidence.
    copies = a_map(np.repeat(first, 3, 0)), a_map(np.repeat(second, 3, 0))
    alone, tripled = (
        m.compare(n, flips=500),
        copies[0].compare(copies[1], flips=500, groups=np.repeat(np.arange(24), 3)),
    )
    np.testing.assert_allclose(alone.p_values, tripled.p_values)


def test_images_that_one_model_gets_wrong_are_left_out(tiny_net, faces, labels):
    wrong = [labels.clone(), labels.clone()]
    wrong[0][1] += 1
    wrong[1][4] += 1
    wrong = [each % 5 for each in wrong]
    maps = [occfast.occlusion_map(tiny_net, faces, each, (5, 4), progress=False) for each in wrong]
    noisy = replace(maps[1], per_image=1 - maps[1].per_image)
    found = maps[0].compare(noisy)
    assert found.image_indices.tolist() == [0, 2, 3, 5]
    rows = [maps[0].per_image[[0, 1, 2, 4]], noisy.per_image[[0, 2, 3, 4]]]
    np.testing.assert_allclose(found.difference.values, (rows[0].astype(float) - rows[1]).mean(0))
    assert maps[0].compare(maps[1]).p_value == 1.0  # the same scores: no difference anywhere


@pytest.mark.parametrize("case", CASES)
def test_false_alarms(case):
    """A part of what ``python -m bench.false_alarms`` measures, with a wider band."""
    share = false_alarms(case, repetitions=60, flips=100, seed=5)
    assert share <= 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / 60)


def test_a_difference_is_found_where_it_is():
    generator = np.random.default_rng(4)
    shape = (60, 12, 12)
    truth = np.zeros(shape[1:], bool)
    truth[3:7, 4:9] = True
    m = a_map(generator.normal(0, 1, shape) + truth)
    found = m.compare(a_map(generator.normal(0, 1, shape)))
    assert (found.significant & truth).sum() > 0.6 * truth.sum() and not (found.significant & ~truth).any()
    higher, lower = found.counts()
    assert higher == found.significant.sum() and lower == 0
    assert found.about()["higher"] == higher and found.about()["p_value"] == found.p_value
    assert f"higher at {higher} and lower at 0 of 144 positions" in str(found)


def test_pictures_and_pages(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    generator = np.random.default_rng(5)
    m, n = a_map(generator.normal(2, 1, (20, 6, 7))), a_map(generator.normal(0, 1, (20, 6, 7)))
    found = m.compare(n)
    from matplotlib.figure import Figure

    axes = found.plot(ax=Figure().subplots())
    assert len(axes.collections) == 1  # the contour
    assert len(m.compare(m).plot(ax=Figure().subplots()).collections) == 0
    assert found._repr_png_().startswith(b"\x89PNG")
    page = m.to_html(tmp_path / "map.html", comparison=found).read_text()
    assert 'id="comparison"' in page and "Higher at" in page and page.count("<img") == 6
    plain = m.to_html(tmp_path / "map.html").read_text()
    assert 'id="comparison"' not in plain and plain.count("<img") == 4
    none = m.to_html(tmp_path / "map.html", comparison=m.compare(m)).read_text()
    assert "No significant difference at any of 42 positions" in none


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@LOOKS
def test_a_browser_shows_the_page(how, tmp_path):
    generator = np.random.default_rng(5)
    m, n = a_map(generator.normal(2, 1, (20, 6, 7))), a_map(generator.normal(0, 1, (20, 6, 7)))
    found = look_over(m.to_html(tmp_path / "map.html", comparison=m.compare(n)), tmp_path, **how)
    assert len(found["images"]) == 6 and found["tables"]["settings"][0] == ["occluder (height × width)", "2 × 3 pixels"]


REFUSED = {
    "type": (lambda m: m.compare(3), TypeError, "other: expected an OcclusionMap, got int"),
    "score": (lambda m: m.compare(replace(m, score="error")), ValueError, "score: expected maps with the same score"),
    "grid": (
        lambda m: m.compare(replace(m, grid=SweepGrid.over((5, 6), (3, 3)))),
        ValueError,
        "grid: expected maps with the same grid",
    ),
    "no scores": (lambda m: m.compare(replace(m, per_image=None)), ValueError, "other has none"),
    "other images": (
        lambda m: m.compare(replace(m, mean_image=m.mean_image + 1)),
        ValueError,
        "other: expected a map of the same images in the same order",
    ),
    "other number": (lambda m: m.compare(replace(m, n_skipped=2)), ValueError, "other: expected a map of the same"),
    "nothing in common": (
        lambda m: m.compare(replace(m, image_indices=np.arange(6) + 6)),
        ValueError,
        "other: expected maps with at least 2 images or groups in common, got 0",
    ),
    "one group": (
        lambda m: m.compare(m, groups=np.zeros(6, int)),
        ValueError,
        "other: expected maps with at least 2 images or groups in common, got 1",
    ),
    "groups": (lambda m: m.compare(m, groups=[0, 1]), ValueError, "groups: expected one for each image given"),
    "group type": (lambda m: m.compare(m, groups=["a"] * 6), TypeError, r"groups: expected integers \[N\]"),
    "level": (lambda m: m.compare(m, level=0.0), ValueError, "level: expected a number above 0 and at most 0.5"),
    "flips": (lambda m: m.compare(m, flips=1), ValueError, "flips: expected an int of at least 2"),
    "seed": (lambda m: m.compare(m, seed=-1), ValueError, "seed: expected an int in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, error, message = REFUSED[name]
    m = a_map(torch.rand(6, 5, 6).numpy())
    with pytest.raises(error, match=message):
        call(m)
