"""Features of a data set: flip fusion, occlusions, rejected inputs and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from occfast import DataError, LocationDistribution
from occfast.data import Face, FaceDataset
from occfast.data.align import fit
from occfast.data.resize import Resized
from occfast.evaluate import Embeddings, embed
from occfast.models import Preprocessing
from occfast.occlude import NoisyBlock, named_occlusion
from occfast.occlude.drawn import Band, Block

POINTS = torch.tensor([[8.0, 7], [8, 13], [12, 10], [16, 7.5], [16, 12.5]], dtype=torch.float64)


class Squares(FaceDataset):
    """Return 24×20 images of people, each with a distinct pattern."""

    def __init__(self, people: int = 6, images: int = 4, channels: int = 1, landmarks: bool = True) -> None:
        random = torch.Generator().manual_seed(1)
        base = torch.rand(people, 1, channels, 24, 20, generator=random)
        noise = 0.25 * torch.rand(people, images, channels, 24, 20, generator=random)
        self.images = ((base * 0.7 + noise).clamp(0, 1) * 255).to(torch.uint8).flatten(0, 1)
        self.labels = torch.arange(people).repeat_interleave(images)
        self.names = [f"p{k // images}/{k % images}" for k in range(people * images)]
        self.people = [f"p{k}" for k in range(people)]
        self.landmarks = POINTS.expand(len(self.names), 5, 2) if landmarks else None

    def __getitem__(self, k: int) -> Face:
        return Face(self.images[k], int(self.labels[k]), self.names[k], self.landmarks_of(k))


class Projection(nn.Module):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn(channels * 480, 32, generator=generator))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x.flatten(1) @ self.weight)


PRE = Preprocessing((24, 20), "gray")
OFF = {"progress": False}


def test_features_are_the_models_and_flips_are_fused() -> None:
    faces, model = Squares(), Projection().train()
    x = PRE(faces.images)
    with torch.no_grad():
        plain, mirrored = (v.flatten(1) @ model.weight for v in (x, x.flip(3)))
    none = embed(model, faces, PRE, flip="none", batch_size=5, **OFF)
    assert torch.allclose(none.features, plain, atol=1e-4) and model.training  # no dropout meanwhile
    assert torch.allclose(embed(model, faces, PRE, **OFF).features, plain + mirrored, atol=1e-4)
    assert torch.allclose(
        embed(model, faces, PRE, flip="concat", **OFF).features, torch.cat([plain, mirrored], 1), atol=1e-4
    )
    some = embed(model, faces, PRE, indices=[7, 2], flip="none", **OFF)
    assert torch.allclose(some.features, plain[[7, 2]], atol=1e-4)
    assert some.names == ["p1/3", "p0/2"] and some.labels.tolist() == [1, 0] and not some.covered.any()


class _Viewing(nn.Module):
    """A network that takes contiguous images only, as many do."""

    def __init__(self, viewing: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.viewing = viewing
        self.convolution = nn.Conv2d(3, 8, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.convolution(x)
        return maps.view(len(x), -1) if self.viewing else maps.flatten(1)


@pytest.mark.parametrize("viewing", [True, False])
def test_models_that_take_contiguous_images_only_get_them(viewing: bool) -> None:
    faces, network = Squares(channels=3), _Viewing(viewing)
    preprocessing = Preprocessing(size=(24, 20), color="RGB", mean=0.5, std=0.25)
    seen = []
    network.convolution.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    found = embed(network, faces, preprocessing, flip="none", batch_size=8, progress=False).features
    assert seen == ([True, False, False, False] if viewing else [True] * 3)
    with torch.no_grad():
        expected = network(preprocessing(torch.stack([face.image for face in faces])).contiguous())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_occlusions_cover_before_the_image_is_prepared_and_mirrored() -> None:
    faces, model = Squares(), Projection()
    covered = embed(model, faces, PRE, occlusion=Band("eyes"), flip="none", **OFF)
    by_hand = Band("eyes")(faces.images, faces.landmarks)
    with torch.no_grad():
        assert torch.allclose(covered.features, PRE(by_hand.images).flatten(1) @ model.weight, atol=1e-4)
    assert covered.covered == pytest.approx(by_hand.mask.float().mean((1, 2)))
    assert covered.about["occlusion"] == {"kind": "Band", "region": "eyes", "fill": 1.0}


@pytest.mark.parametrize("name", ["block:5x9", "noisy:5x9", "noisy:5x9@4,11"])
def test_random_occlusions_go_by_the_number_of_the_image(name: str) -> None:
    faces, model = Squares(), Projection()
    whole = embed(model, faces, PRE, occlusion=named_occlusion(name, seed=3), batch_size=24, **OFF)
    part = embed(model, faces, PRE, occlusion=named_occlusion(name, seed=3), indices=[20, 3, 9], batch_size=2, **OFF)
    assert torch.allclose(whole.features[[20, 3, 9]], part.features, atol=1e-4)
    assert (whole.covered > 0).all()


def test_noisy_blocks_where_they_are_asked_for(tmp_path: Path) -> None:
    images = Squares().images
    mask = NoisyBlock((5, 9), (10, 11))(images).mask
    rows, columns = mask[0].nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 12, 7, 15)
    assert (mask == mask[0]).all() and mask[0].sum() == 45
    weights = torch.zeros(24, 20, dtype=torch.float64)
    weights[10, 11] = 1
    LocationDistribution.from_weights(weights).save(tmp_path / "P.npz")
    assert torch.equal(named_occlusion(f"noisy:5x9@{tmp_path}/P.npz")(images).mask, mask)
    with pytest.raises(ValueError, match="expected ROW,COLUMN or a file"):
        named_occlusion("noisy:5x9@nowhere.npz")
    (tmp_path / "other.npz").write_bytes(b"no")
    with pytest.raises(DataError, match=r"other\.npz"):
        named_occlusion(f"noisy:5x9@{tmp_path}/other.npz")
    with pytest.raises(ValueError, match="row_centers: expected"):
        NoisyBlock((5, 9), (24, 0))(images)


def test_files_keep_everything_and_contradictions_are_refused(tmp_path: Path) -> None:
    faces, model = Squares(), Projection()
    found = embed(model, faces, PRE, **OFF)
    back = Embeddings.load(found.save(tmp_path / "features.npz"))
    assert torch.equal(back.features, found.features) and back.names == found.names and back.about == found.about
    found.require(back)
    found.require(embed(model, faces, PRE, occlusion=Block((3, 3)), **OFF))
    other = Projection()
    nn.init.ones_(other.weight)
    for changed, message in (
        (embed(other, faces, PRE, **OFF), "model"),
        (embed(model, faces, replace(PRE, mean=0.4), **OFF), "mean 0.5 here, 0.4 there"),
        (embed(model, faces, PRE, flip="none", **OFF), "flip sum here, none there"),
    ):
        with pytest.raises(ValueError, match=f"features: can't be compared: {message}"):
            found.require(changed)
    for content in (b"", b"PK\x03\x04", (tmp_path / "features.npz").read_bytes()[:-400]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.npz"):
            Embeddings.load(tmp_path / "bad.npz")


def test_features_of_version_0_1_0_are_read(tmp_path: Path) -> None:
    faces, model = Squares(), Projection()
    found = embed(model, faces, PRE, **OFF)
    old = replace(found, about={**found.about, "preprocessing": {**found.about["preprocessing"], "color": "grey"}})
    found.require(Embeddings.load(old.save(tmp_path / "old.npz")))


def test_alignment_that_contradicts_the_weights_is_refused() -> None:
    faces, model = Squares(), Projection()
    done = fit(POINTS[None], "paper-100", size=(24, 20), gray=True).alignment
    as_they_came = fit(POINTS[None], "paper-100", size=(24, 20)).alignment
    other = fit(POINTS[None], "arcface-112", size=(24, 20), gray=True).alignment
    faces.alignment = done
    assert len(embed(model, faces, PRE, **OFF).names) == 24  # the weights don't say
    for agrees in (done, as_they_came):  # the latter was trained on faces that were gray by themselves
        embed(model, faces, replace(PRE, alignment=agrees.as_dict()), **OFF)
    with pytest.raises(ValueError, match="the weights expect faces aligned to arcface-112, got paper-100"):
        embed(model, faces, replace(PRE, alignment=other.as_dict()), **OFF)


@pytest.mark.parametrize(
    ("faces", "settings", "message"),
    [
        (
            Squares(channels=3),
            {},
            r"dataset: expected images of \[1, 24, 20\], which the network takes, got \[3, 24, 20\] for p0/0",
        ),
        (
            Squares(landmarks=False),
            {"occlusion": Band()},
            "dataset: expected landmarks, which the occlusion needs, p0/0 has none",
        ),
        (Squares(), {"flip": "both"}, "flip: expected one of 'sum', 'concat', 'none', got 'both'"),
        (Squares(), {"indices": []}, "indices: expected at least one image"),
        (Squares(), {"batch_size": 0}, "batch_size: expected an int of at least 1"),
    ],
)
def test_one_clear_error(faces: Squares, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed(Projection(), faces, PRE, **settings, **OFF)


def test_a_model_that_gives_no_features_is_refused() -> None:
    faces = Squares()
    with pytest.raises(ValueError, match=r"model: expected features \[24, D\], got \[24, 1, 24, 20\]"):
        embed(lambda x: x, faces, PRE, **OFF)
    with pytest.raises(ValueError, match="model: expected finite features, got NaN or infinity for p0/0"):
        embed(lambda x: x.flatten(1) * torch.nan, faces, PRE, **OFF)


def test_resized_faces_keep_their_landmarks_in_place() -> None:
    faces = Squares()
    big = Resized(faces, (48, 60), gray=False)
    face = big[3]
    assert face.image.shape == (3, 48, 60) and face.name == "p0/3"
    assert torch.allclose(face.landmarks[0], torch.tensor([16.5, 22.0], dtype=torch.float64))
    dot = torch.zeros(1, 24, 20, dtype=torch.uint8)
    dot[0, 8, 7] = 255
    faces.images[0] = dot
    image = Resized(faces, (72, 60))[0].image[0]
    place = (image == image.max()).nonzero().double().mean(0)
    assert torch.allclose(Resized(faces, (72, 60))[0].landmarks[0], place, atol=0.01)
