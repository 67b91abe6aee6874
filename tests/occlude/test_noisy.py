"""NoisyOccluder and LocationDistribution as a user meets them."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import occfast
from occfast.occlude.locations import NORMAL_SPREAD, LocationDistribution
from occfast.occlude.noisy import NoisyOccluder


def test_samples_follow_the_distribution():
    """Chi-square of 40,000 drawn centers against P, with cells that can't be drawn at both ends."""
    weights = torch.rand(6, 8, dtype=torch.float64).square()
    weights[0, 0] = weights[2, 3] = weights[-1, -1] = 0
    p = LocationDistribution.from_weights(weights)
    occluder = NoisyOccluder((1, 1), p, seed=3)
    info = occluder.draw(torch.zeros(40_000, 1, 6, 8))
    cell = info.boxes[:, 0].long() * 8 + info.boxes[:, 1].long()
    counts = torch.bincount(cell, minlength=48).numpy()
    expected = p.probabilities.flatten().numpy() * 40_000
    assert (counts[expected == 0] == 0).all()
    assert scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_only_positive_cell_is_always_drawn():
    for at in (0, 17, 47):
        weights = torch.zeros(48, dtype=torch.float64)
        weights[at] = 1e-300
        info = NoisyOccluder((1, 1), LocationDistribution.from_weights(weights.view(6, 8))).draw(
            torch.zeros(500, 1, 6, 8)
        )
        assert (info.boxes[:, 0] * 8 + info.boxes[:, 1] == at).all()


def test_centers_of_a_coarse_map_are_in_pixels():
    p = LocationDistribution.softmax(
        torch.rand(3, 4, dtype=torch.float64), 0.5, image_size=(30, 40), centers=([5, 15, 25], [0, 10, 20, 39])
    )
    info = NoisyOccluder((4, 6), p).draw(torch.zeros(2000, 1, 30, 40))
    rows = set((info.boxes[:, 0] + 2).tolist())
    assert rows == {5, 15, 25}
    assert set(info.boxes[:, 1].tolist()) == {0, 7, 17, 36} and int(info.boxes[:, 3].max()) == 40


def test_the_normal_scheme_is_what_the_docs_state():
    assert NORMAL_SPREAD == 0.25
    p = LocationDistribution.normal((101, 201))
    rows, columns = p.probabilities.sum(1), p.probabilities.sum(0)
    i, j = torch.arange(101.0).double(), torch.arange(201.0).double()
    assert float((rows * i).sum()) == pytest.approx(50) and float((columns * j).sum()) == pytest.approx(100)
    exact = scipy.stats.truncnorm(-2, 2, 50, 101 / 4).std()
    assert float((rows * (i - 50) ** 2).sum()) ** 0.5 == pytest.approx(exact, rel=0.01)
    torch.testing.assert_close(p.probabilities, rows[:, None] * columns)


def test_uniform_mix_and_mask():
    u, n = LocationDistribution.uniform((6, 8)), LocationDistribution.normal((6, 8))
    assert (u.probabilities == 1 / 48).all() and u.entropy == pytest.approx(np.log2(48))
    torch.testing.assert_close(u.mix(n, 0.25).probabilities, 0.75 * u.probabilities + 0.25 * n.probabilities)
    allowed = torch.zeros(6, 8, dtype=torch.bool)
    allowed[2:4, 1:3] = True
    assert (u.masked(allowed).probabilities[allowed] == 0.25).all()
    assert (u.masked(allowed).probabilities[~allowed] == 0).all()


def test_temperature_moves_between_the_maximum_and_uniform():
    o = torch.rand(5, 7, dtype=torch.float64)
    entropies = [LocationDistribution.softmax(o, t).entropy for t in (1e-3, 0.1, 0.4, 10.0)]
    assert entropies == sorted(entropies)
    assert entropies[0] < 0.5 and entropies[-1] == pytest.approx(np.log2(35), abs=0.01)
    huge = LocationDistribution.softmax(o * 1e6, 0.25)  # no overflow
    assert float(huge.probabilities.max()) == 1.0


