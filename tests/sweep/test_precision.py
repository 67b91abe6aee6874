"""Sweeps in reduced precision, on request only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import occfast
from occfast.native import ops
from occfast.sweep import precision as precisions
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.geometry import SweepGrid
from tests.sweep.test_checkpoint import Interrupted, stop_after
from tests.sweep.test_incremental import NETWORKS, make, some

#: Difference of logits relative to the largest, after up to 50 layers in bfloat16 with its 8 bits.
BF16 = 0.04


@pytest.mark.parametrize("name", NETWORKS)
def test_incremental_in_bfloat16(name: str) -> None:
    """The incremental sweep is as close to float32 as the dense one, and labels nearly always agree."""
    model, images = make(name, torch.float32)
    low, low_images = copy.deepcopy(model).to(torch.bfloat16), images.bfloat16()
    h, w = images.shape[-2:]
    grid, fill = SweepGrid.over((h, w), (h // 4, w // 3)), torch.full((1, 1, 1, 1), 0.25)
    positions = some(grid, len(images), 40)
    evaluator = IncrementalEvaluator(low, grid, low_images)
    evaluator.start(low_images, fill.bfloat16())
    found = evaluator.outputs(positions)
    with torch.no_grad():
        dense = low(ops.occlude_positions(low_images, fill.bfloat16(), positions, grid.native()))
        expected = model(ops.occlude_positions(images, fill, positions, grid.native()))
    assert found.dtype == torch.bfloat16
    scale = float(expected.abs().max())
    for one, other in ((found, dense), (found, expected), (dense, expected)):
        assert float((one.float() - other.float()).abs().max()) <= BF16 * scale
        assert float((one.argmax(1) == other.argmax(1)).double().mean()) >= 0.9


@pytest.mark.parametrize("method", ["dense", "incremental"])
def test_bf16_sweeps_a_copy(tiny_net: nn.Module, faces: Tensor, labels: Tensor, method: str) -> None:
    before, given = copy.deepcopy(tiny_net.state_dict()), faces.clone()
    seen = []
    tiny_net.layers[0].register_buffer("unused", torch.arange(3))  # integers stay integers
    arguments: dict[str, Any] = dict(occluder=(5, 4), score="score_drop", method=method, progress=False, batch_size=32)
    plain = occfast.occlusion_map(tiny_net, faces, labels, **arguments)
    m = occfast.occlusion_map(tiny_net, faces, labels, precision="bf16", **arguments)
    assert (m.precision, m.settings["dtype"], m.method) == ("bf16", "bfloat16", method)
    assert (plain.precision, plain.settings["dtype"]) == (None, "float32")
    assert not np.array_equal(m.values, plain.values)
    np.testing.assert_allclose(m.values, plain.values, atol=0.05 * np.abs(plain.values).max())
    # By hand: the model and the images in bfloat16; outputs and sums are unchanged.
    low = copy.deepcopy(tiny_net).to(torch.bfloat16)
    low.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    by_hand = occfast.occlusion_map(low, faces.bfloat16(), labels, **{**arguments, "method": "dense"})
    assert set(seen) == {torch.bfloat16}
    if method == "dense":
        assert np.array_equal(m.values, by_hand.values)
    assert torch.equal(faces, given)
    assert all(p.dtype == torch.float32 for p in tiny_net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tiny_net.state_dict().items() if name in before)


def test_labels_agree_at_most_positions() -> None:
    model, images = make("resnet18", torch.float32)
    with torch.no_grad():
        labels = model(images).argmax(1)
    maps = [
        occfast.occlusion_map(
            model,
            images,
            labels,
            (20, 20),
            stride=4,
            precision=precision,
            method="incremental",
            progress=False,
            skip_misclassified=False,
        ).per_image
        for precision in (None, "bf16")
    ]
    assert maps[0] is not None and maps[1] is not None and 0 < maps[0].mean() < 1
    assert (maps[0] == maps[1]).mean() >= 0.95


def test_estimates_in_bfloat16(tiny_net: nn.Module, faces: Tensor, labels: Tensor) -> None:
    for method in ("adaptive", "sampled"):
        m = occfast.occlusion_map(
            tiny_net, faces, labels, (5, 4), method=method, precision="bf16", progress=False, skip_misclassified=False
        )
        assert m.precision == "bf16" and m.method == method


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


def test_what_is_refused(tiny_net: nn.Module, faces: Tensor, labels: Tensor) -> None:
    def sweep(model: Any, precision: Any) -> None:
        occfast.occlusion_map(model, faces, labels, (5, 4), progress=False, precision=precision)

    with pytest.raises(ValueError, match="precision: expected one of 'tf32', 'bf16', got 'fp16'"):
        sweep(tiny_net, "fp16")
    with pytest.raises(ValueError, match=r"precision: 'tf32' is of GPUs, expected .* on cuda, got cpu"):
        sweep(tiny_net, "tf32")
    with pytest.raises(ValueError, match=r"precision: 'bf16' .* expects an nn.Module, got function"):
        sweep(lambda x: tiny_net(x), "bf16")
    with pytest.raises(ValueError, match="copying it fails: no copies"):
        sweep(Uncopyable(3, 3), "bf16")
    with pytest.raises(ValueError, match="tf32' rounds float32, expected float32 images, got float64"):
        precisions.check_precision("tf32", _OnCuda())  # type: ignore[arg-type]


class _OnCuda:
    device, dtype = torch.device("cuda", 0), torch.float64


def test_a_checkpoint_is_of_one_precision(tiny_net: nn.Module, tmp_path: Any) -> None:
    images = torch.rand(70, 1, 9, 8, generator=torch.Generator().manual_seed(5))
    path = tmp_path / "sweep.npz"
    arguments: dict[str, Any] = dict(
        labels=None, occluder=(4, 3), score="similarity_drop", batch_size=50, checkpoint=path
    )
    with pytest.raises(Interrupted):
        occfast.occlusion_map(tiny_net, images, precision="bf16", progress=stop_after(1000), **arguments)
    kept = path.read_bytes()
    with pytest.raises(ValueError, match="of another sweep: precision 'bf16' there and None here"):
        occfast.occlusion_map(tiny_net, images, progress=False, **arguments)
    assert path.read_bytes() == kept
    resumed = occfast.occlusion_map(tiny_net, images, precision="bf16", progress=False, **arguments)
    whole = occfast.occlusion_map(
        tiny_net, images, precision="bf16", progress=False, **{**arguments, "checkpoint": None}
    )
    assert np.array_equal(resumed.values, whole.values)


def test_autocast_does_not_reach_in(tiny_net: nn.Module, faces: Tensor, labels: Tensor) -> None:
    arguments: dict[str, Any] = dict(occluder=(5, 4), score="score_drop", batch_size=32, progress=False)
    plain = occfast.occlusion_map(tiny_net, faces, labels, **arguments)
    with torch.autocast("cpu", torch.bfloat16):
        m = occfast.occlusion_map(tiny_net, faces, labels, **arguments)
        assert tiny_net(faces).dtype == torch.bfloat16
    assert np.array_equal(m.values, plain.values)


# -- the switches --------------------------------------------------------------------------------------

_GET: Callable[..., str] = torch._C._get_fp32_precision_getter


def switches() -> list[Any]:
    """Return all switches of both generations; the older ones may raise if the two differ."""

    def older(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except RuntimeError:
            return "differ"

    backends = [(b, op) for b in ("cuda", "mkldnn") for op in ("matmul", "conv", "rnn", "all")] + [("generic", "all")]
    return [
        *(_GET(*each) for each in backends),
        older(lambda: torch.backends.cuda.matmul.allow_tf32),
        older(lambda: torch.backends.cudnn.allow_tf32),
        older(torch.get_float32_matmul_precision),
    ]


CALLERS: dict[str, Callable[[Any], None]] = {
    "PyTorch's default": lambda b: None,
    "set_float32_matmul_precision": lambda b: torch.set_float32_matmul_precision("medium"),
    "older": lambda b: (setattr(b.cuda.matmul, "allow_tf32", True), setattr(b.cudnn, "allow_tf32", False)),  # type: ignore[dict-item]
    "newer": lambda b: setattr(b.cudnn.conv, "fp32_precision", "ieee"),
    "newer, all": lambda b: setattr(b, "fp32_precision", "tf32"),
    "both": lambda b: (setattr(b.cuda.matmul, "allow_tf32", True), setattr(b.cuda.matmul, "fp32_precision", "ieee")),  # type: ignore[dict-item]
    "convolutions on the CPU": lambda b: setattr(b.mkldnn.conv, "fp32_precision", "bf16"),
}


@pytest.fixture
def restored() -> Any:
    yield
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for switch in (*precisions._OF_CPU, precisions._OF_CUDA[0]):
        switch.fp32_precision = "none"


@pytest.mark.parametrize("kind", ["ieee", "tf32"])
@pytest.mark.parametrize("caller", CALLERS)
def test_switches_are_set_for_the_sweep_and_restored(
    caller: str, kind: Any, restored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # the switches exist without a GPU
    CALLERS[caller](torch.backends)
    before = switches()
    with pytest.raises(ZeroDivisionError), precisions.float32_as(kind):
        now = switches()
        assert now[:3] == [kind] * 3 and all(value in ("ieee", "none") for value in now[4:7])
        assert now[-3:-1] == [kind == "tf32"] * 2  # both generations agree, as operations expect
        raise ZeroDivisionError
    assert switches() == before


def test_a_sweep_is_float32_whatever_the_switches_say(
    tiny_net: nn.Module, faces: Tensor, labels: Tensor, restored: None
) -> None:
    torch.set_float32_matmul_precision("medium")
    before, seen = switches(), []
    tiny_net.register_forward_pre_hook(lambda *_: seen.append(switches()[4:7]))
    occfast.occlusion_map(tiny_net, faces, labels, (5, 4), method="dense", progress=False)
    assert before[4] == "bf16" and {value for each in seen for value in each} <= {"ieee", "none"}
    assert switches() == before
