"""Occlusion maps against their definition, computed the slow way in float64, and against Captum."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import occfast
from occfast.sweep import SweepGrid, memory
from occfast.sweep.evaluators import dense


def slow_map(net, images, targets, grid, fill, score):
    """Return the scores (Eq. 3 and its variants), float64 [N, rows, columns], with one forward pass per occluded copy."""
    net, images = net.double(), images.double()
    out = np.zeros((len(images), grid.positions))
    with torch.no_grad():
        for n, image in enumerate(images):
            clean = net(image[None])[0]
            for p in range(grid.positions):
                top, left, bottom, right = grid.window(p)
                covered = image.clone()
                covered[:, top:bottom, left:right] = fill(image).expand_as(image)[:, top:bottom, left:right]
                result = net(covered[None])[0]
                if score == "error":
                    out[n, p] = result.argmax() != targets[n]
                elif score == "score_drop":
                    out[n, p] = clean[targets[n]] - result[targets[n]]
                else:
                    reference = clean if targets is None else targets[n].double()
                    similarity = nn.functional.cosine_similarity
                    out[n, p] = similarity(clean, reference, dim=0) - similarity(result, reference, dim=0)
    return out.reshape(len(images), grid.rows, grid.columns)


@pytest.mark.parametrize("border", ["clip", "valid"])
@pytest.mark.parametrize(("occluder", "stride"), [((5, 4), 1), ((1, 1), (3, 2)), ((17, 14), 5), ((4, 9), 2)])
@pytest.mark.parametrize("score", ["error", "score_drop", "similarity_drop"])
def test_equals_the_definition(tiny_net, faces, labels, score, border, occluder, stride):
    grid = SweepGrid.over((17, 14), occluder, stride=stride, border=border)
    targets = None if score == "similarity_drop" else labels
    tiny_net, faces = tiny_net.double(), faces.double()
    m = occfast.occlusion_map(
        tiny_net,
        faces,
        targets,
        occluder,
        stride=stride,
        border=border,
        fill=0.5,
        score=score,
        progress=False,
        batch_size=13,
    )
    expected = slow_map(tiny_net, faces, targets, grid, lambda image: torch.tensor(0.5).double(), score)
    np.testing.assert_allclose(m.values, expected.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(m.per_image, expected, rtol=1e-6, atol=1e-7)  # kept as uint8 or float32
    error = expected.std(0, ddof=1) / np.sqrt(len(faces))
    np.testing.assert_allclose(m.standard_error, error, rtol=1e-8, atol=1e-12)
    assert m.n_images == 6 and m.n_evaluations == 6 * grid.positions and m.method == "dense"
    assert [c.tolist() for c in m.centers] == [c.tolist() for c in grid.centers]


def test_some_positions_are_wrong_and_some_right(tiny_net, faces, labels):
    """The comparison above would be empty if the map were constant."""
    m = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False)
    assert 0 < m.values.mean() < 1 and m.values.std() > 0
    mean, std = m.accuracy
    assert mean == pytest.approx(1 - m.values.mean()) and std == pytest.approx(m.values.std())


FILLS = {
    "number": (0.25, lambda image: torch.tensor(0.25)),
    "channels": ([0.1, 0.2, 0.3], lambda image: torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)),
    "mean": ("mean", lambda image: image.mean((1, 2), keepdim=True)),
    "tensor": (torch.linspace(0, 1, 14), lambda image: torch.linspace(0, 1, 14)),
}


@pytest.mark.parametrize("name", FILLS)
def test_fills(name):
    from tests.conftest import TinyNet

    net, images = TinyNet(channels=3).eval().double(), torch.rand(2, 3, 17, 14, dtype=torch.float64)
    targets = torch.tensor([1, 2])
    given, slow = FILLS[name]
    grid = SweepGrid.over((17, 14), (6, 6), stride=4)
    m = occfast.occlusion_map(
        net, images, targets, (6, 6), stride=4, fill=given, score="score_drop", progress=False, skip_misclassified=False
    )
    expected = slow_map(net, images, targets, grid, lambda image: slow(image).double(), "score_drop")
    np.testing.assert_allclose(m.values, expected.mean(0), rtol=1e-6, atol=1e-9)


def test_noise_is_seeded_within_the_range_and_the_same_for_every_block(tiny_net, faces):
    def run(seed, images):
        return occfast.occlusion_map(
            tiny_net,
            images,
            None,
            (5, 5),
            stride=4,
            score="similarity_drop",
            fill="noise",
            seed=seed,
            progress=False,
            batch_size=8,
        )

    whole = run(3, faces)
    assert np.array_equal(whole.values, run(3, faces).values)
    assert not np.array_equal(whole.values, run(4, faces).values)
    batches = [(part, None) for part in faces.split(1)]
    np.testing.assert_allclose(run(3, batches).per_image, whole.per_image, rtol=1e-5, atol=1e-6)


def test_reference_embeddings(tiny_net, faces):
    references = torch.randn(6, 5, dtype=torch.float64)
    tiny_net, faces = tiny_net.double(), faces.double()
    grid = SweepGrid.over((17, 14), (5, 5), stride=4)
    m = occfast.occlusion_map(tiny_net, faces, references, (5, 5), stride=4, score="similarity_drop", progress=False)
    expected = slow_map(tiny_net, faces, references, grid, lambda image: torch.tensor(0.0).double(), "similarity_drop")
    np.testing.assert_allclose(m.values, expected.mean(0), rtol=1e-9, atol=1e-12)


def test_misclassified_images_are_left_out(tiny_net, faces, labels):
    wrong = labels.clone()
    wrong[[1, 4]] = (wrong[[1, 4]] + 1) % 5
    m = occfast.occlusion_map(tiny_net, faces, wrong, (5, 4), progress=False, batch_size=9)
    right = torch.tensor([0, 2, 3, 5])
    only = occfast.occlusion_map(tiny_net, faces[right], labels[right], (5, 4), progress=False, batch_size=9)
    assert m.n_images == 4 and m.n_skipped == 2
    assert np.array_equal(m.values, only.values)
    np.testing.assert_allclose(m.mean_image, faces[right].mean(0), rtol=1e-6)
    everything = occfast.occlusion_map(tiny_net, faces, wrong, (5, 4), progress=False, skip_misclassified=False)
    assert everything.n_images == 6


def test_an_iterable_gives_the_map_of_the_tensor(tiny_net, faces, labels):
    whole = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False, batch_size=9)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(faces, labels), batch_size=4)
    generator = ((faces[k : k + 1], labels[k : k + 1]) for k in range(6))
    for images in (loader, generator):
        m = occfast.occlusion_map(tiny_net, images, None, (5, 4), progress=False, batch_size=9)
        assert np.array_equal(m.values, whole.values) and m.n_images == 6


def test_inputs_of_any_kind_give_the_same_map(tiny_net, faces, labels):
    whole = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False, batch_size=16)
    strided = faces.repeat_interleave(2, 3)[..., ::2]
    frozen = faces.numpy().copy()
    frozen.flags.writeable = False
    for images in (strided, faces.contiguous(memory_format=torch.channels_last), faces.numpy(), frozen):
        m = occfast.occlusion_map(tiny_net, images, labels.numpy(), (5, 4), progress=False, batch_size=16)
        assert np.array_equal(m.values, whole.values)
    one = occfast.occlusion_map(tiny_net, faces[:1], labels[:1], (5, 4), progress=False)
    assert one.n_images == 1 and np.isnan(one.standard_error).all()


def test_the_given_model_and_images_are_left_alone(tiny_net, faces, labels):
    before = {name: tensor.clone() for name, tensor in tiny_net.state_dict().items()}
    strides = [p.stride() for p in tiny_net.parameters()]
    copy = faces.clone()
    occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False)
    assert torch.equal(copy, faces) and strides == [p.stride() for p in tiny_net.parameters()]
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_net.state_dict().items())


class Segmenting(torch.nn.Module):
    """Class scores of every pixel, [n, 3, H, W]; ``pooled``: one number for each image, [n]."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution, self.pooled = torch.nn.Conv2d(1, 3, 3, padding=1), pooled

    def forward(self, images):
        pixels = self.convolution(images).relu()
        return pixels.mean((1, 2, 3)) if self.pooled else pixels