def test_saved_and_loaded(tmp_path):
    p = LocationDistribution.softmax(
        np.random.default_rng(0).random((4, 5)), 0.3, image_size=(40, 50), centers=(range(0, 40, 10), range(0, 50, 10))
    )
    p.save(tmp_path / "p.npz")
    q = LocationDistribution.load(tmp_path / "p.npz")
    assert torch.equal(p.probabilities, q.probabilities) and q.image_size == (40, 50)
    assert torch.equal(p.row_centers, q.row_centers) and torch.equal(p.column_centers, q.column_centers)
    (tmp_path / "bad.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:100])
    with pytest.raises(occfast.DataError, match=r"bad\.npz"):
        LocationDistribution.load(tmp_path / "bad.npz")


def test_plots():
    axes = LocationDistribution.normal((20, 30)).plot(image=torch.rand(20, 30))
    assert len(axes.images) == 2


def test_the_counter_advances_and_can_be_restored():
    images = torch.rand(4, 1, 30, 30)
    occluder = NoisyOccluder((9, 9), seed=1)
    first, second = occluder(images), occluder(images)
    assert not torch.equal(first, second)
    explicit = NoisyOccluder((9, 9), seed=1)
    assert torch.equal(explicit(images, torch.arange(4)), first)
    assert torch.equal(explicit(images, torch.arange(4, 8)), second)
    assert int(explicit.counter) == 0
    state = copy.deepcopy(occluder.state_dict())
    third = occluder(images)
    resumed = NoisyOccluder((9, 9), seed=1)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(images), third)


def test_images_are_never_changed_and_info_tells_what_happened():
    images = torch.rand(50, 3, 30, 40) * 0.9 + 1e-6
    before = images.clone()
    out, info = NoisyOccluder(((5, 9), (8, 12)), p=0.6, seed=2)(images, torch.arange(50), return_info=True)
    assert torch.equal(images, before)
    assert torch.equal((out != images).any(1), info.mask(30, 40))
    assert (info.kind != 255).sum() == (info.boxes[:, 2] > 0).sum()
    assert torch.equal(info.sample_ids, torch.arange(50))
    painted = images.clone()
    again = NoisyOccluder(((5, 9), (8, 12)), p=0.6, seed=2).apply_(painted, torch.arange(50))
    assert torch.equal(painted, out) and torch.equal(again.boxes, info.boxes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [1.5, -0.25, float("nan"), float("inf")])
def test_floats_outside_the_value_range_are_refused(dtype, value):
    images = torch.rand(3, 2, 30, 30).to(dtype)
    occluder = NoisyOccluder((9, 9))
    occluder(images)
    images[2, 1, 29, 29] = value
    kept = images.clone()
    for call in (occluder, occluder.apply_):
        with pytest.raises(ValueError, match=r"images: expected values in \[0, 1\], the value_range of this occluder"):
            call(images)
    torch.testing.assert_close(images, kept, rtol=0, atol=0, equal_nan=True)
    if value == value and abs(value) < 2:
        NoisyOccluder((9, 9), value_range=(-2, 2))(images)
    for edge in (0.0, 1.0):
        occluder(torch.full((1, 1, 9, 9), edge, dtype=dtype))


def test_value_range_and_dtypes():
    ids = torch.arange(40)
    make = dict(size=(30, 30), noise="gaussian", level=(0.5, 0.5), seed=4)
    unit = NoisyOccluder(**make)(torch.zeros(40, 1, 30, 30), ids)
    wide = NoisyOccluder(**make, value_range=(-1.0, 1.0))(torch.zeros(40, 1, 30, 30), ids)
    assert torch.equal(wide, torch.where(wide == 0, 0, unit * 2 - 1)) or torch.allclose(wide, unit * 2 - 1, atol=1e-6)
    bytes_ = NoisyOccluder(**make)(torch.zeros(40, 1, 30, 30, dtype=torch.uint8), ids)
    torch.testing.assert_close(bytes_, (unit * 255 + 0.5).to(torch.uint8))
    for dtype in (torch.float16, torch.bfloat16):
        half = NoisyOccluder(**make)(torch.zeros(40, 1, 30, 30, dtype=dtype), ids)
        assert torch.equal(half, unit.to(dtype))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANGES = [(-m / s, (1 - m) / s) for m, s in zip(MEAN, STD, strict=True)]


