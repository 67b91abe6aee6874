"""Drawn scarves and hands: their place on faces of any size and direction, colors, and details finer than pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from occfast.occlude import Hand, Scarf
from occfast.occlude.face_masks import mask_points
from occfast.occlude.frame import FaceFrame
from occfast.occlude.hand import HAND_PLACES
from occfast.occlude.scarf import PATTERNS
from tests.occlude.test_drawn import FRONTAL, batch, turned

IDS = 24


def on_gray(cover: Scarf | Hand, points: Tensor, size: tuple[int, int] = (100, 100), n: int = IDS, channels: int = 3):
    """Cover gray images of n samples whose faces all have these landmarks."""
    images = torch.full((n, channels, *size), 128, dtype=torch.uint8)
    return cover(images, points.expand(n, 5, 2))


def resampled(mask: Tensor, points: Tensor, other: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask [N, H, W] of a face moved to where the landmarks of another face lie, by the similarity of the two."""
    own, to = (torch.view_as_complex(p.contiguous()) for p in (points, other))
    own, to, a, b = own - own.mean(), to - to.mean(), own.mean(), to.mean()
    factor = (own.conj() * to).sum() / (own.conj() * own).sum()
    rows, columns = torch.meshgrid(*(torch.arange(float(s), dtype=torch.float64) for s in size), indexing="ij")
    back = (torch.complex(rows, columns) - b) / factor + a
    r, c = back.real.round().long(), back.imag.round().long()
    inside = (r >= 0) & (c >= 0) & (r < mask.shape[1]) & (c < mask.shape[2])
    return torch.where(inside, mask[:, r.clamp(0, mask.shape[1] - 1), c.clamp(0, mask.shape[2] - 1)], False), inside


@pytest.mark.parametrize("cover", [Scarf(), Hand("mouth"), Hand("eye"), Hand("cheek")], ids=repr)
@pytest.mark.parametrize(("degrees", "scale"), [(0.0, 2.24), (25.0, 1.0), (-40.0, 0.8), (180.0, 1.0), (10.0, 0.42)])
def test_they_turn_and_grow_with_the_face(cover: Scarf | Hand, degrees: float, scale: float) -> None:
    whole = on_gray(cover, FRONTAL).mask
    size = (224, 224) if scale > 1 else (100, 100)
    points = turned(degrees, scale) + (62 if scale > 1 else 0)
    mask = on_gray(cover, points, size).mask
    expected, inside = resampled(whole, FRONTAL, points, size)
    wrong = ((mask != expected) & inside).sum()
    # Only pixels of the outline, whose rounding differs.
    assert wrong / expected.sum() < (0.08 if scale >= 0.8 else 0.2)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_scarf_covers_mouth_and_chin_but_not_the_eyes(pattern: str) -> None:
    for degrees, scale in ((0, 1.0), (25, 0.8), (-20, 0.7)):
        points = turned(degrees, scale)
        mask = on_gray(Scarf(pattern), points).mask
        for eye in points[:2].round().long().tolist():
            assert not mask[:, eye[0], eye[1]].any()
        for corner in points[3:].round().long().tolist():
            assert mask[:, corner[0], corner[1]].all()
        chin = (points[:2].mean(0) + 1.6 * (points[3:].mean(0) - points[:2].mean(0))).round().long()
        if int(chin.max()) < 100:
            assert mask[:, chin[0], chin[1]].all()


def test_the_upper_edge_of_a_scarf_is_at_its_height() -> None:
    for height in (0.4, 0.7, 1.0):
        mask = on_gray(Scarf(height=height), FRONTAL).mask
        first = mask[:, :, 50].int().argmax(1).double()  # 40 + 39 * height, but for waves of 2 %
        assert (first - (40 + 39 * height)).abs().max() <= 1.5
        # The cloth is one piece from there to the bottom of the image.
        assert (mask[:, :, 50].sum(1) == 100 - first).all()
    tops = on_gray(Scarf(), FRONTAL).mask[:, :, 50].int().argmax(1)
    assert tops.min() < 62 and tops.max() > 67