@pytest.mark.parametrize("pooled", (False, True))
@pytest.mark.parametrize("method", ("auto", "dense", "adaptive"))
def test_a_score_function_takes_outputs_of_any_shape(pooled, method, faces):
    net, seen = Segmenting(pooled).eval(), set()

    def area(outputs, labels):
        seen.add(outputs.shape[1:])
        assert labels is None
        return outputs if pooled else outputs[:, 1, 3:9, 2:8].mean((1, 2))

    m = occfast.occlusion_map(net, faces, None, (5, 5), score=area, method=method, progress=False)
    assert seen == {torch.Size([] if pooled else [3, 17, 14])}
    grid, k = m.grid, 2
    rows, columns = grid.centers
    with torch.no_grad():
        clean = float(area(net(faces[k : k + 1]), None))
        for r, c in ((0, 0), (8, 6), (16, 13)):
            top, left = int(rows[r]) - 2, int(columns[c]) - 2
            copy = faces[k : k + 1].clone()
            copy[..., max(0, top) : top + 5, max(0, left) : left + 5] = 0
            want = clean - float(area(net(copy), None))
            assert m.per_image[k, r, c] == pytest.approx(want, abs=1e-5)
    with pytest.raises(ValueError, match=r"model: expected outputs of shape \[6, K\]"):
        occfast.occlusion_map(net, faces, None, (5, 5), score="similarity_drop", progress=False)
    if not pooled:
        with pytest.raises(ValueError, match="skip_misclassified: expected False for outputs of shape"):
            occfast.occlusion_map(
                net, faces, torch.zeros(6).long(), (5, 5), score=area, skip_misclassified=True, progress=False
            )


