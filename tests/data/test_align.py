"""Alignment: against scikit-image, batched against one by one, and what is said of bad landmarks."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.transform import AffineTransform, SimilarityTransform
from skimage.transform import warp as skimage_warp
from torch import Tensor

from occfast import DataError
from occfast.data import TEMPLATES, Aligned, Alignment, Folder, Subset, Template, WithLandmarks, align_faces
from occfast.data.warp import BORDERS, affine, similarity, warp
from tests.data.pictures import InMemory, write_faces


def a_face(seed: int, height: int = 150, width: int = 130, channels: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=random)


def some_landmarks(seed: int, count: int = 1) -> Tensor:
    """Faces turned by up to 30° and somewhat deformed, some partly outside the image."""
    random = torch.Generator().manual_seed(seed)
    points = TEMPLATES["arcface-112"].places() - 56
    angle = (torch.rand(count, generator=random) - 0.5).double()
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(-1, 2, 2)
    scale = 0.6 + torch.rand(count, 1, 1, generator=random).double()
    noise = 2 * torch.randn(count, 5, 2, generator=random).double()
    return scale * points @ turn + 70 + 20 * torch.randn(count, 1, 2, generator=random).double() + noise


def as_skimage(matrix: Tensor) -> AffineTransform:
    (a, b, c), (d, e, f) = matrix.tolist()  # of (row, column, 1); scikit-image has (column, row, 1)
    return AffineTransform(matrix=np.array([[e, d, f], [b, a, c], [0, 0, 1]]))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_equals_scikit_image_within_a_gray_level(template: str, border: str) -> None:
    landmarks = some_landmarks(0, 8)
    images = torch.stack([a_face(k) for k in range(8)])
    result = align_faces(images, landmarks, template, border=border)
    size = TEMPLATES[template].size
    assert result.images.shape == (8, 3, *size)
    mode = "edge" if border == "repeat" else "constant"
    for k in range(8):
        expected = skimage_warp(
            images[k].permute(1, 2, 0).numpy(),
            as_skimage(result.matrices[k]),
            output_shape=size,
            order=1,
            mode=mode,
            preserve_range=True,
        )
        assert np.abs(result.images[k].permute(1, 2, 0).numpy() - expected).max() <= 0.51  # the rounding


def test_the_transforms_are_least_squares() -> None:
    landmarks, places = some_landmarks(1)[0], TEMPLATES["arcface-112"].places()
    points = places.flip(1).numpy(), landmarks.flip(1).numpy()
    if hasattr(SimilarityTransform, "from_estimate"):
        fitted = SimilarityTransform.from_estimate(*points)
    else:  # scikit-image before 0.26
        fitted = SimilarityTransform()
        assert fitted.estimate(*points)
    np.testing.assert_allclose(as_skimage(similarity(landmarks, places)).params, fitted.params, atol=1e-9)
    # scikit-image's affine estimate minimizes another error; NumPy's least squares is the definition.
    ones = np.concatenate([places.numpy(), np.ones((5, 1))], 1)
    solution = np.linalg.lstsq(ones, landmarks.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(affine(landmarks, places), solution, atol=1e-9)
    # Also for a batch against one template.
    batch = some_landmarks(2, 7)
    for solver in (similarity, affine):
        each = torch.stack([solver(one, places) for one in batch])
        torch.testing.assert_close(solver(batch, places), each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("border", BORDERS)
def test_a_batch_of_several_sizes_equals_one_by_one(border: str) -> None:
    from occfast.data import warp as warping

    images = [a_face(k, *size) for k, size in enumerate([(150, 130), (40, 200), (1, 9), (1, 1), (90, 90)])]
    matrices = torch.stack([similarity(five, TEMPLATES["paper-100"].places()) for five in some_landmarks(3, 5)])
    each = torch.stack([warp(image, matrix, (50, 40), border) for image, matrix in zip(images, matrices, strict=True)])
    assert torch.equal(warp(images, matrices, (50, 40), border), each)
    # What a GPU runs: one call over a canvas.
    assert torch.equal(warping._sample(*warping._canvas(images), matrices.tolist(), (50, 40), border), each)


def test_landmarks_come_to_lie_at_the_template() -> None:
    places = TEMPLATES["sphereface-112x96"].places()
    turned = places @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]]).double() * 1.7 + torch.tensor([80.0, -30.0])
    result = align_faces([a_face(1)], turned[None], "sphereface-112x96")
    torch.testing.assert_close(result.landmarks[0], places)
    # A similarity leaves what it can't remove; an affine map less.
    noisy = some_landmarks(4, 20)
    images = [a_face(k, 20, 20) for k in range(20)]
    rest = [
        (align_faces(images, noisy, "arcface-112", transform=how).landmarks - TEMPLATES["arcface-112"].places()).norm()
        for how in ("similarity", "affine")
    ]
    assert rest[1] < rest[0]
    upright = align_faces(images, noisy, "pdsn-128x96")
    assert (upright.matrices[:, 0, 1] == 0).all() and (upright.matrices[:, 1, 0] == 0).all()


def test_the_published_templates() -> None:
    assert TEMPLATES["arcface-112"].points[0] == (51.6963, 38.2946)
    assert TEMPLATES["sphereface-112x96"].points[4] == (92.2041, 62.7299)
    assert {name: template.size for name, template in TEMPLATES.items()} == {
        "paper-100": (100, 100),
        "arcface-112": (112, 112),
        "sphereface-112x96": (112, 96),
        "pdsn-128x96": (128, 96),
    }


def test_boxes_are_resized_as_pillow_resizes() -> None:
    from PIL import Image

    image = a_face(5, 256, 192)
    box = torch.tensor([[0.0, 0, 256, 192]])
    result = align_faces(image[None], some_landmarks(5), "pdsn-128x96", boxes=box)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((96, 128), Image.Resampling.BOX)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
    assert (result.images[0].int() - expected.int()).abs().max() <= 1  # halved: both average 2×2 pixels
    with pytest.raises(ValueError, match="boxes: expected shape"):
        align_faces(image[None], some_landmarks(5), "paper-100", boxes=box)


def test_size_color_and_the_record() -> None:
    result = align_faces([a_face(6)], some_landmarks(6), "paper-100", size=(50, 50), gray=True, border="black")
    assert result.images.shape == (1, 1, 50, 50)
    record = result.alignment
    assert (record.template, record.size, record.color, record.border) == ("paper-100", (50, 50), "gray", "black")
    assert record.points[0] == (20.0, 15.5)
    assert Alignment.from_dict(record.as_dict()) == record
    assert Alignment.read(None, "x") is None
    with pytest.raises(DataError, match="x: expected the record of an alignment"):
        Alignment.read({"size": 3}, "x")
    repeated = align_faces([a_face(6, channels=1)], some_landmarks(6), gray=False).images
    assert repeated.shape[1] == 3 and torch.equal(repeated[0, 0], repeated[0, 2])
    own = Template("mine", (10, 12), tuple((r / 10, c / 10) for r, c in TEMPLATES["paper-100"].points))
    assert align_faces([a_face(6)], some_landmarks(6), own).alignment.template == "mine"


def test_mistakes_are_named() -> None:
    images, landmarks = [a_face(7)], some_landmarks(7)
    for arguments, message in (
        ({"template": "none"}, "template: expected one of paper-100"),
        ({"transform": "none"}, "transform: expected one of"),
        ({"border": "none"}, "border: expected one of"),
        ({"size": (0, 4)}, r"size: expected .* got \(0, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            align_faces(images, landmarks, **arguments)
    with pytest.raises(ValueError, match=r"landmarks: expected shape \[N, 5, 2\], got \[1, 4, 2\]"):
        align_faces(images, landmarks[:, :4])
    with pytest.raises(ValueError, match="landmarks: expected those of 1 images, got 2"):
        align_faces(images, landmarks.repeat(2, 1, 1))
    with pytest.raises(ValueError, match=r"landmarks: expected finite numbers, .* for image 0"):
        align_faces(images, landmarks * torch.nan)
    with pytest.raises(ValueError, match="landmarks: expected five different places"):
        align_faces(images, torch.ones(1, 5, 2))
    with pytest.raises(TypeError, match=r"images: expected uint8, got torch\.float32"):
        align_faces([images[0].float()], landmarks)
    with pytest.raises(ValueError, match=r"expected \[C, H, W\] of one C"):
        align_faces([images[0], images[0][:1]], landmarks.repeat(2, 1, 1))


def test_aligned_data_set() -> None:
    images = [a_face(k, channels=3) for k in range(4)]
    landmarks = some_landmarks(8, 4)
    source = InMemory(images, [0, 0, 1, 2], landmarks)
    aligned = Aligned(source, "arcface-112", gray=False)
    assert len(aligned) == 4 and aligned.people == source.people
    expected = align_faces(images, landmarks, "arcface-112", gray=False)
    assert align_faces(images, landmarks, "arcface-112").alignment == expected.alignment
    for k, face in enumerate(aligned):
        assert torch.equal(face.image, expected.images[k])
        torch.testing.assert_close(face.landmarks, expected.landmarks[k])
        assert face.label == source.labels[k]
    assert aligned.alignment == expected.alignment
    assert Aligned(source, gray=True)[0].image.shape == (1, 100, 100)
    own = Aligned(source, "sphereface-112x96")  # the images' own colors, whatever the template
    assert own[0].image.shape == (3, 112, 96)
    with pytest.raises(TypeError):
        Aligned(source, "arcface-112", True)  # colors are given by keyword


def test_files_are_decoded_in_the_color_that_is_wanted(tmp_path: Path) -> None:
    write_faces(tmp_path, ["a/1.jpg", "b/2.jpg"], landmarks=True)
    source = Folder(tmp_path)
    assert source.gray is False
    for gray in (True, False, None):
        aligned = Aligned(source, gray=gray)
        assert aligned.alignment.color == ("gray" if gray else "RGB")
        direct = aligned[1].image
        converted = align_faces([source[1].image], source.landmarks[1:], gray=gray).images[0]
        assert torch.equal(direct, converted)
    assert source.gray is False and source[0].image.shape[0] == 3
    assert pickle.loads(pickle.dumps(Aligned(source, gray=True)))[0].image.shape == (1, 100, 100)


def test_images_without_landmarks_are_reported_not_dropped(tmp_path: Path) -> None:
    landmarks = some_landmarks(9, 3)
    landmarks[1] = torch.nan
    source = InMemory([a_face(k) for k in range(3)], [0, 1, 1], landmarks)
    assert source.landmarks_of(1) is None and source[1].landmarks is None
    with pytest.raises(DataError, match="1 of 3 have none: 001 is the first"):
        Aligned(source)
    kept = Aligned(Subset(source, [0, 2]))
    assert kept.names == ["000", "002"] and kept.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match="no landmarks to align by; run occfast data landmarks"):
        Aligned(InMemory([a_face(0)], [0]))
    write_faces(tmp_path, ["a/1.png"])
    with pytest.raises(DataError, match=f"data landmarks {tmp_path} {tmp_path}/landmarks.csv, or pass a file"):
        Aligned(Folder(tmp_path))
    given = WithLandmarks(InMemory([a_face(0)], [0]), landmarks[:1])
    assert torch.equal(given[0].landmarks, landmarks[0])
    with pytest.raises(ValueError, match=r"landmarks: expected shape \[1, 5, 2\], got \[3, 5, 2\]"):
        WithLandmarks(InMemory([a_face(0)], [0]), landmarks)


@pytest.mark.cuda
def test_on_a_gpu() -> None:
    images, landmarks = [a_face(k, 80 + k, 90 - k) for k in range(9)], some_landmarks(10, 9)
    here = align_faces(images, landmarks, "arcface-112")
    there = align_faces([image.cuda() for image in images], landmarks, "arcface-112")
    assert there.images.is_cuda
    assert (there.images.cpu().int() - here.images.int()).abs().max() <= 1