def normalized(dtype=torch.float32):
    """Images after a Normalize of each channel, with black and white among their pixels."""
    images = torch.rand(20, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    images[:2], images[2:4] = 0.0, 1.0
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return ((images - mean) / std).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("color", ["channels", "gray"])
def test_a_range_for_each_channel(dtype, layout, color):
    """Each channel has the bits of an occluder with that channel's range alone."""
    images, ids = normalized(dtype).contiguous(memory_format=layout), torch.arange(20)
    make = dict(size=((9, 20), (8, 15)), p=0.7, seed=4, color=color)
    out, info = NoisyOccluder(**make, value_range=RANGES)(images, ids, return_info=True)
    assert out.is_contiguous(memory_format=layout) and out.dtype == dtype
    for c, (low, high) in enumerate(RANGES):
        held = images.float().clamp(low, high).to(dtype)  # inside the one range that all channels share then
        if dtype != torch.float32:
            held = torch.zeros_like(images)
        expected, same = NoisyOccluder(**make, value_range=(low, high))(held, ids, return_info=True)
        mask = same.mask(30, 40)
        assert torch.equal(info.boxes, same.boxes) and mask.any()
        assert torch.equal(out[:, c][mask], expected[:, c][mask])
        assert torch.equal(out[:, c][~mask], images[:, c][~mask])
    inside = images.clone(memory_format=torch.preserve_format)
    again = NoisyOccluder(**make, value_range=RANGES).apply_(inside, ids)
    assert torch.equal(inside, out) and torch.equal(again.level, info.level)
    leaf = images.clone().requires_grad_()
    for change in (
        lambda x: NoisyOccluder(**make, value_range=RANGES)(x, ids),
        lambda x: applied(x.clone(), make, ids),
    ):
        leaf.grad = None
        change(leaf).sum().backward()
        assert torch.equal(leaf.grad == 0, info.mask(30, 40)[:, None].expand_as(leaf))


def applied(images, make, ids):
    NoisyOccluder(**make, value_range=RANGES).apply_(images, ids)
    return images


def test_ranges_of_channels_that_agree_or_do_not_fit():
    images, ids = torch.rand(4, 3, 30, 30), torch.arange(4)
    one = NoisyOccluder((9, 9), value_range=[(0.0, 1.0)] * 3)
    assert one.value_range == (0.0, 1.0) and torch.equal(one(images, ids), NoisyOccluder((9, 9))(images, ids))
    ranges = NoisyOccluder((9, 9), value_range=RANGES)
    bytes_ = (images * 255).to(torch.uint8)
    assert torch.equal(ranges(bytes_, ids), NoisyOccluder((9, 9))(bytes_, ids))  # they have a range of their own
    with pytest.raises(ValueError, match="value_range: expected a pair for each of the images' 1 channels, got 3"):
        ranges(images[:, :1], ids)
    for value, shown in ((5.0, r"5"), (float("nan"), "nan")):
        wrong = normalized()
        wrong[3, 1, 2, 2] = value
        kept = wrong.clone()
        for call in (ranges, ranges.apply_):
            with pytest.raises(ValueError, match=rf"expected values in \[-2.03571, 2.42857\], .* channel 1, .*{shown}"):
                call(wrong)
        torch.testing.assert_close(wrong, kept, rtol=0, atol=0, equal_nan=True)


def test_numpy_in():
    images = np.zeros((2, 1, 20, 20), np.float32)
    out = NoisyOccluder((20, 20), "normal", intensity=(0.5, 0.5), level=(0, 0))(images, np.arange(2))
    assert isinstance(out, torch.Tensor) and float(out.max()) == 0.5


@pytest.mark.parametrize("ranges", [(0.0, 1.0), [(0.0, 1.0), (0.0, 2.0), (-1.0, 3.0)]], ids=["one", "channels"])
def test_every_mode_of_differentiation(ranges):
    from torch.autograd import forward_ad

    images, ids = torch.rand(3, 3, 20, 20), torch.arange(3)
    occluder = NoisyOccluder((7, 9), seed=2, value_range=ranges)
    covered = occluder(images, ids, return_info=True)[1].mask(20, 20)[:, None].expand_as(images)
    wanted = (~covered).float()
    assert torch.equal(torch.func.grad(lambda x: occluder(x, ids).sum())(images), wanted)
    assert torch.equal(torch.func.jvp(lambda x: occluder(x, ids), (images,), (torch.ones_like(images),))[1], wanted)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(images.clone(), torch.ones_like(images))
        assert torch.equal(forward_ad.unpack_dual(occluder(dual, ids)).tangent, wanted)
        occluder.apply_(dual, ids)
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, wanted)
        assert torch.equal(forward_ad.unpack_dual(dual).primal, occluder(images, ids))


