"""The ops of the sweep against their PyTorch twins and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from occfast.native import loader, ops, reference
from occfast.sweep import SweepGrid

DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def definition(images, fill, positions, grid):
    """Make the copies one at a time from the documentation of SweepGrid alone."""
    copies = []
    for position in positions.tolist():
        n, p = divmod(position, grid.positions)
        top, left, bottom, right = grid.window(p)
        copy = images[n].clone()
        copy[:, top:bottom, left:right] = fill.expand_as(images)[n][:, top:bottom, left:right]
        copies.append(copy)
    return torch.stack(copies) if copies else images.new_empty((0, *images.shape[1:]))


@st.composite
def sweeps(draw):
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    h, w = draw(st.integers(1, 19)), draw(st.integers(1, 19))
    box = draw(st.integers(1, h)), draw(st.integers(1, w))
    stride = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    grid = SweepGrid.over((h, w), box, stride=stride, border=draw(st.sampled_from(["clip", "valid"])))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    images = (torch.rand((n, c, h, w), generator=generator) * 200).to(dtype)
    layout = draw(st.sampled_from(["plain", "channels_last", "strided"]))
    if layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        images = images.repeat_interleave(2, dim=3)[..., ::2]
    fill_shape = draw(st.sampled_from([(1, 1, 1, 1), (1, c, 1, 1), (1, c, h, w), (n, c, 1, 1), (n, c, h, w)]))
    fill = (torch.rand(fill_shape, generator=generator) * 50).to(dtype)
    count = draw(st.integers(0, 12))
    positions = torch.randint(0, n * grid.positions, (count,), generator=generator)
    return images, fill, positions, grid


@given(sweeps())
def test_occlude_positions_equals_the_definition(case):
    images, fill, positions, grid = case
    expected = definition(images, fill, positions, grid)
    out = ops.occlude_positions(images, fill, positions, grid.native())
    assert torch.equal(out, expected)
    twin = reference.occlude_positions(images, fill, positions, grid.native())
    assert torch.equal(twin, expected)
    if ops.is_channels_last(images):
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", sorted(ops.SCORES))
def test_sweep_score_equals_the_twin(kind, dtype):
    images, per_image, classes = 3, 7, 11
    outputs = torch.randn(15, classes, dtype=dtype)
    positions = torch.randperm(images * per_image)[:15]
    labels = torch.randint(0, classes, (images,))
    references = torch.randn(images, classes, dtype=torch.float64)
    baseline = torch.randn(images, dtype=torch.float64)
    results = []
    for run in (ops.sweep_score, reference.sweep_score):
        scores = torch.full((images, per_image), -9.0, dtype=torch.float64)
        bad = torch.zeros(1, dtype=torch.int32)
        run(outputs, positions, per_image, ops.SCORES[kind], scores, bad, labels, references, baseline)
        assert bad.item() == 0
        results.append(scores)
    assert torch.allclose(*results, rtol=1e-13, atol=1e-13)
    untouched = torch.ones(images * per_image, dtype=torch.bool)
    untouched[positions] = False
    assert (results[0].flatten()[untouched] == -9).all()
    assert (results[0].flatten()[positions] != -9).all()


def test_error_takes_the_lowest_of_equal_maxima():
    outputs = torch.tensor([[1.0, 3.0, 3.0], [3.0, 3.0, 3.0], [0.0, -1.0, 0.0]])
    scores, bad = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    labels = torch.tensor([1])
    ops.sweep_score(outputs, torch.arange(3), 3, ops.SCORES["error"], scores, bad, labels, None, None)
    assert scores.tolist() == [[0.0, 1.0, 1.0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 7, 129])
def test_outputs_that_are_not_finite_raise_the_flag(value, place):
    outputs = torch.randn(4, 130)
    outputs[2, place] = value
    scores, bad = torch.zeros(1, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    ops.sweep_score(outputs, torch.arange(4), 4, 0, scores, bad, torch.tensor([0]), None, None)
    assert bad.item() == 1


def test_large_finite_outputs_do_not_raise_the_flag():
    outputs = torch.full((2, 9), 3e38)
    scores, bad = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    ops.sweep_score(outputs, torch.arange(2), 2, 0, scores, bad, torch.tensor([0]), None, None)
    assert bad.item() == 0


def test_running_sums_do_not_depend_on_the_split():
    scores = torch.randn(9, 5000, dtype=torch.float64)
    sums = []
    for parts in ([9], [1, 8], [4, 4, 1], [1] * 9):
        total, squares = torch.zeros(5000, dtype=torch.float64), torch.zeros(5000, dtype=torch.float64)
        for part in scores.split(parts):
            ops.sweep_accumulate(part, total, squares)
        sums.append((total, squares))
    for total, squares in sums[1:]:
        assert torch.equal(total, sums[0][0]) and torch.equal(squares, sums[0][1])
    np.testing.assert_allclose(sums[0][0], scores.sum(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sums[0][1], scores.square().sum(0), rtol=1e-12)


def test_threads_are_used_and_change_nothing():
    torch.set_num_threads(2)
    native = loader.module("cpu")
    assert native.workers(native.ExecContext(threads=2, stream=None)) == 2
    grid = SweepGrid.over((40, 40), (9, 9))
    images = torch.rand(2, 3, 40, 40)
    positions = torch.randint(0, 2 * grid.positions, (300,))
    out = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out.append(ops.occlude_positions(images, torch.zeros(1, 1, 1, 1), positions, grid.native()))
    assert torch.equal(*out)


def test_opcheck():
    grid = SweepGrid.over((9, 8), (3, 4))
    images = torch.rand(2, 3, 9, 8)
    for layout in (torch.contiguous_format, torch.channels_last):
        arguments = (images.contiguous(memory_format=layout), torch.zeros(1, 1, 1, 1), torch.arange(10), grid.native())
        torch.library.opcheck(ops.occlude_positions, arguments)
    scores, bad = torch.zeros(2, 72, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    labels = torch.tensor([0, 1])
    torch.library.opcheck(
        ops.sweep_score, (torch.randn(10, 4), torch.arange(10), 72, 0, scores, bad, labels, None, None)
    )
    totals = torch.zeros(72, dtype=torch.float64), torch.zeros(72, dtype=torch.float64)
    torch.library.opcheck(ops.sweep_accumulate, (scores, *totals))


def test_compiled_code_runs_the_ops():
    grid = SweepGrid.over((9, 8), (3, 4)).native()
    fill = torch.zeros(1, 1, 1, 1)

    def twice(images, positions):
        return ops.occlude_positions(images * 2, fill, positions, grid) + 1

    images, positions = torch.rand(2, 3, 9, 8), torch.arange(7)
    compiled = torch.compile(twice, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images, positions), twice(images, positions))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"images": torch.rand(3, 9, 8)}, ValueError, "images"),
        ({"fill": torch.zeros(1, 1, 1, 1, dtype=torch.float64)}, TypeError, "fill"),
        ({"fill": torch.zeros(1, 2, 1, 1)}, ValueError, "fill"),
        ({"positions": torch.tensor([0, 144])}, ValueError, "positions"),
        ({"positions": torch.tensor([-1])}, ValueError, "positions"),
        ({"positions": torch.tensor([0], dtype=torch.int32)}, TypeError, "positions"),
        ({"grid": [1, 2, 3]}, ValueError, "grid"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = {
        "images": torch.rand(2, 3, 9, 8),
        "fill": torch.zeros(1, 1, 1, 1),
        "positions": torch.arange(4),
        "grid": SweepGrid.over((9, 8), (3, 4)).native(),
    }
    with pytest.raises(error, match=rf"^{words}: expected"):
        ops.occlude_positions(**{**arguments, **change})