def test_any_function_is_a_model(tiny_net, faces, labels):
    expected = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False, batch_size=9)
    m = occfast.occlusion_map(lambda x: tiny_net(x), faces, labels, (5, 4), progress=False, batch_size=9)
    assert np.array_equal(m.values, expected.values)


def test_half_precision_outputs():
    net = lambda x: torch.stack([x.mean((1, 2, 3)), x[:, 0, 3, 3]], 1).bfloat16()  # noqa: E731
    images = torch.rand(2, 1, 8, 8).bfloat16()
    m = occfast.occlusion_map(net, images, torch.tensor([0, 1]), (3, 3), progress=False, skip_misclassified=False)
    assert m.per_image is not None and m.per_image.shape == (2, 8, 8)


@pytest.mark.peers
@pytest.mark.parametrize("stride", [1, (2, 3)])
def test_captum_gives_the_same_map(stride):
    """Captum averages over the windows that cover a pixel; with windows of its stride we can undo that."""
    pytest.importorskip("captum")
    from captum.attr import Occlusion

    from tests.conftest import TinyNet

    torch.manual_seed(3)
    net = TinyNet().eval().double()
    image, target = torch.rand(1, 1, 17, 14, dtype=torch.float64), 2
    step = (stride, stride) if isinstance(stride, int) else stride
    box = (5, 5)
    ours = occfast.occlusion_map(
        net,
        image,
        torch.tensor([target]),
        box,
        stride=stride,
        border="valid",
        score="score_drop",
        progress=False,
        skip_misclassified=False,
    )
    grid = ours.grid
    theirs = (
        Occlusion(net)
        .attribute(image, sliding_window_shapes=(1, *box), strides=(1, *step), target=target, baselines=0)[0, 0]
        .numpy()
    )
    # Captum adds a last window, cut at the edge, where the stride leaves pixels over.
    windows = [grid.window(p) for p in range(grid.positions)]
    covered, weight = np.zeros((17, 14)), np.zeros((17, 14))
    for (top, left, bottom, right), value in zip(windows, ours.values.ravel(), strict=True):
        covered[top:bottom, left:right] += value
        weight[top:bottom, left:right] += 1
    reached = (windows[-1][2], windows[-1][3])
    alone = np.zeros((17, 14), bool)
    alone[: reached[0] - box[0] + 1, : reached[1] - box[1] + 1] = True  # pixels that no window of the rest touches
    if reached == (17, 14):
        alone[:] = True
    ratio = np.divide(covered, weight, out=np.zeros_like(covered), where=weight > 0)
    # Captum adds its windows up in float32.
    np.testing.assert_allclose(theirs[alone], ratio[alone], rtol=5e-7, atol=5e-9)
    assert alone.sum() > 50