def test_ranges_of_channels_in_a_compiled_graph():
    torch.compiler.reset()
    images, ids = torch.rand(3, 3, 20, 20), torch.arange(3)
    occluder = NoisyOccluder((7, 9), seed=2, value_range=[(0.0, 1.0), (0.0, 2.0), (-1.0, 3.0)])
    compiled = torch.compile(lambda x, k: occluder(x.clone(), k).clone(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(images, ids), occluder(images, ids))
    with pytest.raises(ValueError, match=r"images: expected values in \[0, 1\], .* in channel 0"):
        compiled(images * 9, ids)


def test_a_range_that_the_dtype_cannot_hold():
    images, ids = torch.rand(2, 3, 20, 20).half(), torch.arange(2)
    for ranges in ((0.0, 7e4), [(0.0, 1.0), (0.0, 1.0), (-7e4, 0.0)]):
        occluder = NoisyOccluder((7, 9), value_range=ranges)
        for call in (occluder, occluder.apply_):
            with pytest.raises(
                ValueError, match=r"value_range: expected numbers that torch\.float16 images can hold, .* got 70000"
            ):
                call(images, ids)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocationDistribution.uniform((2**40, 2**40)), "image_size: expected numbers of at most"),
        (lambda: LocationDistribution.uniform((20_000, 20_000)), "image_size: expected at most 80,000,000 pixels"),
        (lambda: LocationDistribution.normal((0, 4)), "image_size: expected numbers of at least 1"),
        (lambda: LocationDistribution.at((1.5, 2), (4, 4)), "row_centers: expected integers, got torch.float32"),
        (lambda: LocationDistribution.from_weights(torch.ones(1, 2), centers=([0], [0.5, 1.5])), "column_centers"),
    ],
)
def test_sizes_and_centers_that_are_none(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("locations", ["uniform", "normal", LocationDistribution.normal((30, 30))])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_in_a_compiled_graph(locations, dtype, backend):
    """The first call is compiled, before anything is built for this size, and the graph has no breaks."""
    torch.compiler.reset()
    images, ids = (torch.rand(4, 1, 30, 30) * (255 if dtype == torch.uint8 else 1)).to(dtype), torch.arange(4)
    occluder = NoisyOccluder((9, 9), locations, seed=1)
    whole = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)  # before, the graph breaks once
    compiled = torch.compile(lambda x, k: occluder(x.clone(), k).clone(), backend=backend, fullgraph=whole)
    assert torch.equal(compiled(images, ids), NoisyOccluder((9, 9), locations, seed=1)(images, ids))
    if dtype == torch.float32:
        with pytest.raises(ValueError, match=r"images: expected values in \[0, 1\], the value_range of this occluder"):
            compiled(images + 1, ids)
        leaf = images.clone().requires_grad_()
        compiled(leaf, ids).sum().backward()
        assert torch.equal(leaf.grad == 0, occluder(images, ids) != images)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_where(layout, dtype):
    images = (torch.rand(6, 3, 30, 40) * 0.9).to(dtype).contiguous(memory_format=layout)
    occluder, ids = NoisyOccluder(((5, 9), (8, 12)), p=0.7, seed=2), torch.arange(6)
    painted, info = occluder(images, ids, return_info=True)
    mask = info.mask(30, 40)[:, None]
    weights = torch.randn(images.shape, dtype=dtype)
    leaf = images.clone().requires_grad_()
    out, drawn = occluder(leaf * 1, ids, return_info=True)
    assert torch.equal(out, painted) and torch.equal(drawn.boxes, info.boxes) and not drawn.level.requires_grad
    (out * weights).sum().backward()
    definition = images.clone().requires_grad_()
    (torch.where(mask, painted, definition) * weights).sum().backward()
    assert torch.equal(leaf.grad, definition.grad)
    assert (leaf.grad[mask.expand_as(images)] == 0).all() and (leaf.grad != 0).sum() > 0
    in_place = images.clone().requires_grad_()
    batch = in_place * 1
    again = occluder.apply_(batch, ids)
    assert torch.equal(batch, painted) and torch.equal(again.boxes, info.boxes)
    (batch * weights).sum().backward()
    assert torch.equal(in_place.grad, definition.grad)