def test_a_scarf_narrows_with_the_half_of_the_face_that_turns_away() -> None:
    small = (FRONTAL - 50) * 0.5 + 50
    away = small.clone()
    away[2, 1] += 2.5  # the nose points to the right of the image
    row = int(small[3, 0])
    front, side = (on_gray(Scarf(), p).mask[:, row] for p in (small, away))
    assert (side[:, 50:].sum(1) < front[:, 50:].sum(1)).all() and (side[:, :50].sum(1) > front[:, :50].sum(1)).all()
    frame = FaceFrame.of(away[None])
    corners = mask_points(away[None])[0]
    assert float(50 - corners[0, 1]) == pytest.approx(float(frame.left)) and frame.left > frame.right


def test_patterns_and_colors() -> None:
    for channels in (1, 3):
        plain, striped, checked = (
            on_gray(Scarf(p, color=(0.7, 0.2, 0.2), height=0.6), FRONTAL, channels=channels).images for p in PATTERNS
        )
        assert not torch.equal(plain, striped) and not torch.equal(striped, checked)
    red = on_gray(Scarf("plain", color=(0.7, 0.1, 0.1)), FRONTAL)
    pixels = red.images.permute(0, 2, 3, 1)[:, 85:, 20:80].flatten(0, 2).float()
    assert (pixels[:, 0] > 3 * pixels[:, 1]).float().mean() > 0.99
    # Shaded: one color becomes many values, around its own.
    assert pixels[:, 0].std() > 5 and 90 < pixels[:, 0].mean() < 180
    # Another sample has another color and pattern.
    drawn = on_gray(Scarf(height=0.6), FRONTAL).images[:, :, 85, 50]
    assert len(drawn.unique(dim=0)) > IDS // 2