# -- memory and speed ----------------------------------------------------------------------------------


def test_memory_of_a_forward_pass_is_counted():
    x = torch.rand(4, 8, 32, 32)
    size = x.numel() * 4
    assert memory.peak_bytes(lambda: x + 1) == size
    assert memory.peak_bytes(lambda: (x + 1).mul(2).add(3)) == 2 * size
    assert memory.peak_bytes(lambda: [x + 1, x + 2, x + 3]) == 3 * size


def test_the_batch_fits_into_the_memory_limit(tiny_net, faces, labels):
    m = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False, memory_limit="200KB")
    small = m.settings["batch size"]
    one = memory.peak_bytes(lambda: tiny_net(faces[:1]))
    assert 1 <= small <= 200_000 / one
    assert dense.largest_batch(lambda b: torch.zeros(b, 1000), 40_000_000) == pytest.approx(6666, rel=0.5)


def test_a_memory_limit_that_holds_nothing_is_told_of(tiny_net, faces, labels):
    call = dict(progress=False, method="dense")
    with pytest.warns(UserWarning, match="memory_limit: 100 bytes do not hold a forward pass of one image"):
        m = occfast.occlusion_map(tiny_net, faces[:1], labels[:1], (5, 4), memory_limit=100, **call)
    assert m.settings["batch size"] == 1
    assert dense.largest_batch(lambda b: torch.zeros(b, 1000), 100) == 0


def test_out_of_memory_halves_the_batch(tiny_net, faces, labels, caplog):
    def fragile(x):
        if x.shape[0] > 6:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return tiny_net(x)

    m = occfast.occlusion_map(fragile, faces, labels, (5, 4), progress=False, batch_size=20)
    assert m.settings["batch size"] == 5
    expected = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False, batch_size=5)
    assert np.array_equal(m.values, expected.values)
    assert "batch size goes down" in caplog.text


def test_progress_is_reported(tiny_net, faces, labels, capfd):
    calls = []
    occfast.occlusion_map(
        tiny_net, faces, labels, (5, 4), batch_size=50, progress=lambda done, total: calls.append((done, total))
    )
    total = 6 * 17 * 14
    assert calls[-1] == (total, total) and all(t == total for _, t in calls)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False)
    assert capfd.readouterr().err == ""


# -- bad input -----------------------------------------------------------------------------------------


def nan_at(tensor, index):
    tensor = tensor.clone()
    tensor.view(-1)[index] = float("nan")
    return tensor


