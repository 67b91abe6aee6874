"""MobileFaceNet: its size, published weights, the accuracy that they are known for, and its sweep."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from occfast.models import NETWORKS, MobileFaceNet, Preprocessing, build

#: Convolutions and norms of Table 1 (112x96), counted by hand: stem, depthwise stem, fifteen blocks, head.
_BLOCKS = ((2, 64, 64, 5), (4, 64, 128, 1), (2, 128, 128, 6), (4, 128, 128, 1), (2, 128, 128, 2))


def weights() -> Path:
    path = Path(os.environ.get("OCCFAST_DATA", "")) / "models" / "mobilefacenet-112x96.safetensors"
    if not os.environ.get("OCCFAST_DATA") or not path.is_file():
        pytest.skip("no models/mobilefacenet-112x96.safetensors in $OCCFAST_DATA")
    return path


def test_parameters_counted_by_hand() -> None:
    def unit(before: int, after: int, taps: int, linear: bool = False, depthwise: bool = False) -> int:
        return (1 if depthwise else before) * taps * after + 2 * after + (0 if linear else after)

    total = unit(3, 64, 9) + unit(64, 64, 9, depthwise=True)
    for expansion, before, after, count in _BLOCKS:
        for number in range(count):
            entry = before if number == 0 else after
            inner = entry * expansion
            total += unit(entry, inner, 1) + unit(inner, inner, 9, depthwise=True) + unit(inner, after, 1, linear=True)
    total += unit(128, 512, 1) + unit(512, 512, 7 * 6, linear=True, depthwise=True) + unit(512, 128, 1, linear=True)
    assert sum(p.numel() for p in MobileFaceNet().parameters()) == total


@pytest.mark.parametrize(
    ("size", "channels", "feature_size"), [((112, 96), 3, 128), ((112, 112), 1, 320), ((50, 33), 3, 7)]
)
def test_shapes(size: tuple[int, int], channels: int, feature_size: int) -> None:
    network = build("mobilefacenet", channels=channels, size=size, feature_size=feature_size).eval()
    assert isinstance(network, MobileFaceNet) and "mobilefacenet" in NETWORKS
    with torch.inference_mode():
        assert network(torch.rand(2, channels, *size)).shape == (2, feature_size)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": (112, 8)}, ValueError, "size: expected an int of at least 16, got 8"),
        ({"channels": 0}, ValueError, "channels: expected"),
        ({"feature_size": "a"}, TypeError, "feature_size: expected an int"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MobileFaceNet(**arguments)  # type: ignore[arg-type]


def test_published_weights_load() -> None:
    network = MobileFaceNet()
    network.load_state_dict(load_file(weights()), strict=True)


@pytest.mark.slow
def test_published_weights_reach_their_accuracy_on_lfw() -> None:
    from occfast.data import LFW, Aligned, WithLandmarks, read_landmarks
    from occfast.evaluate import embed, lfw

    network = MobileFaceNet()
    network.load_state_dict(load_file(weights()))
    root = Path(os.environ["OCCFAST_DATA"]) / "lfw"
    dataset = LFW(root)
    faces = Aligned(
        dataset
        if dataset.landmarks is not None
        else WithLandmarks(dataset, read_landmarks(root / "landmarks.csv").of(dataset.names)),
        "sphereface-112x96",
    )
    preprocessing = Preprocessing((112, 96), "RGB", mean=127.5 / 255, std=128 / 255)
    protocol = lfw(dataset)
    found = embed(network.eval(), faces, preprocessing, indices=protocol.index.unique(), flip="sum", progress=False)
    table = torch.full((len(faces), 128), torch.nan)
    table[protocol.index.unique()] = found.features
    accuracy = protocol.evaluate(table, table, resamples=0).accuracy
    assert accuracy is not None and accuracy > 0.985  # 98.98 % with these files, the features of both views added