def test_gradients_equal_the_reference(monkeypatch):
    images, ids, found = torch.rand(5, 1, 30, 30), torch.arange(5), []
    for implementation in ("native", "reference"):
        monkeypatch.setenv("OCCFAST_BACKEND", implementation)
        leaf = images.clone().requires_grad_()
        NoisyOccluder((9, 9), seed=4)(leaf, ids).square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_stale_values_are_not_used_in_backward():
    """A clean view, an occluder in place, a covered view, and one backward: autograd notices."""
    leaf = torch.rand(4, 1, 20, 20, requires_grad=True)
    batch = leaf * 1
    clean = batch.square().sum()
    NoisyOccluder((9, 9)).apply_(batch, torch.arange(4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (clean + batch.square().sum()).backward()
    weight = torch.rand(4, 1, 20, 20, requires_grad=True)
    images = torch.rand(4, 1, 20, 20)  # without gradients of their own, but saved for that of the weight
    product = (weight * images).sum()
    version = images._version
    NoisyOccluder((9, 9)).apply_(images, torch.arange(4))
    assert images._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_leaves_are_refused_in_place():
    occluder = NoisyOccluder((9, 9))
    leaf = torch.rand(4, 1, 20, 20, requires_grad=True)
    before = leaf.detach().clone()
    for images in (leaf, leaf[:2]):
        with pytest.raises(ValueError, match="images: expected a tensor that can be changed in place, got a leaf"):
            occluder.apply_(images, torch.arange(len(images)))
    assert torch.equal(leaf, before)
    with torch.no_grad():
        occluder.apply_(leaf, torch.arange(4))
    assert not torch.equal(leaf, before)
    with torch.inference_mode():
        occluder.apply_(torch.rand(2, 1, 20, 20))
    part = torch.rand(4, 1, 20, 20, requires_grad=True) * 1
    occluder.apply_(part[1:], torch.arange(3))  # a view of a tensor that is no leaf
    part.sum().backward()


class Faces(Dataset):
    """Occluded in the worker, by the index as sample id or by the worker's own counter."""

    def __init__(self, explicit: bool) -> None:
        self.occluder = NoisyOccluder((9, 9), seed=1)
        self.explicit = explicit

    def __len__(self) -> int:
        return 24

    def __getitem__(self, k: int):
        image = torch.full((1, 1, 30, 30), 0.5)
        ids = torch.tensor([k]) if self.explicit else None
        return self.occluder(image, ids)[0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_what_the_main_process_gives(context):
    dataset = Faces(explicit=True)
    alone = torch.stack([dataset[k] for k in range(24)])
    loader = DataLoader(
        dataset, batch_size=6, num_workers=2, multiprocessing_context=multiprocessing.get_context(context)
    )
    assert torch.equal(torch.cat(list(loader)), alone)


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_and_epochs_do_not_repeat_each_other(context):
    dataset = Faces(explicit=False)
    loader = DataLoader(dataset, batch_size=6, num_workers=2, multiprocessing_context=context)
    torch.manual_seed(7)
    epochs = [torch.cat(list(loader)) for _ in range(2)]
    images = torch.cat(epochs).flatten(1)
    assert len(images.unique(dim=0)) == 48
    torch.manual_seed(7)
    assert torch.equal(torch.cat(list(loader)), epochs[0])
    assert int(dataset.occluder.counter) == 0  # each worker has a counter of its own


def test_a_copy_has_a_counter_of_its_own():
    occluder = NoisyOccluder((9, 9), seed=1)
    images = torch.rand(4, 1, 30, 30)
    occluder(images)
    other = pickle.loads(pickle.dumps(occluder))
    assert int(other.counter) == 4 and list(other.state_dict()) == ["counter"]
    assert torch.equal(other(images), occluder(images))
    assert int(copy.deepcopy(occluder).counter) == 8


def _rank(rank: int, ranks: int, folder: str) -> None:
    """One process of a DDP run: its share of the images, each under its global number; one training step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    images, occluder = _portraits(), NoisyOccluder((9, 9), seed=1)
    ids = torch.tensor(list(DistributedSampler(range(24), ranks, rank, shuffle=True, seed=3)))  # global sample ids
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(900, 3))
    seen = occluder(images[ids], ids)
    model(seen.flatten(1)).square().mean().backward()
    torch.save((ids, seen, [p.grad for p in model.parameters()]), Path(folder) / f"{rank}.pt")
    dist.barrier()  # a rank that leaves while another still talks to it aborts that one
    dist.destroy_process_group()


def _portraits() -> torch.Tensor:
    return torch.rand(24, 1, 30, 30, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ranks", (2, 3))
def test_ddp_gives_what_one_process_gives(ranks: int, tmp_path: Path):
    torch.multiprocessing.spawn(_rank, (ranks, str(tmp_path)), nprocs=ranks)
    images, alone = _portraits(), NoisyOccluder((9, 9), seed=1)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    assert sorted(k for ids, *_ in parts for k in ids.tolist()) == list(range(24))
    whole = alone(images, torch.arange(24))
    for ids, seen, _ in parts:
        assert torch.equal(seen, whole[ids])
    torch.manual_seed(0)
    model = nn.Linear(900, 3)
    model(whole.flatten(1)).square().mean().backward()
    for *_, grads in parts:
        torch.testing.assert_close(grads, [p.grad for p in model.parameters()])


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 1), (40, 30, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_one_array_at_a_time(shape, dtype):
    image = (np.random.default_rng(0).random(shape) * (255 if dtype == np.uint8 else 1)).astype(dtype)
    image.flags.writeable = False
    out = occfast.PerImage(NoisyOccluder((9, 8), seed=2))(image, sample_id=5)
    assert type(out) is np.ndarray and out.shape == shape and out.dtype == dtype
    planes = torch.tensor(image.reshape(40, 30, -1)).permute(2, 0, 1)
    batch = NoisyOccluder((9, 8), seed=2)(planes[None], torch.tensor([5]))[0]
    assert np.array_equal(out.reshape(40, 30, -1), batch.permute(1, 2, 0).numpy())
    assert torch.equal(occfast.PerImage(NoisyOccluder((9, 8), seed=2))(planes, 5), batch)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_pil_image_at_a_time(mode):
    from PIL import Image

    image = Image.new(mode, (30, 40))
    transform = occfast.PerImage(NoisyOccluder((9, 8), intensity=(1, 1), level=(0, 0)))
    first, second = transform(image), transform(image)
    assert first.mode == mode and first.size == (30, 40)
    assert np.asarray(first).max() == 255 and not np.array_equal(np.asarray(first), np.asarray(second))
    with pytest.raises(ValueError, match="image: expected mode L or RGB, got CMYK"):
        transform(Image.new("CMYK", (30, 40)))
    with pytest.raises(TypeError, match="image: expected a PIL image, an array or a tensor, got str"):
        transform("face.png")


BAD = {
    "size": (dict(size=(0, 4)), ValueError, "size: expected numbers of at least 1"),
    "size range": (dict(size=((5, 3), (4, 4))), ValueError, r"size: expected \(\(min, max\)"),
    "size type": (dict(size="big"), TypeError, "size: expected"),
    "locations": (dict(locations="map"), ValueError, "locations: expected a LocationDistribution"),
    "noise": (dict(noise="pink"), ValueError, "noise: expected one or more of salt_and_pepper"),
    "no noise": (dict(noise=()), ValueError, "noise: expected one or more"),
    "level": (dict(level=(0.0, 1.5)), ValueError, r"level: expected a number in \[0, 1\], got 1.5"),
    "level order": (dict(level=(0.5, 0.1)), ValueError, "level: expected low <= high"),
    "level type": (dict(level=0.5), TypeError, r"level: expected \(low, high\)"),
    "intensity": (dict(intensity=(-0.1, 1.0)), ValueError, "intensity: expected a number"),
    "p": (dict(p=1.1), ValueError, r"p: expected a number in \[0, 1\], got 1.1"),
    "nan": (dict(p=float("nan")), ValueError, "p: expected a number"),
    "seed": (dict(seed=2**63), ValueError, "seed: expected an int in"),
    "range": (dict(value_range=(1.0, 1.0)), ValueError, "value_range: expected two different numbers"),
    "range of a channel": (dict(value_range=[(0, 1), (1, 0)]), ValueError, r"value_range\[1\]: expected low <= high"),
    "color": (dict(color="rgb"), ValueError, "color: expected 'channels' or 'gray'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name):
    change, error, message = BAD[name]
    with pytest.raises(error, match=message):
        NoisyOccluder(**change)


@pytest.mark.parametrize(
    ("images", "ids", "error", "message"),
    [
        (
            torch.rand(2, 1, 30, 31),
            None,
            ValueError,
            "images: expected 30x30 pixels, the size that the locations are made for",
        ),
        (torch.rand(1, 30, 30), None, ValueError, r"images: expected shape \[N, C, H, W\]"),
        (torch.rand(2, 1, 30, 30).double(), None, TypeError, "images: expected dtype"),
        (torch.rand(2, 1, 30, 30), torch.arange(3), ValueError, r"sample_ids: expected shape \[2\], got \[3\]"),
        (torch.rand(2, 1, 30, 30), torch.tensor([0, -1]), ValueError, "sample_ids: expected no negative"),
        (torch.rand(2, 1, 30, 30), torch.rand(2), TypeError, "sample_ids: expected dtype int64, got float32"),
    ],
)
def test_bad_batches(images, ids, error, message):
    with pytest.raises(error, match=message):
        NoisyOccluder((9, 9), LocationDistribution.uniform((30, 30)))(images, ids)


def test_an_occluder_larger_than_the_image():
    with pytest.raises(ValueError, match="size: expected at most the images' 30x30 pixels, got 31x9"):
        NoisyOccluder((31, 9))(torch.rand(2, 1, 30, 30))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: LocationDistribution.from_weights(torch.zeros(3, 3)),
            "weights: expected finite numbers >= 0, not all 0",
        ),
        (lambda: LocationDistribution.from_weights(-torch.ones(3, 3)), "weights: expected finite"),
        (lambda: LocationDistribution.from_weights(torch.full((3, 3), torch.nan)), "weights: expected finite"),
        (lambda: LocationDistribution.softmax(torch.rand(3, 3), 0.0), "temperature: expected a number"),
        (
            lambda: LocationDistribution.from_weights(torch.ones(2, 2), image_size=(5, 5), centers=([0, 5], [0, 1])),
            "row_centers: expected incr",
        ),
        (
            lambda: LocationDistribution.uniform((3, 3)).mix(LocationDistribution.uniform((3, 4)), 0.5),
            "other: expected",
        ),
        (
            lambda: LocationDistribution.uniform((3, 3)).masked(torch.zeros(3, 3, dtype=torch.bool)),
            "allowed: expected some",
        ),
    ],
)
def test_bad_distributions(call, message):
    with pytest.raises(ValueError, match=message):
        call()
