"""Saving, loading and showing maps; the page is tested in a real browser."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import occfast
from occfast.files import read_npz, write_npz
from tests.browser import CHROMIUM, FLAGS, look_over


@pytest.fixture
def map_(tiny_net, faces, labels):
    return occfast.occlusion_map(tiny_net, faces, labels, (5, 4), stride=(2, 3), progress=False, batch_size=64)


def test_round_trip(map_, tmp_path):
    map_.save(tmp_path / "map.npz")
    loaded = occfast.OcclusionMap.load(tmp_path / "map.npz")
    for name in ("values", "standard_error", "per_image", "mean_image", "image_indices"):
        a, b = getattr(map_, name), getattr(loaded, name)
        assert np.array_equal(a, b) and a.dtype == b.dtype
    assert loaded.grid == map_.grid and loaded.settings == map_.settings and loaded.accuracy == map_.accuracy
    assert (loaded.score, loaded.method, loaded.n_images) == (map_.score, map_.method, map_.n_images)


def test_the_precision_is_on_record(map_, tmp_path):
    low = replace(map_, precision="bf16")
    assert occfast.OcclusionMap.load(low.save(tmp_path / "low.npz")).precision == "bf16"
    assert "dense in bf16)" in repr(low) and repr(map_).endswith("dense)")
    for m, said in ((low, "bf16"), (map_, "the images&#39; own")):
        assert f"<td>{said}</td>" in m.to_html(tmp_path / "map.html").read_text()
    # A file from before the option existed.
    content = read_npz(map_.save(tmp_path / "map.npz"))
    about = json.loads(str(content["about"]))
    assert about.pop("precision") is None
    write_npz(tmp_path / "old.npz", **{**content, "about": json.dumps(about)})
    assert occfast.OcclusionMap.load(tmp_path / "old.npz").precision is None


@pytest.mark.parametrize("cut", [0, 7, 300])
def test_damaged_files_are_named(map_, tmp_path, cut):
    path = map_.save(tmp_path / "map.npz")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(occfast.DataError, match=r"map.npz: "):
        occfast.OcclusionMap.load(path)


def test_flipped_bytes_are_named_or_harmless(map_, tmp_path):
    path = map_.save(tmp_path / "map.npz")
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        bad = bytearray(good)
        bad[generator.integers(len(bad))] ^= 1 << generator.integers(8)
        path.write_bytes(bytes(bad))
        try:
            occfast.OcclusionMap.load(path)
        except occfast.DataError:
            refused += 1
    assert refused > 20  # the rest hit the zip's padding


def test_pickles_are_never_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    np.savez(tmp_path / "evil.npz", kind=np.array("occfast.OcclusionMap"), about=np.array([Evil()], dtype=object))
    with pytest.raises(occfast.DataError):
        occfast.OcclusionMap.load(tmp_path / "evil.npz")
    assert not (tmp_path / "ran").exists()


def test_other_files_are_refused(map_, tmp_path):
    map_.distribution(0.4).save(tmp_path / "p.npz")
    with pytest.raises(occfast.DataError, match="not a saved OcclusionMap"):
        occfast.OcclusionMap.load(tmp_path / "p.npz")
    with pytest.raises(FileNotFoundError):
        occfast.OcclusionMap.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="path: expected a name ending in"):
        map_.save(tmp_path / "map.txt")


def altered(path, about=(), **arrays):
    content = read_npz(path)
    stated = {**json.loads(str(content["about"])), **dict(about)}
    content["about"] = np.array(json.dumps({k: v for k, v in stated.items() if v != "gone"}))
    for name, array in arrays.items():
        content.pop(name) if array is None else content.update({name: array})
    write_npz(path, **content)
    return path


WRONG = {
    "no image": dict(about={"image": "gone"}),
    "image": dict(about={"image": [17, 14, 3]}),
    "image text": dict(about={"image": "17x14"}),
    "huge": dict(about={"image": [10**9, 10**9]}),
    "occluder": dict(about={"occluder": [99, 99]}),
    "stride": dict(about={"stride": 0}),
    "border": dict(about={"border": "wrap"}),
    "score": dict(about={"score": "loss"}),
    "score list": dict(about={"score": ["error"]}),
    "method": dict(about={"method": 3}),
    "precision": dict(about={"precision": "fp8"}),
    "images": dict(about={"n_images": 0}),
    "images text": dict(about={"n_images": "6"}),
    "skipped": dict(about={"n_skipped": -1}),
    "seconds": dict(about={"seconds": None}),
    "settings": dict(about={"settings": [1]}),
    "estimate": dict(about={"estimate": {"kind": "Guess"}}),
    "estimate list": dict(about={"estimate": [1]}),
    "estimate values": dict(
        about={
            "estimate": dict(
                kind="Disagreement",
                value="x",
                low=0,
                high=0,
                skipped=1,
                checked=1,
                different=0,
                tolerance=None,
                mean_error=0,
                worst_error=0,
            )
        }
    ),
    "fingerprint": dict(about={"fingerprint": {"settings": 3, "images": "", "seen": 6, "whole": True}}),
    "values": dict(values=np.zeros((3, 3))),
    "values dtype": dict(values=np.zeros((9, 5), np.float32)),
    "values text": dict(values=np.full((9, 5), "a")),
    "error rate": dict(values=np.full((9, 5), 1.5)),
    "negative error rate": dict(values=np.full((9, 5), -0.5)),
    "values nan": dict(values=np.full((9, 5), np.nan)),
    "error": dict(standard_error=np.zeros(5)),
    "error sign": dict(standard_error=np.full((9, 5), -1.0)),
    "per image": dict(per_image=np.zeros((5, 9, 5), np.uint8)),
    "per image dtype": dict(per_image=np.zeros((6, 9, 5), np.int64)),
    "indices": dict(image_indices=np.zeros(5, np.int64)),
    "per image error": dict(per_image=np.full((6, 9, 5), 7, np.uint8)),
    "indices repeated": dict(image_indices=np.zeros(6, np.int64)),
    "bias sign": dict(bias=np.full((9, 5), -1.0)),
    "no channels": dict(mean_image=np.zeros((0, 17, 14), np.float32)),
    "indices sign": dict(image_indices=np.full(6, -1)),
    "interval": dict(interval=np.zeros((9, 5))),
    "bias": dict(bias=np.zeros((2, 9, 5))),
    "mean": dict(mean_image=np.zeros((1, 17, 15), np.float32)),
    "mean scalar": dict(mean_image=np.float32(0)),
    "no mean": dict(mean_image=None),
    "no values": dict(values=None),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_maps_are_named(map_, tmp_path, name):
    path = altered(map_.save(tmp_path / "map.npz"), **WRONG[name])
    with pytest.raises(occfast.DataError, match=r"map\.npz: not a complete OcclusionMap"):
        occfast.OcclusionMap.load(path)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", "[" * 100_000])
def test_wrong_descriptions_are_named(map_, tmp_path, text):
    content = read_npz(map_.save(tmp_path / "map.npz"))
    write_npz(tmp_path / "map.npz", **{**content, "about": np.array(text)})
    with pytest.raises(occfast.DataError, match=r"map\.npz: not a complete OcclusionMap"):
        occfast.OcclusionMap.load(tmp_path / "map.npz")


def test_files_of_the_first_version_load(map_, tmp_path):
    """They hold neither the numbers of the images nor a fingerprint."""
    path = altered(map_.save(tmp_path / "map.npz"), about={"fingerprint": "gone"}, image_indices=None)
    loaded = occfast.OcclusionMap.load(path)
    assert np.array_equal(loaded.values, map_.values) and loaded.image_indices is None and loaded.fingerprint is None
    assert len(loaded.plot(2).images) == 1  # counted among those used


def test_pictures(map_, tmp_path):
    from PIL import Image

    map_.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size[0] > 300
    for wrong in (1, np.zeros((5, 7, 2)), np.zeros((1, 3, 5, 7))):
        with pytest.raises(ValueError, match=r"image: expected the pixels of an image, \[H, W\], .* got shape \["):
            map_.plot(image=wrong)
    axes = map_.plot(image="mean")
    assert len(axes.images) == 2
    shown = axes.images[1]
    assert np.array_equal(shown.get_array(), map_.values)
    left, right, bottom, top = shown.get_extent()
    rows, columns = map_.centers
    assert (top + (bottom - top) / (2 * len(rows)), left + (right - left) / (2 * len(columns))) == (rows[0], columns[0])


def test_the_masked_mean_is_dark_where_covering_does_no_harm(tiny_net, faces, labels):
    m = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False)
    masked = m.masked_mean()
    assert masked.shape == (1, 17, 14)
    mean = m.mean_image.astype(float)
    expected = (mean - mean.min()) / np.ptp(mean) * (m.values / m.values.max())
    np.testing.assert_allclose(masked, expected, rtol=1e-12)


def test_distribution_is_the_softmax_of_the_map(tiny_net, faces, labels):
    m = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False, batch_size=64)
    p = m.distribution(temperature=0.25)
    o = m.values
    expected = np.exp(o / 0.25) / np.exp(o / 0.25).sum()  # Eq. 4
    np.testing.assert_allclose(p.probabilities.numpy(), expected, rtol=1e-12)
    assert p.image_size == (17, 14)
    assert [c.tolist() for c in (p.row_centers, p.column_centers)] == [c.tolist() for c in m.centers]
    with pytest.raises(ValueError, match="temperature"):
        m.distribution(0)


@pytest.mark.parametrize("border", ["clip", "valid"])
def test_distribution_of_a_coarse_map_is_at_every_pixel(border, tiny_net, faces, labels):
    m = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), stride=(2, 3), border=border, progress=False)
    rows, columns = m.centers
    o = m.every_pixel()
    assert o.shape == (17, 14) and np.array_equal(o[np.ix_(rows, columns)], m.values)
    for i in range(17):  # linear between the centers along each axis, constant outside of them
        across = np.array([np.interp(i, rows, m.values[:, k]) for k in range(len(columns))])
        np.testing.assert_allclose(o[i], np.interp(np.arange(14), columns, across), rtol=0, atol=1e-15)
    p = m.distribution(0.4)
    np.testing.assert_allclose(p.probabilities, np.exp(o / 0.4) / np.exp(o / 0.4).sum(), rtol=1e-12)
    assert p.row_centers.tolist() == list(range(17)) and p.column_centers.tolist() == list(range(14))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.cells: list[str] = []
        self._cell = False

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.sources += [values[name] for name in ("src", "href") if name in values]
        self._cell = tag in ("td", "th")
        if self._cell:
            self.cells.append("")

    def handle_endtag(self, tag):
        self._cell = False

    def handle_data(self, data):
        if self._cell:
            self.cells[-1] += data


def test_the_page_is_self_contained(map_, tmp_path):
    path = map_.to_html(tmp_path / "map.html")
    page = _Page()
    page.feed(path.read_text())
    assert len(page.sources) == 4 and all(s.startswith("data:image/png;base64,") for s in page.sources)
    for source in page.sources:
        assert base64.b64decode(source.split(",", 1)[1]).startswith(b"\x89PNG")
    table = dict(zip(page.cells[::2], page.cells[1::2], strict=True))
    assert table["occluder (height × width)"] == "5 × 4 pixels"
    assert table["method"] == "dense" and table["batch size"] == "64"
    mean, std = map_.accuracy
    assert f"{100 * mean:.2f} ± {100 * std:.2f} %" in path.read_text()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_page(map_, tmp_path):
    from PIL import Image

    path = map_.to_html(tmp_path / "map.html")
    assert [image["loaded"] for image in look_over(path, tmp_path)["images"]] == [True] * 4
    picture, profile = tmp_path / "page.png", f"--user-data-dir={tmp_path / 'profile'}"
    subprocess.run(
        [CHROMIUM, *FLAGS, profile, f"--screenshot={picture}", "--window-size=1100,1400", path.as_uri()],
        capture_output=True,
        timeout=120,
        check=True,
    )
    with Image.open(picture) as image:
        colors = image.convert("RGB").getcolors(1 << 24)
        assert colors is not None and len(colors) > 1000  # maps are drawn, not a blank page


def test_repr_and_torch_inputs(map_):
    assert "OcclusionMap(9x5 centers, occluder 5x4, 6 images" in repr(map_)
    assert isinstance(map_.distribution().probabilities, torch.Tensor)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_pages_of_images_that_are_no_colors(channels, tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(channels, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    m = occfast.occlusion_map(
        net, torch.rand(2, channels, 9, 8), None, 3, stride=3, score="similarity_drop", progress=False
    )
    assert "Mean image, dark where" in m.to_html(tmp_path / "map.html").read_text()
    assert np.array_equal(occfast.OcclusionMap.load(m.save(tmp_path / "map.npz")).values, m.values)