def test_gray_is_the_luma_of_the_colors() -> None:
    gray, colored = (on_gray(Scarf(), FRONTAL, channels=c).images.double() for c in (1, 3))
    luma = (colored * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(1)
    assert (gray[:, 0] - luma).abs().max() < 1.01


def test_details_finer_than_a_pixel_fade() -> None:
    """The same scarf at 42×30 is that at 336×240, averaged."""
    points = torch.tensor([[15.5, 7.5], [15.5, 21.6], [24.7, 14.5], [29.6, 9.7], [29.6, 19.4]], dtype=torch.float64)
    for pattern in PATTERNS:
        small = on_gray(Scarf(pattern), points, (42, 30), channels=1).images.double()
        large = on_gray(Scarf(pattern), points * 8 + 3.5, (336, 240), channels=1).images.double()
        mean = torch.nn.functional.avg_pool2d(large, 8)
        assert (small - mean).abs().mean() < 3 and (small - mean).abs().max() < 60


@pytest.mark.parametrize("place", HAND_PLACES)
def test_a_hand_covers_its_place(place: str) -> None:
    for degrees, scale in ((0, 1.0), (25, 0.8), (-20, 0.7)):
        points = turned(degrees, scale)
        mask = on_gray(Hand(place), points, n=200).mask
        at = points.round().long().tolist()
        if place == "mouth":
            near = mask[:, at[3][0] : at[3][0] + 1, min(at[3][1], at[4][1]) : max(at[3][1], at[4][1])].flatten(1)
            assert (near.double().mean(1) > 0.1).all()
        else:
            both = torch.stack([mask[:, r, c] for r, c in at[:2]], 1)
            assert (both.sum(1) <= 1).double().mean() > (0.75 if place == "eye" else 0.9)
            assert place == "cheek" or both.any(1).double().mean() > 0.8
        share = mask.double().mean((1, 2)) / scale**2
        assert share.min() > 0.08 and share.max() < 0.75


def test_hands_come_from_both_sides_and_reach_the_edge_of_the_image() -> None:
    mask = on_gray(Hand("mouth"), FRONTAL, n=200).mask
    edges = torch.stack([mask[:, -1].any(1), mask[:, :, 0].any(1), mask[:, :, -1].any(1)], 1)
    assert edges.any(1).all()
    lower = mask[:, 80:].double()
    left = lower[:, :, :50].sum((1, 2)) > lower[:, :, 50:].sum((1, 2))
    assert 60 < int(left.sum()) < 140


@pytest.mark.parametrize("channels", [1, 3])
def test_a_hand_has_the_color_of_the_face(channels: int) -> None:
    face = torch.tensor([150, 110, 90][:channels], dtype=torch.uint8)
    images = torch.full((IDS, channels, 100, 100), 255, dtype=torch.uint8)
    images[:, :, 20:95, 12:88] = face[:, None, None]
    images[0] //= 2
    out, mask = Hand("cheek")(images, FRONTAL.expand(IDS, 5, 2))
    for k in range(IDS):
        inside = out[k][:, mask[k]].double()
        expected = face.double() / (2 if k == 0 else 1)
        # Soft shading darkens the outlines; proportions of red, green and blue stay.
        assert 0.6 < float(inside.median(1).values[0] / expected[0]) < 1.2
        if channels == 3:
            ratio = inside.median(1).values / inside.median(1).values[0]
            assert torch.allclose(ratio, expected / expected[0], atol=0.03)
    given = Hand("cheek", color=(0.2, 0.4, 0.6))(images, FRONTAL.expand(IDS, 5, 2)).images
    assert (given[:, -1].double() - out[:, -1].double()).abs().max() > 20


def test_skin_is_the_mean_between_eyes_and_mouth_in_any_batch() -> None:
    images = batch(6)
    points = torch.stack([turned(6.0 * k, 0.6 + 0.08 * k) for k in range(6)])
    frame = FaceFrame.of(points)
    found = frame.skin(images)
    u, v = frame.coordinates(images)
    for k in range(6):
        inside = (u[k].abs() < 0.65) & (v[k] > 0.35) & (v[k] < 0.85)
        assert torch.allclose(found[k, :, 0, 0], images[k][:, inside].double().mean(1) / 255, atol=1e-12)
        assert torch.equal(FaceFrame.of(points[k : k + 1]).skin(images[k : k + 1])[0], found[k])
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert (frame.skin((images.double() / 255).to(dtype)) - found).abs().max() < 3e-4


def test_coordinates_of_the_frame() -> None:
    points = turned(30.0) + torch.tensor([3.0, -2.0])
    frame = FaceFrame.of(points[None])
    u, v = frame.coordinates(torch.zeros(1, 1, 120, 120))
    # Frontal: each eye is half an eye distance from the middle, the half of a face 1.02 of the larger of the lengths.
    expected = [(-19 / (39 * 1.02), 0.0), (19 / (39 * 1.02), 0.0)]
    for (r, c), (at_u, at_v) in zip(points[:2].tolist(), expected, strict=True):
        i, j = math.floor(r), math.floor(c)
        assert float(u[0, i : i + 2, j : j + 2].mean()) == pytest.approx(at_u, abs=0.03)
        assert float(v[0, i : i + 2, j : j + 2].mean()) == pytest.approx(at_v, abs=0.03)
    mouth = points[3:].mean(0)
    i, j = (math.floor(x) for x in mouth)
    assert float(v[0, i : i + 2, j : j + 2].mean()) == pytest.approx(1, abs=0.03)
    x, y = frame.placed(torch.zeros(1, 1, 120, 120), points[2][None])
    # A quarter turn and equal lengths: the gradients are of length 1 / size and at a right angle.
    dx, dy = (torch.stack([a[0, 1, 0] - a[0, 0, 0], a[0, 0, 1] - a[0, 0, 0]]).double() for a in (x, y))
    assert float(dx @ dy) == pytest.approx(0, abs=1e-6)
    assert float(dx.norm() * frame.size) == pytest.approx(1, rel=1e-4) == float(dy.norm() * frame.size)


@pytest.mark.parametrize(
    ("size", "points"),
    [
        ((42, 30), torch.tensor([[15.5, 7.5], [15.5, 21.6], [24.7, 14.5], [29.6, 9.7], [29.6, 19.4]])),
        ((224, 224), FRONTAL * 2.24),
        ((60, 224), FRONTAL * torch.tensor([0.6, 2.24])),
        ((12, 9), FRONTAL * 0.1),
    ],
)
def test_small_large_and_squeezed_faces(size: tuple[int, int], points: Tensor) -> None:
    for cover in (*(Scarf(p) for p in PATTERNS), *(Hand(p) for p in HAND_PLACES)):
        for dtype in (torch.uint8, torch.float32):
            images = batch(8, 3, dtype, size)
            out, mask = cover(images, points.expand(8, 5, 2))
            assert mask.flatten(1).any(1).all() and not mask.flatten(1).all(1).any()
            assert bool(out.double().isfinite().all())
