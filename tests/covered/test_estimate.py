"""Estimates of the network that ships with the package, on real faces with drawn coverings and on AR's real ones."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from occfast.covered import (
    REGIONS,
    TEMPLATE,
    estimate_coverage,
    fit_rejection,
    load_network,
    region_masks,
    save_network,
)
from occfast.covered.calibration import Covered
from occfast.covered.network import WEIGHTS
from occfast.data import ORL, Aligned, Subset
from occfast.errors import DataError
from occfast.models import Preprocessing
from occfast.models.tensor_files import write_tensors
from occfast.occlude import Block, OcclusionLike, named_occlusion

AR = Path(os.environ.get("OCCFAST_DATA", "")) / "ar100" / "AR_42_30.mat"


@pytest.fixture(scope="module")
def faces() -> Subset:
    return Subset(ORL(aligned=False), range(0, 400, 8))


def shares(dataset: object, **settings: object) -> dict[str, Tensor]:
    found = estimate_coverage(dataset, progress=False, **settings)  # type: ignore[arg-type]
    return {"face": found.share, **{name: found.regions[:, k] for k, name in enumerate(REGIONS)}}


def test_uncovered_faces_are_uncovered(faces: Subset) -> None:
    found = estimate_coverage(faces, progress=False)
    assert float(found.share.mean()) < 0.05
    assert float((found.share < 0.1).double().mean()) >= 0.9
    assert float(found.rejection.mean()) < 0.15


@pytest.mark.parametrize(
    ("name", "covered", "free"),
    [
        ("sunglasses", ("left eye", "right eye"), ("mouth", "chin")),
        ("mask", ("mouth", "chin"), ("forehead", "left eye", "right eye")),
        ("scarf", ("mouth", "chin"), ("forehead", "left eye", "right eye")),
        ("sunglasses+mask", ("left eye", "right eye", "mouth", "chin"), ("forehead",)),
    ],
)
def test_accessories_cover_their_regions(
    faces: Subset, name: str, covered: tuple[str, ...], free: tuple[str, ...]
) -> None:
    found = shares(Covered(faces, named_occlusion(name)))
    clean = shares(faces)
    for region in covered:
        assert float((found[region] - clean[region]).mean()) > 0.4, region
    for region in free:
        assert float((found[region] - clean[region]).mean()) < 0.12, region
    assert bool((found["face"] > clean["face"]).double().mean() > 0.95)


def test_the_share_is_that_of_the_pixels_that_the_mask_names(faces: Subset) -> None:
    found = estimate_coverage(Covered(faces, named_occlusion("mask")), masks=True, progress=False)
    assert found.masks is not None
    assert found.masks.dtype == torch.uint8
    regions = region_masks()
    for k in range(len(faces)):
        pixels = found.masks[k].double() / 255
        for r, region in enumerate(regions):
            assert float(found.regions[k, r]) == pytest.approx(float(pixels[region].mean()), abs=0.003)
        assert float(found.share[k]) == pytest.approx(float(pixels[regions.any(0)].mean()), abs=0.003)


def test_the_mask_agrees_with_what_was_drawn(faces: Subset) -> None:
    """The truth of a block: its rows and columns in the aligned face."""
    aligned = Aligned(faces, TEMPLATE, gray=False)
    block = Block((20, 64), (54.0, 32.0), fill="noise")  # rows 44 to 63, all columns
    found = estimate_coverage(Covered(aligned, block), masks=True, progress=False)
    assert found.masks is not None
    truth = torch.zeros(64, 64, dtype=torch.bool)
    truth[44:64] = True
    predicted = found.masks > 127
    union = (predicted | truth).sum((1, 2)).double()
    assert float(((predicted & truth).sum((1, 2)) / union).mean()) > 0.8


def test_batches_do_not_matter(faces: Subset) -> None:
    one, many = (estimate_coverage(faces, batch_size=n, progress=False) for n in (1, 50))
    torch.testing.assert_close(one.regions, many.regions, rtol=0, atol=1e-5)


def test_aligned_faces_need_no_landmarks(faces: Subset) -> None:
    aligned = Aligned(faces, "arcface-112")
    with_points = estimate_coverage(aligned, progress=False)
    aligned.landmarks = None
    without = estimate_coverage(aligned, progress=False)
    assert float((with_points.share - without.share).abs().mean()) < 0.03
    assert without.names == list(faces.names)


def test_faces_without_landmarks_are_refused(faces: Subset) -> None:
    bare = Subset(faces, range(3))
    bare.landmarks = None
    with pytest.raises(DataError, match="no landmarks to align by"):
        estimate_coverage(bare, progress=False)
    with pytest.raises(ValueError, match="batch_size"):
        estimate_coverage(faces, batch_size=0, progress=False)


def test_the_table_has_a_line_for_each_face_and_each_failure(faces: Subset, tmp_path: Path) -> None:
    found = estimate_coverage(Covered(faces, named_occlusion("sunglasses+scarf")), progress=False)
    path = found.write_csv(tmp_path / "t.csv", limit=0.0, failures={"x.jpg": "no face found"})
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == len(faces) + 1
    assert [row["verdict"] for row in rows] == ["do not match"] * len(faces) + ["no face found"]
    assert float(rows[0]["left_eye"]) == pytest.approx(float(found.regions[0, 1]), abs=5e-5)
    rows = list(csv.DictReader(found.write_csv(tmp_path / "t.csv", limit=1.0).open()))
    assert {row["verdict"] for row in rows} == {"match"}
    with pytest.raises(ValueError, match="limit"):
        found.write_csv(tmp_path / "t.csv", limit=1.5)


class EyesOnly(torch.nn.Module):
    """A recognizer that looks at the rows of the eyes alone."""

    def forward(self, x: Tensor) -> Tensor:
        part = x[:, :, 18:31].flatten(1)
        return part - part.mean(1, keepdim=True)


def test_rejection_is_fitted_to_what_the_recognizer_looks_at(faces: Subset) -> None:
    everybody = Aligned(Subset(ORL(aligned=False), [k for k in range(400) if k % 10 < 2]), TEMPLATE, gray=True)
    how = Preprocessing((64, 64), "gray", alignment=everybody.alignment.as_dict())
    covers: list[OcclusionLike] = [named_occlusion(name) for name in ("sunglasses", "mouth", "chin", "scarf")]
    model = fit_rejection(EyesOnly(), everybody, how, coverings=covers, fmr=1e-2, name="eyes", progress=False)
    weights = dict(model.weights)
    eyes = weights.pop("left eye") + weights.pop("right eye")
    assert eyes > 2 * max(weights["mouth"], weights["chin"])
    assert model.about["recognizer"] == "eyes"
    assert model.about["faces"] == 80
    with pytest.raises(ValueError, match="fmr: 1e-06 needs at least 1,000,000 pairs"):
        fit_rejection(EyesOnly(), everybody, how, coverings=covers, fmr=1e-6, progress=False)
    alone = Subset(everybody, range(0, 80, 2))
    with pytest.raises(ValueError, match="a person with two photographs"):
        fit_rejection(EyesOnly(), alone, how, coverings=covers, progress=False)


def test_the_network_is_small_and_can_be_written_again(tmp_path: Path) -> None:
    assert WEIGHTS.stat().st_size < 4_000_000
    network, rejection = load_network()
    again = save_network(tmp_path / "n.safetensors", network, rejection)
    assert all(torch.equal(t, load_file(WEIGHTS)[name]) for name, t in load_file(again).items())
    assert load_network(again)[1] == rejection
    assert rejection.about["recognizer"]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    path.write_bytes(WEIGHTS.read_bytes()[:-10])
    with pytest.raises(DataError):
        load_network(path)
    network, rejection = load_network(WEIGHTS)
    tensors = network.state_dict()
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    about = {"kind": "coverage", "width": network.width, "rejection": rejection.as_dict()}
    for dtype in (torch.int8, torch.complex64):
        write_tensors(path, {**tensors, first: tensors[first].to(dtype)}, about)
        with pytest.raises(DataError, match=f"{first} has dtype .*, expected float32"):
            load_network(path)
    next(network.parameters()).data[:] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        load_network(save_network(path, network, rejection))
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="expected a network of occfast"):
        load_network(path)
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path / "none.safetensors")


@pytest.mark.skipif(not AR.is_file(), reason="needs AR_42_30.mat in $OCCFAST_DATA/ar100")
def test_real_sunglasses_and_scarves_are_found() -> None:
    from tools.covered.evaluation import real

    found = real(WEIGHTS, AR)
    for name in ("sunglasses", "scarf"):
        assert found["against_uncovered"][name]["auc"] > 0.99
    for name in ("neutral", "expressions", "lights"):
        assert found["shots"][name]["covered_by_a_fifth"][0] < 0.05
