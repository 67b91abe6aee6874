"""``python -m bench.drawn_real``: what drawn sunglasses and scarves cost a recognizer, beside AR's real ones.

    python -m bench.drawn_real                      # trains the second network first: ten minutes on one core

The faces are those of 100 people of AR at 42×30 pixels ($OCCFAST_DATA/ar100/AR_42_30.mat): two sessions, a fortnight
apart, with the same three lights for uncovered faces, sunglasses and scarves. A person's reference is the uncovered
photograph in even light of one session; the probes are those of the other session, so that light, day and expression of
an uncovered probe, of one with the real thing and of an uncovered one that is drawn on are the same. Drawn occlusions
are put on the pixels of AR, before all faces are enlarged to the networks' input.

Two networks: a MobileFaceNet trained on CASIA-WebFace ($OCCFAST_DATA/models), and a small residual network that is
trained here on the faces of CelebA and CFP ($OCCFAST_DATA), reduced to 42×30 and enlarged like AR's.

The drawing was chosen on the first half of the people alone (men); the second half (women) decides. The claim "drawn
ones cost as much as real ones" is refuted by an interval of drawn minus real that leaves out 0; differences with more
genuine pairs accepted when drawn mean that drawn ones understate the loss.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.harness import RESULTS, environment, write
from occfast.data import AR100, Aligned, CelebA
from occfast.data.align import Template, align_faces
from occfast.data.ar import shot
from occfast.models import PRESETS, MobileFaceNet, Preprocessing, load_into, resnet18
from occfast.occlude import OcclusionLike, Scarf, Sunglasses, named_occlusion
from occfast.train import Augment, Jitter, fit

Floats = NDArray[np.float64]

SHOTS, PEOPLE = 26, 100
AR_TEMPLATE = Template("ar-42x30", AR100.SIZE, AR100.POINTS)
PRESET = PRESETS["sphereface"]
LIGHTS = ("even", "left", "right")
FARS = (1e-2, 1e-3)
#: Number from 1 of a person whose covered photographs seem to show somebody else.
DOUBTFUL = 78

#: Drawn occlusions by what they stand for and a name: "drawn", and how they were drawn before this comparison.
DRAWN: dict[str, dict[str, OcclusionLike]] = {
    "sunglasses": {"drawn": Sunglasses(), "wayfarer alone": Sunglasses("wayfarer"), "flat": Sunglasses(flat=True)},
    "scarf": {"drawn": Scarf(), "bands": named_occlusion("nose+mouth+chin")},
}


def numbers(occlusion: str | None, session: int) -> list[int]:
    """Return the numbers of the neutral photographs of a session, in even light, from the left and from the right."""
    found = {
        s.light: k
        for k in range(1, SHOTS + 1)
        if (s := shot(k)).session == session and s.occlusion == occlusion and s.expression == "neutral"
    }
    return [found[light] for light in LIGHTS]


def enlarge(images: Tensor) -> Tensor:
    """Align photographs like AR's, uint8 [N, 1, 42, 30], as the networks' faces, uint8 [N, 1, 112, 96]."""
    points = torch.tensor(AR100.POINTS, dtype=torch.float64).expand(len(images), 5, 2)
    assert PRESET.template is not None
    return align_faces(images, points, PRESET.template).images


class Small(nn.Module):
    """A residual network for gray faces of 112×96 pixels, which it halves first."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = resnet18(classes, channels=1, width=16, stem_pool=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images [N, 1, 112, 96] or, halved before, [N, 1, 56, 48]."""
        logits: Tensor = self.network(self.halved(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Return features, [N, 128]."""
        return self.network.features(self.halved(x))

    @staticmethod
    def halved(x: Tensor) -> Tensor:
        """Return images of half the size, unless they are."""
        return F.avg_pool2d(x, 2) if x.shape[2] > 56 else x


def train_small(root: Path, epochs: int, seed: int) -> tuple[Small, dict[str, Any]]:
    """Train the second network on the faces of CelebA and CFP."""
    images, labels, classes = [], [], 0
    for folder in ("celeba", "cfp"):
        faces = Aligned(CelebA(root / folder, min_images=5), AR_TEMPLATE, gray=True)
        large = torch.cat([enlarge(faces[k].image[None]) for k in range(len(faces))])
        images.append(F.avg_pool2d(large.float(), 2).round().to(torch.uint8))
        labels.append(faces.labels + classes)
        classes += len(faces.people)
    torch.manual_seed(seed)
    network = Small(classes)
    how = Preprocessing((56, 48), "gray", PRESET.preprocessing.mean, PRESET.preprocessing.std)
    history = fit(
        network,
        torch.cat(images),
        torch.cat(labels),
        epochs=epochs,
        batch_size=64,
        learning_rate=3e-3,
        weight_decay=0.05,
        label_smoothing=0.1,
        seed=seed,
        transform=Augment(how, Jitter(0.5, shift=0.04, scale=0.06, turn=5.0, gain=0.3, offset=0.15)),
        on_epoch=lambda e: print(f"epoch {e.number}: loss {e.loss:.3f}, accuracy {e.accuracy:.3f}", flush=True),
    )
    about = {
        "network": "ResNet-18 of an eighth of the width, gray 56x48, trained on faces of CelebA and CFP at 42x30",
        "people": classes,
        "images": sum(map(len, labels)),
        "epochs": epochs,
        "seed": seed,
        "training accuracy": round(history.epochs[-1].accuracy, 4),
    }
    return network.eval(), about


def second(root: Path, epochs: int, path: Path | None) -> tuple[Small, dict[str, Any]]:
    """Return the second network and its record, from a file if that exists; else train it and write the file."""
    if path is not None and path.is_file():
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["about"])
        network = Small(about["people"]).eval()
        network.load_state_dict(load_file(path))
        return network, about
    network, about = train_small(root, epochs, 0)
    if path is not None:
        save_file(network.state_dict(), path, {"about": json.dumps(about)})
    return network, about


def scaled(images: Tensor) -> Tensor:
    """Return gray images in [0, 1] as the networks' input."""
    return PRESET.preprocessing.scale(images)


def mobilefacenet(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the embedding of gray images with the weights in a file."""
    network = MobileFaceNet().eval()
    load_into(network, path)
    return lambda x: network(x.expand(-1, 3, -1, -1))


@dataclass(frozen=True)
class Scores:
    """Cosines of references and probes.

    Attributes:
        genuine: of each person's own, [people, pairs].
        impostor: [people (reference), people (probe), pairs]; those of a person with itself are not used.
    """

    genuine: Floats
    impostor: Floats

    @classmethod
    def of(cls, references: Tensor, probes: Tensor) -> Scores:
        """Compare features of references [people, 2, D] with probes of the other session, [people, 2, lights, D]."""
        a, b = F.normalize(references.double(), dim=-1), F.normalize(probes.double(), dim=-1)
        found = torch.einsum("isd,jsld->ijsl", a, b.flip(1)).flatten(2).numpy()
        people = np.arange(len(found))
        return cls(found[people, people], found)

    def select(self, people: NDArray[np.int64]) -> Scores:
        """Return the scores among some of the people."""
        return Scores(self.genuine[people], self.impostor[np.ix_(people, people)])

    @property
    def apart(self) -> NDArray[np.bool_]:
        """Which of ``impostor`` belong to two people, [people, people]."""
        return ~np.eye(len(self.genuine), dtype=bool)


def accepted_above(scores: Scores, times: NDArray[np.int64], far: float) -> Floats:
    """Return for each resample the score above which the largest allowed share of impostor pairs lies, [resamples].

    Args:
        scores: Scores.
        times: how often each person was drawn, [resamples, people]. A pair counts as often as both people together.
        far: largest share of accepted impostor pairs.
    """
    i, j = scores.apart.nonzero()
    values = scores.impostor[i, j]
    order = np.argsort(-values, axis=None, kind="stable")
    pair = order // values.shape[1]
    values = values.ravel()[order]
    found = np.empty(len(times))
    for r, time in enumerate(times):
        weight = time[i[pair]] * time[j[pair]]
        accepted = np.cumsum(weight)
        found[r] = values[np.searchsorted(accepted, far * (1 + 1e-12) * accepted[-1], side="right")]
    return found


def figures(scores: Scores, clean: Scores, times: NDArray[np.int64]) -> dict[str, Floats]:
    """Return figures of a condition for each resample of people, [resamples] each.

    Args:
        scores: of the condition.
        clean: of uncovered probes, which set thresholds that are kept.
        times: how often each person was drawn, [resamples, people].
    """
    total = times.sum(1)

    def over_people(values: Floats) -> Floats:
        """Return the mean over people of values [people] or [resamples, people]."""
        found: Floats = (times * values).sum(1) / total
        return found

    between = np.where(scores.apart, scores.impostor.mean(2), 0.0)
    pairs = np.einsum("ri,ij,rj->r", times, scores.apart.astype(float), times, optimize=True)
    found = {
        "genuine": over_people(scores.genuine.mean(1)),
        "impostor": np.einsum("ri,ij,rj->r", times, between, times, optimize=True) / pairs,
    }
    for far in FARS:
        for name, reference in ((f"TAR at FAR {far:g}", scores), (f"TAR at the uncovered FAR {far:g}", clean)):
            above = accepted_above(reference, times, far)
            found[name] = over_people((scores.genuine > above[:, None, None]).mean(2))
    # The gallery is that of everybody; probes are resampled.
    others = np.where(scores.apart[..., None], scores.impostor, -np.inf).max(0)
    found["rank-1"] = over_people((scores.genuine > others).mean(1))
    return found


def summary(values: Floats) -> dict[str, Any]:
    """Return a figure and its interval: the first of the values is that of all people, the others are resamples'."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"value": round(float(values[0]), 5), "interval": [round(float(low), 5), round(float(high), 5)]}


def compare(
    scores: Mapping[str, Mapping[str, Scores]], people: NDArray[np.int64], resamples: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the figures of all conditions, and their paired differences from the real occlusion.

    Args:
        scores: by occlusion and condition; "uncovered" and "real" are there.
        people: Numbers of the people from 0.
        resamples: Number of resamples of people.
        seed: Random seed.
    """
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(people), np.full(len(people), 1 / len(people)), size=resamples)
    times = np.concatenate([np.ones((1, len(people)), np.int64), drawn])
    rows = []
    for occlusion, conditions in scores.items():
        chosen = {name: each.select(people) for name, each in conditions.items()}
        found = {name: figures(each, chosen["uncovered"], times) for name, each in chosen.items()}
        for name, values in found.items():
            row: dict[str, Any] = {"occlusion": occlusion, "condition": name}
            row["figures"] = {figure: summary(each) for figure, each in values.items()}
            if name != "real":
                row["minus real"] = {figure: summary(each - found["real"][figure]) for figure, each in values.items()}
            rows.append(row)
    return rows


def probes(photographs: Tensor, occlusion: str | None, drawn: OcclusionLike | None = None) -> Tensor:
    """Return the probes of both sessions, uint8 [people, 2, lights, 1, 42, 30]; a drawn occlusion covers them."""
    index = torch.tensor([numbers(occlusion, session) for session in (1, 2)]) - 1
    chosen = photographs[:, index]
    if drawn is None:
        return chosen
    ids = (torch.arange(len(photographs))[:, None, None] * SHOTS + index).flatten()
    images = chosen.flatten(0, 2)
    points = torch.tensor(AR100.POINTS, dtype=torch.float64).expand(len(images), 5, 2)
    return drawn(images, points, ids).images.reshape(chosen.shape)


@torch.no_grad()
def embedded(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return features of photographs, uint8 [..., 1, 42, 30], summed with those of their mirror images, [..., D]."""
    parts = []
    for part in images.flatten(0, -4).split(20):
        x = scaled(enlarge(part).float() / 255)
        parts.append(network(x) + network(x.flip(3)))
    return torch.cat(parts).reshape(*images.shape[:-3], -1)


def score(
    network: Callable[[Tensor], Tensor], photographs: Tensor, drawn: Mapping[str, Mapping[str, OcclusionLike]]
) -> dict[str, dict[str, Scores]]:
    """Return the scores of a network by occlusion and condition."""
    references = embedded(network, photographs[:, [numbers(None, session)[0] - 1 for session in (1, 2)]])
    uncovered = Scores.of(references, embedded(network, probes(photographs, None)))
    found = {}
    for occlusion, each in drawn.items():
        found[occlusion] = {
            "uncovered": uncovered,
            "real": Scores.of(references, embedded(network, probes(photographs, occlusion))),
            **{
                name: Scores.of(references, embedded(network, probes(photographs, None, drawing)))
                for name, drawing in each.items()
            },
        }
    return found


def halves(count: int) -> dict[str, NDArray[np.int64]]:
    """Return the people, numbered from 0, by the part that they play."""
    everybody = np.arange(count)
    reported = everybody[count // 2 :]
    return {
        "chosen on": everybody[: count // 2],
        "reported on": reported,
        f"reported on, without person {DOUBTFUL}": reported[reported != DOUBTFUL - 1],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.drawn_real", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="Folder with ar100, celeba and models.")
    parser.add_argument("--second", type=Path, default=None, help="Weights of the second network: kept, or trained.")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULTS / "drawn-real.json")
    options = parser.parse_args(arguments)
    root = options.data or Path(os.environ["OCCFAST_DATA"])
    photographs = AR100(root / "ar100").pixels.unflatten(0, (PEOPLE, SHOTS))
    small, about = second(root, options.epochs, options.second)
    networks = {
        "MobileFaceNet": mobilefacenet(root / "models" / "mobilefacenet-112x96.safetensors"),
        "small": small.features,
    }
    rows: list[dict[str, Any]] = []
    result = {**environment(), "confidence": 0.95, "resamples": options.resamples, "second": about, "rows": rows}
    for name, network in networks.items():
        scores = score(network, photographs, DRAWN)
        for part, people in halves(len(photographs)).items():
            for row in compare(scores, people, options.resamples):
                rows.append({"network": name, "people": part, "number": len(people), **row})
        write(options.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
