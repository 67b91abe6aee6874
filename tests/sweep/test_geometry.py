"""The grid of centers against the words of the contract."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occfast.native import reference
from occfast.sweep import SweepGrid

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(sizes, st.data())
def test_clip_has_a_center_on_every_stride_th_pixel(image, data):
    box = tuple(data.draw(st.integers(1, s)) for s in image)
    stride = tuple(data.draw(st.integers(1, 9)) for _ in image)
    grid = SweepGrid.over(image, box, stride=stride)
    rows, columns = grid.centers
    assert rows.tolist() == list(range(0, image[0], stride[0]))
    assert columns.tolist() == list(range(0, image[1], stride[1]))
    for p in range(grid.positions):
        i, j = rows[p // grid.columns].item(), columns[p % grid.columns].item()
        top, left, bottom, right = grid.window(p)
        covered_rows = [r for r in range(i - box[0] // 2, i - box[0] // 2 + box[0]) if 0 <= r < image[0]]
        covered_columns = [c for c in range(j - box[1] // 2, j - box[1] // 2 + box[1]) if 0 <= c < image[1]]
        assert list(range(top, bottom)) == covered_rows and list(range(left, right)) == covered_columns
        assert top <= i < bottom and left <= j < right  # the center itself is always covered


@given(sizes, st.data())
def test_valid_has_whole_occluders_only(image, data):
    box = tuple(data.draw(st.integers(1, s)) for s in image)
    stride = tuple(data.draw(st.integers(1, 9)) for _ in image)
    grid = SweepGrid.over(image, box, stride=stride, border="valid")
    assert grid.first == (box[0] // 2, box[1] // 2)
    windows = [grid.window(p) for p in range(grid.positions)]
    assert all((b - t, r - left) == box for t, left, b, r in windows)
    assert windows[0][:2] == (0, 0)
    last = windows[-1]
    assert last[2] + stride[0] > image[0] and last[3] + stride[1] > image[1]  # not one more fits


def test_the_twin_agrees_with_the_grid():
    import torch

    grid = SweepGrid.over((11, 13), (4, 5), stride=(2, 3))
    edges = reference.windows(grid.native(), torch.arange(grid.positions), 11, 13)
    assert [tuple(e[p].item() for e in edges) for p in range(grid.positions)] == [
        grid.window(p) for p in range(grid.positions)
    ]


@pytest.mark.parametrize(
    ("occluder", "options", "error", "message"),
    [
        ((11, 3), {}, ValueError, "occluder: expected at most the image's 10x10 pixels, got 11x3"),
        ((0, 3), {}, ValueError, "occluder: expected numbers of at least 1"),
        (2.5, {}, TypeError, "occluder: expected an int or two"),
        ((1, 2, 3), {}, TypeError, "occluder: expected an int or two"),
        (True, {}, TypeError, "occluder: expected an int or two"),
        ("33", {}, TypeError, "occluder: expected an int or two"),
        (3, {"stride": 0}, ValueError, "stride: expected numbers of at least 1"),
        (3, {"border": "wrap"}, ValueError, "border: expected one of 'clip', 'valid', got 'wrap'"),
    ],
)
def test_bad_input(occluder, options, error, message):
    with pytest.raises(error, match=message):
        SweepGrid.over((10, 10), occluder, **options)
