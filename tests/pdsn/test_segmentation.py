"""Segmentation: labels, names of layers, training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from occfast import DataError
from occfast.pdsn import SegmentationScore, UNet, difference_labels, segment, train_segmentation
from occfast.pdsn.segmentation import _open_close

QUICK = dict(epochs=6, batch_size=8, learning_rate=3e-3, progress=False)


def faces(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smooth gray images, the same with a white block, and where it lies; [n, 1, 48, 32]."""
    random = torch.Generator().manual_seed(seed)
    coarse = 0.2 + 0.5 * torch.rand(n, 1, 6, 4, generator=random)
    clean = torch.nn.functional.interpolate(coarse, size=(48, 32), mode="bilinear")
    truth = torch.zeros(n, 48, 32, dtype=torch.bool)
    for k in range(n):
        top, left = int(torch.randint(0, 30, (), generator=random)), int(torch.randint(0, 16, (), generator=random))
        truth[k, top : top + 18, left : left + 16] = True
    return clean, torch.where(truth[:, None], 1.0, clean), truth


def test_labels_find_the_block_and_lose_the_specks():
    clean, covered, truth = faces(4, 0)
    noisy = covered.clone()
    noisy[:, :, 5, 3] = 0.0  # a speck outside or a hole inside
    noisy[1, 0, 20, 10] = clean[1, 0, 20, 10]
    assert torch.equal(difference_labels(clean, covered), opened(truth))
    assert torch.equal(difference_labels(clean, noisy), opened(truth))
    assert bool((difference_labels(clean, noisy, radius=0) != truth).any())
    assert not bool(difference_labels(clean, clean).any())


def opened(truth: torch.Tensor) -> torch.Tensor:
    """A disk of radius 2 rounds a block's corners by three pixels each, but not those at the image's edge."""
    image = np.pad(truth.numpy(), ((0, 0), (9, 9), (9, 9)), mode="edge")
    along = np.arange(-2, 3)
    disk = (along[:, None] ** 2 + along**2 <= 4)[None]
    out = ndimage.binary_closing(ndimage.binary_opening(image, disk), disk)
    return torch.from_numpy(out[:, 9:-9, 9:-9])


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_both_libraries_agree(radius):
    """SciPy, which has the functions of cupyx.scipy.ndimage, stands in for a GPU here."""
    random = torch.Generator().manual_seed(radius)
    clean = torch.zeros(5, 1, 40, 36)
    covered = (torch.nn.functional.avg_pool2d(torch.rand(5, 1, 40, 36, generator=random), 5, 1, 2) > 0.5).float()
    ours = difference_labels(clean, covered, radius=radius)
    margin = 2 * radius + 1
    padded = np.pad(covered[:, 0].numpy() > 0, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    other = _open_close(padded, radius, ndimage, np)[:, margin:-margin, margin:-margin]
    assert 0 < int(ours.sum()) < ours.numel() and np.array_equal(ours.numpy(), other)


def test_uint8_and_color():
    clean = torch.full((1, 3, 40, 40), 100, dtype=torch.uint8)
    covered = clean.clone()
    covered[:, 2, 10:30, 10:30] = 120  # one channel is enough
    assert int(difference_labels(clean, covered).sum()) == 400 - 12
    assert int(difference_labels(clean, covered, threshold=0.1).sum()) == 0


def test_layers_have_the_names_of_segmentation_models_pytorch():
    """Written out from that library's modules: VGG-16 "D" without batch norm, center block, five decoder blocks."""
    expected = {}
    before = 3
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for place, after in zip(places, (64, 64, 128, 128, 256, 256, 256) + (512,) * 6, strict=True):
        expected[f"encoder.features.{place}.weight"] = (after, before, 3, 3)
        expected[f"encoder.features.{place}.bias"] = (after,)
        before = after

    def block(name: str, before: int, after: int) -> None:
        expected[f"{name}.0.weight"] = (after, before, 3, 3)
        for part in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{name}.1.{part}"] = (after,)
        expected[f"{name}.1.num_batches_tracked"] = ()

    block("decoder.center.0", 512, 512)
    block("decoder.center.1", 512, 512)
    table = ((1024, 256), (768, 128), (384, 64), (192, 32), (32, 16))
    for k, (wide, after) in enumerate(table):
        block(f"decoder.blocks.{k}.conv1", wide, after)
        block(f"decoder.blocks.{k}.conv2", after, after)
    expected["segmentation_head.0.weight"] = (1, 16, 3, 3)
    expected["segmentation_head.0.bias"] = (1,)
    with torch.device("meta"):
        found = {name: tuple(tensor.shape) for name, tensor in UNet().state_dict().items()}
    assert found == expected


def test_torchvisions_encoder_loads():
    network = UNet(width=0.1)
    state = {f"features.{k.removeprefix('features.')}": v + 1 for k, v in network.encoder.state_dict().items()}
    network.load_encoder({**state, "classifier.0.weight": torch.zeros(1)})
    assert all(torch.equal(network.encoder.state_dict()[k], v) for k, v in state.items())


@pytest.mark.parametrize("size", [(32, 32), (128, 96), (50, 37), (100, 100)])
def test_any_size_comes_out_as_it_went_in(size):
    network = UNet(1, width=0.05).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 1, *size)).shape == (1, 1, *size)


