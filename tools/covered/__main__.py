"""``python -m tools.covered``: train the network of ``occfast covered``, fit its model of rejection, and judge both.

    python -m tools.covered --data DATA --work build/covered

It reads ``celeba``, ``cfp``, ``lfw``, ``ar100``, ``mask_templates`` and ``models`` in DATA. A short training finds the
photographs whose face is covered already, by real sunglasses, hands or microphones; they are left out of the second
training, whose network is kept. Every step keeps its result in the folder ``--work``, so that a stopped run continues.
Neither AR's covered faces nor photographs of real masks are trained on or chosen by.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import torch

from occfast.covered.calibration import fit_rejection
from occfast.covered.network import WEIGHTS, save_network
from occfast.covered.regions import REGIONS
from occfast.covered.rejection import RejectionModel
from occfast.data import Aligned, Subset
from occfast.files import write_atomically
from occfast.models import Recognizer
from occfast.models import load as load_recognizer

from . import crops as reading
from . import evaluation
from .training import Schedule, clean_only, train

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "results" / "covered" / "report.json"
_FIRST, _SECOND = Schedule(800, seed=0), Schedule(4000, seed=1)
_RECOGNIZER = "mobilefacenet-112x96.safetensors"
_FOUND = ("", "sunglasses", "mask", "scarf", "hand", "sunglasses+mask")
_CALIBRATED = 100  # people of CFP to fit the model of rejection to, and people of LFW to judge it on


def main() -> None:
    """Run every step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the photographs")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "covered", help="folder for crops and checkpoints"
    )
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="file for the network")
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    work.mkdir(parents=True, exist_ok=True)
    templates = data / "mask_templates"
    parts = [reading.read(data, part, work / "crops") for part in ("celeba", "cfp", "lfw-train")]
    crops = reading.together(parts)
    first = train(crops, _FIRST, templates, work / "first.pt")
    kept = clean_only(first, crops)
    network = train(kept, _SECOND, templates, work / "second.pt")

    recognizer = load_recognizer(data / "models" / _RECOGNIZER, network="mobilefacenet", preset="sphereface")
    preprocessing = recognizer.preprocessing
    assert preprocessing is not None
    draft = work / "draft.safetensors"
    zero = RejectionModel(0.0, dict.fromkeys(REGIONS, 0.0), {})
    save_network(draft, network, zero)

    def faces_of(part: str) -> Aligned:
        dataset = reading.of(data, part).select(min_images=2)
        assert dataset.landmarks is not None
        known = (~dataset.landmarks.isnan().flatten(1).any(1)).nonzero()[:, 0]
        dataset = Subset(dataset, known)
        order = torch.randperm(len(dataset.people), generator=torch.Generator().manual_seed(0))
        few = torch.isin(dataset.labels, order[:_CALIBRATED])
        return Aligned(Subset(dataset, few.nonzero()[:, 0]), "sphereface-112x96", gray=False)

    file = work / "rejection.json"
    if not file.is_file():
        model = fit_rejection(
            recognizer.embedding(), faces_of("cfp"), preprocessing, network=draft, name="MobileFaceNet (112x96)"
        )
        write_atomically(file, json.dumps(model.as_dict()).encode())
    rejection = RejectionModel.from_dict(json.loads(file.read_text()))
    weights = save_network(arguments.output, network, rejection)
    report = {
        "command": "python -m tools.covered --data DATA",
        "date": date.today().isoformat(),
        "seeds": [_FIRST.seed, _SECOND.seed],
        "data": "CelebA subset, CFP's frontal photographs and LFW's View 1 training people; judged on View 1's test "
        "people and AR",
        "photographs": {"read": len(crops.images), "trained on": len(kept.images)},
        "parameters": sum(p.numel() for p in network.parameters()),
        "megabytes": weights.stat().st_size / 1e6,
        "rejection": rejection.as_dict(),
        **judged(data, work, weights, rejection, recognizer, faces_of("lfw-test")),
    }
    write_atomically(REPORT, (json.dumps(report, indent=1) + "\n").encode())
    print(REPORT)


def judged(
    data: Path, work: Path, weights: Path, rejection: RejectionModel, recognizer: Recognizer, faces: Aligned
) -> dict[str, object]:
    """Return every figure about the network and its model of rejection."""
    preprocessing = recognizer.preprocessing
    assert preprocessing is not None
    test = reading.read(data, "lfw-test", work / "crops")
    path = data / "ar100" / "AR_42_30.mat"
    photographs = faces.dataset
    return {
        "drawn": evaluation.drawn(weights, test, data / "mask_templates", seed=7),
        "real": evaluation.real(weights, path),
        "rejection_drawn": evaluation.rejection_on_drawn(
            rejection, weights, recognizer.embedding(), faces, preprocessing, seed=7
        ),
        "rejection_real": evaluation.rejection_on_real(weights, path, recognizer, "sphereface-112x96"),
        "found": evaluation.found(weights, Subset(photographs, range(0, len(photographs), 9)), _FOUND, seed=7),
        "milliseconds": evaluation.milliseconds(weights, photographs),
    }


if __name__ == "__main__":
    main()