BAD = {
    "shape": (dict(images=torch.rand(3, 17, 14)), ValueError, r"images: expected shape \[N, C, H, W\]"),
    "dtype": (dict(images=torch.zeros(2, 1, 17, 14, dtype=torch.uint8)), TypeError, "images: expected a floating"),
    "type": (dict(images=3), TypeError, "images: expected a tensor"),
    "empty": (dict(images=torch.rand(0, 1, 17, 14), labels=torch.zeros(0).long()), ValueError, "images: .*empty"),
    "empty list": (dict(images=[], labels=None), ValueError, "images: .*empty"),
    "empty generator": (dict(images=iter(()), labels=None), ValueError, "images: .*empty"),
    "nan": (dict(images=nan_at(torch.rand(6, 1, 17, 14), 300)), ValueError, "NaN or infinity in image 1"),
    "label count": (dict(labels=torch.zeros(5).long()), ValueError, "labels: expected 6 of them"),
    "label range": (dict(labels=torch.full((6,), 5)), ValueError, r"labels: expected classes in \[0, 5\)"),
    "label dtype": (dict(labels=torch.zeros(6)), TypeError, "labels: expected int64"),
    "no labels": (dict(labels=None), ValueError, "labels: expected int64"),
    "two labels": (dict(images=[torch.rand(1, 1, 17, 14)]), ValueError, "labels: expected None where images"),
    "occluder": (dict(occluder=(18, 3)), ValueError, "occluder: expected at most the image's 17x14"),
    "stride": (dict(stride=0), ValueError, "stride: expected"),
    "border": (dict(border="wrap"), ValueError, "border: expected"),
    "score": (dict(score="loss"), ValueError, "score: expected one of 'error'"),
    "method": (dict(method="magic"), ValueError, "method: expected one of 'auto'"),
    "method type": (dict(method=3), TypeError, r"method: expected one of .*Adaptive\(...\) or Sampled\(...\), got 3"),
    "fill": (dict(fill="black"), ValueError, "fill: expected a number"),
    "fill shape": (dict(fill=torch.zeros(3, 17, 14)), ValueError, "fill: expected a tensor that broadcasts"),
    "fill nan": (dict(fill=float("nan")), ValueError, "fill: expected a number"),
    "fill channels": (dict(fill=[0.0, 0.0]), ValueError, "fill: expected 1 numbers, one for each channel"),
    "batch": (dict(batch_size=0), ValueError, r"batch_size: expected an int in \[1, 2147483647\], got 0"),
    "memory": (dict(memory_limit="lots"), ValueError, "memory_limit: expected bytes"),
    "seed": (dict(seed=-1), ValueError, r"seed: expected an int in \[0"),
    "device": (dict(device="tpu"), ValueError, "device: expected 'cpu'"),
    "tuple": (dict(model=lambda x: (x, x)), TypeError, r"model: expected a tensor \[n, K\], got tuple"),
    "rows": (dict(model=lambda x: torch.zeros(3, 5)), ValueError, r"model: expected outputs of shape \[6, K\]"),
    "ints": (dict(model=lambda x: torch.zeros(len(x), 5).long()), TypeError, "model: expected floating-point"),
    "outputs": (dict(model=lambda x: torch.full((len(x), 5), torch.nan)), ValueError, "model: expected finite"),
    "not a model": (dict(model=3), TypeError, "model: expected an nn.Module"),
    "always wrong": (
        dict(model=lambda x: torch.eye(5)[[4]].expand(len(x), 5), labels=torch.zeros(6).long()),
        ValueError,
        "model: expected to be right about some image without an occluder, got 0 of 6",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(tiny_net, faces, labels, name):
    change, error, message = BAD[name]
    arguments = dict(model=tiny_net, images=faces, labels=labels, occluder=(5, 4), progress=False)
    with pytest.raises(error, match=message):
        occfast.occlusion_map(**{**arguments, **change})


def test_outputs_that_turn_nan_under_the_occluder(faces):
    def net(x):
        y = torch.zeros(len(x), 5)
        y[:, 0] = 1 / (x[:, 0, 8, 7] != 0).float() - 1  # infinite where that pixel is covered
        y[:, 0] += 1
        return y

    with pytest.raises(ValueError, match="NaN or infinity for an occluded copy"):
        occfast.occlusion_map(net, faces, torch.zeros(6).long(), (5, 4), progress=False)


def test_training_mode_is_refused(tiny_net, faces, labels):
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        occfast.occlusion_map(tiny_net.train(), faces, labels, (5, 4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(tiny_net, faces, labels):
    with pytest.raises(ValueError, match="device: 'cuda' was asked for, but"):
        occfast.occlusion_map(tiny_net, faces, labels, (5, 4), device="cuda")


def test_changing_shapes_in_an_iterable(tiny_net, faces, labels):
    batches = [(faces[:2], labels[:2]), (faces[2:, :, :15], labels[2:])]
    with pytest.raises(ValueError, match=r"images: expected \[1, 17, 14\] as before, got \[1, 15, 14\] in batch 1"):
        occfast.occlusion_map(tiny_net, batches, None, (5, 4), progress=False)


# -- the maps of single images -------------------------------------------------------------------------


def test_the_map_of_one_image(tiny_net, faces, labels):
    labels = labels.clone()
    labels[1] = (tiny_net(faces[1:2]).argmax() + 1) % 2  # is left out
    m = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), stride=6, progress=False)
    used = m.image_indices.tolist()
    assert 1 not in used and len(m) == len(used) == m.n_images
    for row, k in enumerate(used):
        one = m[k]
        alone = occfast.occlusion_map(tiny_net, faces[k : k + 1], labels[k : k + 1], (5, 4), stride=6, progress=False)
        assert np.array_equal(one.values, alone.values) and np.array_equal(one.per_image, alone.per_image)
        assert np.array_equal(one.values, m.per_image[row]) and one.per_image.dtype == m.per_image.dtype
        assert one.n_images == 1 and one.image_indices.tolist() == [k] and np.isnan(one.standard_error).all()
        assert one.accuracy == alone.accuracy
    assert [one.image_indices.tolist() for one in m] == [[k] for k in used]
    for wrong in (1, -1, len(faces)):
        with pytest.raises(IndexError, match="image_index: expected"):
            m[wrong]
    with pytest.raises(TypeError, match="image_index: expected an int"):
        m["1"]
    with pytest.raises(
        ValueError, match="image_index: expected a map that holds the scores of single images, this one does not"
    ):
        dataclasses.replace(m, per_image=None)[0]


def test_the_map_of_one_image_is_kept_and_drawn(tiny_net, faces, labels, tmp_path):
    m = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), stride=6, score="score_drop", progress=False)[2]
    loaded = occfast.OcclusionMap.load(m.save(tmp_path / "one.npz"))
    assert np.array_equal(loaded.values, m.values) and loaded.image_indices.tolist() == [2]
    assert "one of" in m.to_html(tmp_path / "one.html").read_text()


def test_images_that_a_recognizer_rejects(tiny_net, faces):
    m = occfast.occlusion_map(tiny_net, faces, None, (5, 4), stride=6, score="similarity_drop", progress=False)
    threshold = float(1 - np.median(m.per_image))
    rate = m.rejection_rate(threshold)
    assert np.array_equal(rate, ((1 - m.per_image.astype(float)) < threshold).mean(0)) and 0 < rate.mean() < 1
    assert np.array_equal(m.rejection_rate(-0.999), np.zeros_like(rate))
    for wrong in (-1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold: expected a number above -1 and at most 1"):
            m.rejection_rate(wrong)
    references = torch.randn(len(faces), tiny_net(faces[:1]).shape[1])
    other = occfast.occlusion_map(
        tiny_net, faces, references, (5, 4), stride=6, score="similarity_drop", progress=False
    )
    for wrong in (other, dataclasses.replace(m, score="score_drop")):
        with pytest.raises(
            ValueError, match="rejection_rate: expected a map of the score 'similarity_drop' with labels"
        ):
            wrong.rejection_rate(0.5)