def test_learns_white_blocks():
    torch.manual_seed(0)
    network = UNet(1, width=0.125)
    clean, covered, _ = faces(64, 1)
    other = faces(16, 2)
    history = train_segmentation(
        network,
        torch.cat([clean, clean[:16]]),
        torch.cat([covered, clean[:16]]),
        validation=other[:2],
        **{**QUICK, "epochs": 10},
    )
    score = SegmentationScore.of(segment(network, other[1]), other[2])
    assert score.accuracy > 0.97 and score.iou > 0.85, (score, history)
    assert float(segment(network, other[0]).double().mean()) < 0.02


def test_resumed_equals_uninterrupted(tmp_path):
    def fresh() -> UNet:
        torch.manual_seed(1)
        return UNet(1, width=0.05)

    clean, covered, _ = faces(16, 1)
    data = dict(validation=faces(8, 2)[:2], **{**QUICK, "epochs": 4})
    whole = fresh()
    history = train_segmentation(whole, clean, covered, **data)
    path = tmp_path / "unet.pt"

    def kill(epoch):
        if epoch.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_segmentation(fresh(), clean, covered, **data, checkpoint=path, checkpoint_every=0, on_epoch=kill)
    resumed = fresh()
    again = train_segmentation(resumed, clean, covered, **data, checkpoint=path)
    assert [e.loss for e in again] == [e.loss for e in history] and not path.exists()
    assert all(torch.equal(resumed.state_dict()[k], v) for k, v in whole.state_dict().items())


def test_score_by_hand():
    truth = torch.tensor([[[True, True, False, False]]])
    found = torch.tensor([[[True, False, True, False]]])
    assert SegmentationScore.of(found, truth) == SegmentationScore(0.5, 1 / 3)
    none = torch.zeros_like(truth)
    assert SegmentationScore.of(none, none) == SegmentationScore(1.0, 1.0)


def test_saved_and_loaded(tmp_path):
    network = UNet(1, width=0.05).eval()
    again = UNet.load(network.save(tmp_path / "u.pt"))
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), again(x))
    content = torch.load(tmp_path / "u.pt")
    content["state"] = {name: tensor.to(torch.int8) for name, tensor in content["state"].items()}
    torch.save(content, tmp_path / "u.pt")
    with pytest.raises(DataError, match="has dtype int8, expected float32"):
        UNet.load(tmp_path / "u.pt")
    with pytest.raises(ValueError, match="has dtype int8, expected float32"):
        network.load_encoder({name: tensor.to(torch.int8) for name, tensor in network.encoder.state_dict().items()})
    (tmp_path / "u.pt").write_bytes(b"12345")
    with pytest.raises(DataError, match=r"u\.pt"):
        UNet.load(tmp_path / "u.pt")


def test_bad_input():
    clean, covered, truth = faces(2, 0)
    with pytest.raises(ValueError, match="covered"):
        difference_labels(clean, covered[:1])
    with pytest.raises(ValueError, match="threshold"):
        difference_labels(clean, covered, threshold=2.0)
    with pytest.raises(ValueError, match="radius"):
        difference_labels(clean, covered, radius=-1)
    with pytest.raises(ValueError, match="at least 32"):
        UNet(1, width=0.05)(torch.rand(1, 1, 16, 64))
    with pytest.raises(ValueError, match="1 channels"):
        segment(UNet(1, width=0.05), torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="width"):
        UNet(width=0)
    with pytest.raises(ValueError, match="labels"):
        train_segmentation(UNet(1, width=0.05), clean, covered, validation=(clean, covered), labels=truth[:1])
    with pytest.raises(TypeError, match="bool"):
        SegmentationScore.of(truth.float(), truth)
