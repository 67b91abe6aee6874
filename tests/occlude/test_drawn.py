"""Drawn occlusions: where they cover, that nothing else changes, and that draws depend on (seed, sample id) alone."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from occfast import DataError
from occfast.occlude.base import Compose, Occlusion, OcclusionResult, uniform
from occfast.occlude.drawn import BANDS, Band, Block
from occfast.occlude.face_masks import DRAWN_MASKS, FaceMask, MaskTemplate, mask_points
from occfast.occlude.hand import Hand
from occfast.occlude.named import named_occlusion
from occfast.occlude.scarf import Scarf
from occfast.occlude.sunglasses import STYLES, Sunglasses

#: A frontal face in 100×100, (row, column).
FRONTAL = torch.tensor([[40.0, 31], [40, 69], [60.5, 50], [79, 33.5], [79, 66.5]], dtype=torch.float64)
ALL = [
    Block(),
    Block((9, 7), (50.0, 30.0)),
    Block((9, 7), "nose", fill="noise"),
    *(Band(region) for region in BANDS),
    Sunglasses(),
    Sunglasses("round", opacity=0.5),
    Sunglasses(flat=True),
    FaceMask(),
    FaceMask(None),
    Scarf(),
    Scarf("checked", color=(0.6, 0.1, 0.1), height=0.6),
    Hand(),
    Hand("eye", color=0.5),
    Compose((Band("nose"), Sunglasses())),
]


def turned(degrees: float, scale: float = 1.0, points: Tensor = FRONTAL) -> Tensor:
    """The face turned in the image plane about its middle."""
    a = math.radians(degrees)
    turn = torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]], dtype=torch.float64)
    return (points - 50) * scale @ turn.T + 50


def batch(n: int, channels: int = 3, dtype: torch.dtype = torch.uint8, size: tuple[int, int] = (100, 100)) -> Tensor:
    images = torch.randint(30, 226, (n, channels, *size), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return images if dtype == torch.uint8 else (images.double() / 255).to(dtype)


def faces(n: int) -> Tensor:
    return torch.stack([turned(8 * k - 10, 0.7 + 0.1 * k) for k in range(n)])


@pytest.mark.parametrize("cover", ALL, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("channels", [1, 3])
def test_outside_the_mask_nothing_changes_and_inside_something_does(
    cover: Occlusion, dtype: torch.dtype, channels: int
) -> None:
    images = batch(4, channels, dtype)
    before = images.clone()
    out, mask = cover(images, faces(4))
    assert torch.equal(images, before) and out.shape == images.shape and out.dtype == dtype
    assert mask.dtype == torch.bool and mask.shape == (4, 100, 100)
    outside = ~mask[:, None].expand_as(images)
    assert torch.equal(out[outside], images[outside])
    changed = (out != images).any(1)
    assert not (changed & ~mask).any()
    # Inside nearly every pixel is another (a soft edge, or the same value by chance).
    assert (changed & mask).sum() > 0.8 * mask.sum() > 0
    if dtype.is_floating_point:
        assert out.min() >= 0 and out.max() <= 1
        same = cover((images.double() * 255).round().to(torch.uint8), faces(4))
        assert torch.equal(same.mask, mask)
        assert (same.images.double() / 255 - out.double()).abs().max() < 0.006


@pytest.mark.parametrize("cover", ALL, ids=lambda c: type(c).__name__)
def test_draws_depend_on_seed_and_sample_id_alone(cover: Occlusion) -> None:
    images, landmarks, ids = batch(6), faces(6), torch.tensor([5, 900, 2**40, 0, 7, 3])
    whole = cover(images, landmarks, ids)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    parts = [cover(images[p], landmarks[p], ids[p]) for p in order.split(2)]
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images[order])
    assert torch.equal(torch.cat([p.mask for p in parts]), whole.mask[order])


def test_other_seeds_and_ids_give_other_draws() -> None:
    images, landmarks = batch(40), FRONTAL.expand(40, 5, 2)
    for make in (Block, Sunglasses, Scarf, Hand, lambda seed: FaceMask(None, seed=seed)):
        a, b = (make(seed=s)(images, landmarks).mask for s in (0, 1))
        assert sum(not torch.equal(x, y) for x, y in zip(a, b, strict=True)) > 5
        assert len({m.numpy().tobytes() for m in a}) >= 3


def test_uniform_is_splitmix64_and_even() -> None:
    def splitmix(state: int) -> int:
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    key = splitmix((12 + golden) % 2**64)
    state = splitmix((77 * golden + key) % 2**64)
    expected = [(splitmix((state + golden * k) % 2**64) >> 11) / 2**53 for k in (1, 2, 3)]
    assert uniform(12, torch.tensor([77]), 3)[0].tolist() == expected
    values = uniform(3, torch.arange(20_000), 1)[:, 0]
    assert np.histogram(values, 10, (0, 1))[0] == pytest.approx([2000] * 10, abs=200)
    assert uniform(3, torch.arange(10), 4, stream=1).unique().numel() == 40


def test_block_covers_the_rows_of_an_occlusion_map() -> None:
    from occfast.sweep import SweepGrid

    grid = SweepGrid.over((100, 100), (20, 41), stride=1, border="clip")
    for i, j in ((0, 0), (50, 30), (99, 99), (3, 97)):
        mask = Block((20, 41), (float(i), float(j)))(batch(1)).mask[0]
        expected = torch.zeros(100, 100, dtype=torch.bool)
        top, left, bottom, right = grid.window(i * 100 + j)
        expected[top:bottom, left:right] = True
        assert torch.equal(mask, expected)
    at = Block((9, 7), "mouth")(batch(1), FRONTAL[None]).mask[0].nonzero()
    assert (at.min(0).values.tolist(), at.max(0).values.tolist()) == ([75, 47], [83, 53])


def test_blocks_anywhere_reach_everywhere() -> None:
    covered = Block((3, 3), seed=5)(torch.zeros(4000, 1, 20, 30)).mask.double().mean(0)
    assert covered[1:-1, 1:-1].mean() == pytest.approx(9 / 600, rel=0.05)
    assert all(part.mean() == pytest.approx(9 / 600, rel=0.2) for part in covered[1:-1, 1:-1].split(6))


def test_bands_are_the_whole_image_without_overlap_and_hold_their_landmarks() -> None:
    masks = {region: Band(region)(batch(1), FRONTAL[None]).mask[0] for region in BANDS}
    assert torch.equal(sum(m.int() for m in masks.values()), torch.ones(100, 100, dtype=torch.int32))
    assert all((m == m[:, :1]).all() for m in masks.values())
    assert masks["eyes"][40].all() and masks["nose"][60].all() and masks["mouth"][79].all()
    assert masks["forehead"][10].all() and masks["chin"][95].all()
    assert (Band("eyes")(batch(1), FRONTAL[None]).images[0, :, 40] == 255).all()  # white, as the paper's


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_sunglasses_cover_the_eyes_and_turn_and_grow_with_them(style: str, flat: bool) -> None:
    glasses = Sunglasses(style, flat=flat)
    areas = []
    for degrees, scale in ((0, 1.0), (20, 1.0), (-35, 1.0), (0, 0.5), (10, 0.5)):
        points = turned(degrees, scale)
        mask = glasses(batch(1), points[None]).mask[0]
        for eye in points[:2].round().long().tolist():
            assert mask[eye[0], eye[1]]
        for elsewhere in points[2:].round().long().tolist():
            assert not mask[elsewhere[0], elsewhere[1]]
        areas.append(float(mask.sum()) / scale**2)
        # The main axis of the covered pixels is the line of the eyes.
        at = mask.nonzero().double()
        _, vectors = torch.linalg.eigh((at - at.mean(0)).T @ (at - at.mean(0)))
        across = (points[1] - points[0]) / (points[1] - points[0]).norm()
        assert abs(float(vectors[:, 1] @ across)) > math.cos(math.radians(3))
    assert areas == pytest.approx([areas[0]] * 5, rel=0.15)
    # Two lenses of 0.37 by 0.36 eye distances (38 pixels) are 12 %; a frame of 0.03 round them adds a sixth.
    low, high = (0.10, 0.20) if flat else (0.12, 0.23)
    assert low < areas[0] / 1e4 < high


def test_frames_and_reflections_of_sunglasses() -> None:
    images = torch.full((40, 3, 200, 200), 128, dtype=torch.uint8)
    points = (FRONTAL * 2).expand(40, 5, 2)
    for style in STYLES:
        flat = Sunglasses(style, flat=True)(images, points)
        real = Sunglasses(style)(images, points)
        assert (real.mask | ~flat.mask).all()
        # The frame is 0.03 eye distances of 76 pixels wide; bridge and temples cover some of its outline.
        ring = (real.mask & ~flat.mask).sum((1, 2)).double()
        outline = 2 * 2 * math.pi * 0.39 * 76
        assert (ring > 0.5 * 0.03 * 76 * outline).all() and (ring < 1.3 * (0.03 * 76 + 1) * outline).all()
        # Flat ones have one color but for soft edges; others a bright lamp in both lenses, within them.
        assert (flat.images[flat.mask[:, None].expand_as(images)] < 20).double().mean() > 0.9
        bright = (real.images[:, 1] > 150) & real.mask
        assert (~bright | flat.mask).all()
        for half in (slice(0, 100), slice(100, 200)):
            lamp = bright[:, :, half].sum((1, 2)) / 76**2
            assert (lamp < 0.13).all() and (lamp > 0.003).double().mean() > 0.9
        assert len({image.numpy().tobytes() for image in real.images}) == 40


@pytest.mark.parametrize("kind", DRAWN_MASKS)
def test_masks_cover_nose_and_mouth_but_not_the_eyes(kind: str) -> None:
    for degrees, scale in ((0, 1.0), (25, 0.8), (-20, 0.7)):
        points = turned(degrees, scale)
        mask = FaceMask(kind)(batch(1), points[None]).mask[0]
        inside = [bool(mask[r, c]) for r, c in points.round().long().tolist()]
        assert inside == [False, False, True, True, True]
        # Upright, it lies between the eyes and below the chin.
        assert 0.1 < mask.double().mean() / scale**2 < 0.5


def test_the_half_that_turns_away_gets_narrower() -> None:
    away = FRONTAL.clone()
    away[2, 1] += 5  # the nose points to the right of the image
    front, side = mask_points(FRONTAL[None])[0], mask_points(away[None])[0]
    assert front[0, 1] - 50 == pytest.approx(50 - front[2, 1])
    assert side[0, 1] < front[0, 1] and side[2, 1] < front[2, 1]
    assert (front[[1, 4], 1] == 50).all()
    # Turning the image turns the points.
    assert torch.allclose(mask_points(turned(30)[None])[0], turned(30, points=front), atol=1e-9)


def test_anchors_of_a_template_come_to_lie_on_the_points() -> None:
    """A template with a colored disc at each anchor."""
    anchors = torch.tensor([[30.0, 20], [10, 100], [30, 180], [110, 30], [150, 100], [110, 170]], dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(160.0), torch.arange(200.0), indexing="ij")
    disc = sum(((rows - r) ** 2 + (columns - c) ** 2 < 36).double() for r, c in anchors)
    template = MaskTemplate(torch.stack([disc, disc * 0, disc * 0, disc]), anchors, "discs")
    points = turned(12, 2.2) + 60
    out, mask = FaceMask(template)(torch.zeros(1, 3, 220, 220, dtype=torch.uint8), points[None])
    for r, c in mask_points(points[None])[0].round().long().tolist():
        if 0 <= r < 220 and 0 <= c < 220:
            assert mask[0, r, c] and out[0, 0, r, c] > 200 and out[0, 1, r, c] == 0
    assert 0.001 < mask.double().mean() < 0.05


def written(folder: Path, anchors: object, mode: str = "RGBA") -> Path:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    Image.new(mode, (60, 40), (10, 20, 30, 255)[: len(mode)]).save(folder / "plain.png")
    (folder / "anchors.json").write_text(json.dumps(anchors))
    return folder


SIX = {"a": [5, 5], "b": [30, 2], "c": [55, 5], "d": [8, 30], "e": [30, 38], "f": [52, 30]}


def test_templates_are_read(tmp_path: Path) -> None:
    template = MaskTemplate.read(written(tmp_path, {"plain": SIX}), "plain")
    assert template.rgba.shape == (4, 40, 60) and template.anchors[3].tolist() == [30.0, 8.0]
    out = FaceMask(template)(torch.zeros(1, 3, 100, 100, dtype=torch.uint8), FRONTAL[None]).images
    assert out[0, :, 79, 50].tolist() == [10, 20, 30]
    assert named_occlusion(f"mask:{tmp_path}/plain").about()["template"] == ["plain"]
    assert [t.name for t in named_occlusion(f"mask:{tmp_path}").templates] == ["plain"]  # type: ignore[attr-defined]


def test_bad_templates_are_one_clear_error(tmp_path: Path) -> None:
    for anchors in (
        {"plain": {"a": [1, 2]}},
        [1],
        {"plain": 3},
        {"plain": {**SIX, "f": ["x", 1]}},
        {"plain": {**SIX, "f": [1]}},
    ):
        with pytest.raises(DataError, match=r"anchors\.json: expected"):
            MaskTemplate.read(written(tmp_path, anchors), "plain")
    with pytest.raises(DataError, match="expected the template 'other', got plain"):
        MaskTemplate.read(written(tmp_path, {"plain": SIX}), "other")
    with pytest.raises(DataError, match="expected an RGBA image, got mode RGB"):
        MaskTemplate.read(written(tmp_path, {"plain": SIX}, "RGB"), "plain")
    (tmp_path / "plain.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    with pytest.raises(DataError, match=r"plain\.png: can't be read"):
        MaskTemplate.read(tmp_path, "plain")
    with pytest.raises(DataError, match="can't be read: No such file"):
        MaskTemplate.read(tmp_path / "nowhere", "plain")


def test_published_templates_fit_a_face() -> None:
    root = os.environ.get("OCCFAST_DATA")
    if not root or not (Path(root) / "mask_templates").is_dir():
        pytest.skip("no mask_templates in $OCCFAST_DATA")
    templates = MaskTemplate.read_all(Path(root) / "mask_templates")
    assert len(templates) == 6
    for template in templates:
        mask = FaceMask(template)(batch(1, size=(120, 100)), FRONTAL[None]).mask[0]
        assert [bool(mask[r, c]) for r, c in FRONTAL.round().long().tolist()] == [False, False, True, True, True]


def test_together_is_the_union() -> None:
    whole = named_occlusion("nose+mouth+chin")(batch(1), FRONTAL[None])
    parts = [named_occlusion(name)(batch(1), FRONTAL[None]).mask for name in ("nose", "mouth", "chin")]
    assert torch.equal(whole.mask, parts[0] | parts[1] | parts[2])
    assert (whole.images[0, :, 60:] == 255).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eyes", Band("eyes")),
        ("sunglasses", Sunglasses()),
        ("sunglasses:round", Sunglasses("round")),
        ("sunglasses:flat", Sunglasses(flat=True)),
        ("mask:cloth", FaceMask("cloth")),
        ("mask", FaceMask(None)),
        ("scarf", Scarf()),
        ("scarf:striped", Scarf("striped")),
        ("hand", Hand()),
        ("hand:cheek", Hand("cheek")),
        ("block:20x40", Block((20, 40))),
        ("block:20x40@50,30", Block((20, 40), (50.0, 30.0))),
        ("block:4x6@nose", Block((4, 6), "nose")),
    ],
)
def test_names(name: str, expected: Occlusion) -> None:
    assert named_occlusion(name) == expected
    json.dumps(expected.about())


@pytest.mark.parametrize(
    "name",
    [
        "",
        "hat",
        "eyes:wide",
        "block",
        "block:20",
        "block:axb",
        "block:2x2@chin",
        "block:0x2",
        "mask:/nowhere/at-all",
        "sunglasses:star",
        "scarf:silk",
        "hand:nose",
        "eyes+",
        "block:2x3@a,b",
    ],
)
def test_wrong_names_are_one_clear_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected|can't be read"):
        named_occlusion(name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Block()(torch.zeros(3, 10, 10)), r"images: expected shape \[N, 1 or 3, H, W\]"),
        (lambda: Block()(torch.zeros(1, 4, 10, 10)), "images: expected shape"),
        (lambda: Block()(torch.zeros(1, 3, 10, 10, dtype=torch.int32)), "images: expected uint8 or floating point"),
        (lambda: Band()(batch(1)), r"landmarks: expected \[1, 5, 2\] for Band, got none"),
        (lambda: Band()(batch(2), FRONTAL[None]), r"landmarks: expected shape \[2, 5, 2\]"),
        (
            lambda: Band()(batch(2), torch.stack([FRONTAL, FRONTAL * math.nan])),
            "landmarks: expected finite numbers, image 1",
        ),
        (
            lambda: Band()(batch(1), FRONTAL.flip(0)[None]),
            "landmarks: expected the mouth below the eyes, not in image 0",
        ),
        (
            lambda: FaceMask()(batch(1), FRONTAL[[0, 1, 2, 0, 1]][None]),
            "landmarks: expected the mouth apart from the eyes, not in image 0",
        ),
        (lambda: Block()(batch(1).float()), r"images: expected values in \[0, 1\], got 30 to 225"),
        (
            lambda: Sunglasses()(batch(1), FRONTAL[[0, 0, 2, 3, 4]][None]),
            "landmarks: expected two eyes apart, not in image 0",
        ),
        (lambda: Block()(batch(2), None, torch.zeros(2)), "sample_ids: expected dtype int64"),
        (lambda: Block()(batch(2), None, torch.zeros(3, dtype=torch.int64)), r"sample_ids: expected shape \[2\]"),
        (lambda: Block(fill=2.0), "fill: expected a number in"),
        (lambda: Block(fill=(0.1, 0.2)), "fill: expected a number or three"),
        (lambda: Band("ear"), "region: expected one of forehead"),
        (lambda: Sunglasses(opacity=0.0), "opacity: expected a number in"),
        (lambda: Scarf("silk"), "pattern: expected one of plain, striped, checked or None, got 'silk'"),
        (lambda: Scarf(color=(0.1, 2.0, 0.1)), "color: expected a number in"),
        (lambda: Scarf(height=2.0), "height: expected a number in"),
        (lambda: Scarf(seed=-1), "seed: expected"),
        (lambda: Scarf()(batch(1)), r"landmarks: expected \[1, 5, 2\] for Scarf, got none"),
        (
            lambda: Scarf()(batch(1), FRONTAL[[0, 1, 2, 0, 1]][None]),
            "landmarks: expected the mouth apart from the eyes, not in image 0",
        ),
        (lambda: Hand("nose"), "place: expected one of mouth, eye, cheek or None, got 'nose'"),
        (lambda: Hand(color=(0.1, 0.2)), "color: expected a number or three"),
        (lambda: Hand(scale=0.0), "scale: expected a number in"),
        (
            lambda: Hand()(batch(2), torch.stack([FRONTAL, FRONTAL + 200])),
            "landmarks: expected a face within the image to take the skin's color from, not image 1",
        ),
        (lambda: FaceMask("paper"), "kind: expected one of surgical"),
        (lambda: FaceMask([]), "template: expected at least one"),
        (lambda: Compose(()), "parts: expected at least one"),
        (lambda: MaskTemplate(torch.zeros(3, 4, 4), torch.zeros(6, 2), "x"), "rgba: expected floating point"),
    ],
)
def test_one_clear_error_for_bad_input(call: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()  # type: ignore[operator]


def test_it_takes_arrays() -> None:
    out = Sunglasses("round")(np.zeros((1, 1, 100, 100), np.uint8), FRONTAL[None].numpy())
    assert isinstance(out, OcclusionResult) and out.mask.any()
