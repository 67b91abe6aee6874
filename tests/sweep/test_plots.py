"""Pictures of maps: colors, notebooks, single images, differences."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import numpy as np
import pytest

import occfast
from occfast.plots import draw_map, extent

matplotlib.use("Agg")


@pytest.fixture
def closed():
    """Figures of pyplot, closed at the end."""
    from matplotlib import pyplot

    pyplot.close("all")
    yield pyplot
    pyplot.close("all")


@pytest.fixture
def drop(tiny_net, faces, labels):
    return occfast.occlusion_map(tiny_net, faces, labels, (5, 4), score="score_drop", progress=False)


def test_plot_makes_a_figure_that_a_notebook_shows(drop, closed, tmp_path):
    axes = drop.plot()
    assert axes.figure.number in closed.get_fignums()
    closed.close("all")
    # Files and pages don't.
    drop.save(tmp_path / "map.png")
    drop.to_html(tmp_path / "map.html")
    assert drop._repr_png_().startswith(b"\x89PNG")
    assert '<img src="data:image/png;base64,' in drop._repr_html_() and "score_drop" in drop._repr_html_()
    assert not closed.get_fignums()
    own = closed.figure().subplots()
    assert drop.plot(ax=own) is own


def test_signed_maps_diverge_from_zero(drop, closed):
    assert drop.values.min() < 0 < drop.values.max()
    shown = drop.plot().images[0]
    largest = np.abs(drop.values).max()
    assert shown.get_clim() == (-largest, largest) and shown.get_cmap().name == "RdBu_r"
    positive = replace(drop, values=np.abs(drop.values))
    assert positive.plot().images[0].get_cmap().name == "inferno"
    page = {True: "red is a drop, blue a gain", False: "bright is where it hurts"}
    from occfast.sweep.page import render

    for m in (drop, positive):
        assert (page[True] in render(m)) == bool((m.values < 0).any())
        assert (page[False] in render(m)) != bool((m.values < 0).any())


def test_one_image_has_no_panel_of_errors(tiny_net, faces, labels, tmp_path):
    one = occfast.occlusion_map(tiny_net, faces[:1], labels[:1], (5, 4), progress=False)
    several = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False)
    assert np.isnan(one.standard_error).all()
    assert [m.to_html(tmp_path / "map.html").read_text().count("<img") for m in (one, several)] == [3, 4]


def test_the_map_of_one_image(tiny_net, faces, labels, closed):
    wrong = labels.clone()
    wrong[1] = (wrong[1] + 1) % 5
    m = occfast.occlusion_map(tiny_net, faces, wrong, (5, 4), progress=False)
    assert m.image_indices.tolist() == [0, 2, 3, 4, 5]
    alone = occfast.occlusion_map(tiny_net, faces[3:4], labels[3:4], (5, 4), progress=False)
    assert np.array_equal(m.plot(3).images[0].get_array(), alone.values)
    with pytest.raises(ValueError, match=r"image_index: expected one of the 5 images used .*, got 1"):
        m.plot(1)
    with pytest.raises(TypeError, match="image_index: expected an int"):
        m.plot(1.0)
    with pytest.raises(ValueError, match="image_index: expected a map that holds the scores of single images"):
        replace(m, per_image=None).plot(3)
    with pytest.raises(ValueError, match="image: expected one of 'mean'"):
        m.plot(image="median")


def test_images_under_a_map(drop, faces, closed):
    for image in (faces[0], faces[0, 0].numpy(), faces[0].tolist(), "mean"):
        assert len(drop.plot(image=image).images) == 2


def test_the_difference_of_two_maps(tiny_net, faces, labels, closed):
    other = type(tiny_net)().eval()
    call = dict(occluder=(5, 4), score="score_drop", progress=False)
    m, n = (occfast.occlusion_map(net, faces, labels, **call) for net in (tiny_net, other))
    d = m - n
    assert np.array_equal(d.values, m.values - n.values) and d.paired
    apart = m.per_image.astype(float) - n.per_image.astype(float)
    np.testing.assert_allclose(d.standard_error, apart.std(0, ddof=1) / np.sqrt(6), rtol=1e-12)
    shown = d.plot().images[0]
    assert shown.get_clim()[0] == -shown.get_clim()[1] and shown.get_cmap().name == "RdBu_r"
    assert d._repr_png_().startswith(b"\x89PNG") and "score_drop" in repr(d) and "paired" in repr(d)
    unpaired = m - occfast.occlusion_map(other, faces[:4], labels[:4], **call)
    assert not unpaired.paired
    few = replace(n, per_image=None)
    np.testing.assert_allclose((m - few).standard_error, np.hypot(m.standard_error, n.standard_error))
    assert not (m - m).values.any() and not (m - m).standard_error.any()
    for wrong, message in (
        (occfast.occlusion_map(other, faces, labels, **{**call, "occluder": (5, 5)}), "grid: expected maps with"),
        (occfast.occlusion_map(other, faces, labels, (5, 4), progress=False), "score: expected maps with"),
    ):
        with pytest.raises(ValueError, match=message):
            m - wrong
    with pytest.raises(TypeError):
        m - 1.0


def test_all_zero_and_constant_maps(closed):
    where = extent(np.arange(3), np.arange(2))
    for value in (0.0, -1.0, 1.0):
        assert np.isfinite(draw_map(np.full((3, 2), value), where).images[0].get_clim()).all()
