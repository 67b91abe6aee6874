"""The experiment of pdsn-landmarks, step by step: do regions on landmarks beat a grid?  And what comes after it.

A base network is trained on clean faces; for each strategy (3×3 grid, LM1, LM2, …) mask generators are trained and a
dictionary is made; a U-Net learns to find occlusions.  Then test images are covered in seven ways and looked for among
the training images, with no masks and with those of each strategy, the occlusion known (oracle) or predicted.  Each
finished step is a file, and the long ones keep checkpoints: a run that was stopped or killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import checks
from ..._version import __version__
from ...data import FaceDataset
from ...errors import DataError
from ...files import write_atomically
from ...losses.cosface import LargeMarginCosine
from ...models import ResNet, build
from ...occlude.locations import LocationDistribution
from ...occlude.noisy import NoisyOccluder
from ...pdsn import (
    Base,
    Generators,
    MaskDictionary,
    Regions,
    SegmentationScore,
    UNet,
    build_dictionary,
    match,
    regions,
    saliency,
    segment,
    train_generators,
    train_segmentation,
)
from ...pdsn.base import as_float, base_of
from ...pdsn.faces import BANDS, OCCLUSIONS, FaceSet, face_pixels, mixed, occlude, open_faces, read_faces
from ...pdsn.generator import cover
from ...progress import progress
from ...sweep import occlusion_map
from ...train import Jitter, Trained, load_network, place
from ...train.batches import InMemory, Shuffled
from ...train.checkpoint import load_checkpoint, save_checkpoint
from ...train.engine import Engine, OptimizerConfig, accelerator
from ...train.objective import Classify
from .settings import PAPER, PAPER_CLEAN, TABLE, PDSNSettings, Row

# -- faces -----------------------------------------------------------------------------------------------


# -- occlusions ------------------------------------------------------------------------------------------


# -- the base network ------------------------------------------------------------------------------------


class BaseAugment:
    """What a base sees of its training images: see :class:`Row` for the kinds.

    Args:
        kind: "plain", "occluders" or "background".
        faces: whose training images are drawn from.
        bands: LM2's regions.
        locations: of the noisy occluders, for "occluders".
        seed: of everything that is drawn.
    """

    def __init__(
        self, kind: str, faces: FaceSet, bands: Regions, locations: LocationDistribution | None, seed: int
    ) -> None:
        if kind not in ("plain", "occluders", "background"):
            raise ValueError(f"base: expected 'plain', 'occluders' or 'background', got {kind!r}")
        self.kind, self.bands = kind, bands
        self.jitter = Jitter(shift=0.04, scale=0.06, turn=5.0)
        self.draws = Jitter.draws + 3
        images, landmarks = faces.images[faces.train], faces.landmarks[faces.train]
        self.preprocessing = faces.preprocessing
        self.n = len(images)
        if kind == "occluders":
            assert locations is not None
            height, width = bands.size
            # 20×40 on the paper's 100×100, the size that its Table 2 favors.
            self.noisy = NoisyOccluder((round(0.2 * height), round(0.4 * width)), locations, seed=seed)
            ids = torch.arange(self.n)
            self.worn = [occlude(name, images, landmarks, bands, ids, seed)[0] for name in ("face mask", "sunglasses")]
        if kind == "background":
            self.face = face_pixels(landmarks, bands.size)

    def __call__(self, images: Tensor, sample_ids: Tensor, uniform: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to the network's input; see :data:`occfast.train.engine.Transform`."""
        own, rest = uniform[:, : Jitter.draws], uniform[:, Jitter.draws :]
        number = sample_ids.cpu() % self.n
        batch: Tensor = as_float(images)
        noisy = torch.zeros(len(batch), dtype=torch.bool)
        if self.kind == "background":
            # Around the face, what is around it in the next image of the batch; one in four is left as it is.
            inside = self.face[number].to(batch.device) | (rest[:, 0] < 0.25).to(batch.device)[:, None, None]
            batch = torch.where(inside[:, None], batch, batch.roll(1, 0))
        elif self.kind == "occluders":
            # A half get noisy occluders, an eighth each a mask, sunglasses, nothing, and a band of some gray.
            kind, band, gray = rest.unbind(1)
            noisy = kind < 0.5
            for k, low in enumerate((0.5, 0.625)):
                rows = ((kind >= low) & (kind < low + 0.125)).nonzero()[:, 0]
                batch[rows] = as_float(self.worn[k][number[rows]]).to(batch)
            rows = (kind >= 0.875).nonzero()[:, 0]
            boxes = self.bands.boxes[(band[rows] * len(self.bands)).long()]
            batch[rows] = cover(batch[rows], boxes, gray[rows])
        batch = self.jitter(batch, own.to(batch.device))
        if bool(noisy.any()):
            batch[noisy] = self.noisy(batch[noisy], sample_ids[noisy])
        scaled: Tensor = self.preprocessing.scale(batch)
        return scaled


def train_base(
    settings: PDSNSettings,
    kind: str,
    faces: FaceSet,
    bands: Regions,
    seed: int,
    folder: Path,
    *,
    locations: LocationDistribution | None = None,
    device: str = "cpu",
    show: bool = True,
) -> Trained:
    """ResNet and large margin cosine loss, till the validation accuracy stagnates or declines; resumable.

    While it trains ``folder`` keeps a checkpoint and the weights of the best epoch, which are what is returned.
    """
    found = checks.device(device)
    arguments = {"width": settings.width, "stem_pool": settings.stem_pool}
    spec = {"name": settings.network, "classes": None, "arguments": arguments}
    checkpoint, best_path = folder / f"base {kind}.checkpoint", folder / f"base {kind}.best.safetensors"
    with torch.random.fork_rng(devices=[found] if found.type == "cuda" else []):
        torch.manual_seed(seed)
        network = build(settings.network, None, channels=faces.preprocessing.channels, size=settings.size, **arguments)
        assert isinstance(network, ResNet)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        head = LargeMarginCosine(network.feature_size, len(faces.people), scale=settings.scale, margin=settings.margin)
        objective = Classify(network, head).to(found)
        train = faces.train
        engine = Engine(
            objective,
            Shuffled(len(train), settings.batch_size),
            InMemory(faces.images[train].to(found)),
            faces.labels[train],
            OptimizerConfig("sgd", settings.learning_rate, weight_decay=settings.weight_decay, warmup=0.05),
            settings.epochs,
            accelerator(found),
            BaseAugment(kind, faces, bands, locations, seed),
            seed=seed,
        )
        scores: list[float] = []
        if checkpoint.exists():
            tensors, values = load_checkpoint(checkpoint)
            engine.load_state(tensors, values["engine"])
            scores = values["scores"]

        def stagnates() -> bool:
            best = int(np.argmax(scores)) if scores else 0
            return bool(settings.patience) and len(scores) - 1 - best >= settings.patience

        last = time.monotonic()
        title = f"base network ({kind})"
        with progress(title, "epochs", show) as report:
            report(engine.epoch, settings.epochs)
            if not stagnates():
                for step in engine.steps():
                    if not step.last:
                        continue
                    scores.append(_validation_accuracy(objective, faces))
                    if scores[-1] == max(scores):
                        Trained(
                            network,
                            faces.preprocessing,
                            spec,
                            faces.people,
                            head,
                            {
                                "head": True,
                                "stage": "classify",
                                "loss": "large_margin_cosine",
                                "epoch": step.epoch + 1,
                                "validation": scores[-1],
                            },
                        ).save(best_path)
                    if time.monotonic() - last > 30 or step.epoch + 1 == settings.epochs:
                        tensors, values = engine.state()
                        save_checkpoint(checkpoint, tensors, {"engine": values, "scores": scores})
                        last = time.monotonic()
                    report(step.epoch + 1, settings.epochs)
                    if stagnates():
                        break
    found_best = load_network(best_path)
    for file in (checkpoint, best_path, best_path.with_name(f"{best_path.stem}-head.safetensors")):
        file.unlink(missing_ok=True)
    return found_best


@torch.no_grad()
def _validation_accuracy(objective: Classify, faces: FaceSet) -> float:
    device = next(objective.parameters()).device
    objective.eval()
    right = 0
    for rows in faces.validation.split(64):
        logits = objective.logits(faces.preprocessing(faces.images[rows]).to(device))
        right += int((logits.argmax(1).cpu() == faces.labels[rows]).sum())
    return right / len(faces.validation)


# -- the run ---------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """One seed: its steps are the methods, each of which reads its file or makes it."""

    settings: PDSNSettings
    seed: int
    folder: Path
    dataset: FaceDataset
    device: str = "cpu"
    show: bool = True
    _cache: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]

    @property
    def faces(self) -> FaceSet:
        found: FaceSet = self.once(
            "faces", lambda: read_faces(self.dataset, self.seed, self.settings.people, progress=self.show)
        )
        return found

    def part(self, which: str) -> tuple[Tensor, Tensor, Tensor]:
        rows: Tensor = getattr(self.faces, which)
        return self.faces.images[rows], self.faces.labels[rows], self.faces.landmarks[rows]

    def regions(self, strategy: str) -> Regions:
        found: Regions = self.once(
            f"regions {strategy}",
            lambda: regions.named(strategy, self.settings.size, self.faces.landmarks[self.faces.train]),
        )
        return found

    def base(self, kind: str) -> Base:
        def make() -> Base:
            path = self.folder / f"base {kind}.safetensors"
            if not path.exists():
                locations = self.locations() if kind == "occluders" else None
                trained = train_base(
                    self.settings,
                    kind,
                    self.faces,
                    self.regions("lm2"),
                    self.seed,
                    self.folder,
                    locations=locations,
                    device=self.device,
                    show=self.show,
                )
                trained.save(path)
            base = base_of(load_network(path)).to(checks.device(self.device))
            base.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return base

        found: Base = self.once(f"base {kind}", make)
        return found

    def locations(self) -> LocationDistribution:
        """Where noisy occluders go: by the plain base's map on validation images (Eq. 4 of trigueros2018, T = 0.4)."""
        path = self.folder / "locations.npz"
        if not path.exists():
            images, labels, _ = self.part("validation")
            base, some = self.base("plain"), self.settings.map_images
            height, width = self.settings.size
            found = occlusion_map(
                base,
                as_float(images[:some]).to(base.device),
                labels[:some].to(base.device),
                (round(0.2 * height), round(0.4 * width)),
                stride=self.settings.map_stride,
                method="dense",
                fill=0.5,
                progress=self.show,
            )
            place(found, 0.4).save(path)
        return LocationDistribution.load(path)

    def dictionary(self, kind: str, strategy: str) -> MaskDictionary:
        def make() -> MaskDictionary:
            name = f"{kind} {strategy}"
            path, trained = self.folder / f"dictionary {name}.npz", self.folder / f"generators {name}.pt"
            if not path.exists():
                images, labels, _ = self.part("train")
                base, some = self.base(kind), self.regions(strategy)
                if not trained.exists():
                    s = self.settings
                    train_generators(
                        base,
                        some,
                        images,
                        labels,
                        validation=self.part("validation")[:2],
                        weight=s.weight,
                        epochs=s.generator_epochs,
                        patience=s.generator_patience,
                        batch_size=s.generator_batch,
                        learning_rate=s.generator_rate,
                        seed=self.seed,
                        progress=self.show,
                        checkpoint=self.folder / f"generators {name}.checkpoint",
                    ).save(trained)
                generators = Generators.load(trained).to(base.device)
                order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
                chosen = order[: self.settings.dictionary_images]
                build_dictionary(
                    base,
                    some,
                    [(images[chosen], labels[chosen])],
                    generators=generators,
                    seed=self.seed,
                    progress=self.show,
                ).save(path)
            return MaskDictionary.load(path)

        found: MaskDictionary = self.once(f"dictionary {kind} {strategy}", make)
        return found

    def occluded(self, which: str, name: str) -> tuple[Tensor, Tensor]:
        images, _, landmarks = self.part(which)
        ids = getattr(self.faces, which)
        return occlude(name, images, landmarks, self.regions("lm2"), ids, self.seed)

    def segmentation(self) -> UNet:
        def make() -> UNet:
            path, s = self.folder / "segmentation.pt", self.settings
            if not path.exists():
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    network = UNet(self.faces.images.shape[1], width=s.segmentation_width)
                network.to(checks.device(self.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
                train, held = (
                    mixed(self.faces, rows, self.regions("lm2"), self.seed)
                    for rows in (self.faces.train, self.faces.validation)
                )
                train_segmentation(
                    network,
                    *train,
                    validation=held,
                    epochs=s.segmentation_epochs,
                    learning_rate=s.segmentation_rate,
                    seed=self.seed,
                    checkpoint=self.folder / "segmentation.checkpoint",
                    progress=self.show,
                )
                network.save(path)
            return UNet.load(path).to(checks.device(self.device))

        found: UNet = self.once("segmentation", make)
        return found

    # -- figures -----------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """All figures of this seed; written once everything is there."""
        path = self.folder / "result.json"
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        rows = [row for row in self.settings.rows if row.name not in known.get("rows", {})]
        if "clean" in known and not rows:
            return known
        _, _, landmarks = self.part("test")
        covered = {name: self.occluded("test", name) for name in ("clean", *OCCLUSIONS)}
        predicted = {name: segment(self.segmentation(), images).cpu() for name, (images, _) in covered.items()}
        if "clean" not in known:
            known = {
                "seed": self.seed,
                "images": {name: len(getattr(self.faces, name)) for name in ("train", "validation", "test")},
                "clean": self._ranks(Row("clean"), covered["clean"][0], None, landmarks),
                "segmentation": {
                    name: asdict(SegmentationScore.of(predicted[name], mask)) for name, (_, mask) in covered.items()
                },
                "inside": self._inside(),
                "rows": {},
            }
        for row in rows:
            known["rows"][row.name] = {
                name: {
                    "oracle": self._ranks(row, images, mask, landmarks),
                    "predicted": self._ranks(row, images, predicted[name], landmarks),
                }
                for name, (images, mask) in covered.items()
            }
            write_atomically(path, json.dumps(known, indent=1).encode())
        if "percentiles" not in known:
            known["percentiles"] = self._percentiles()
        write_atomically(path, json.dumps(known, indent=1).encode())
        return known

    def _gallery(self, kind: str) -> Tensor:
        found: Tensor = self.once(f"gallery {kind}", lambda: self.base(kind).all_maps(self.part("train")[0]))
        return found

    def _ranks(self, row: Row, images: Tensor, occlusion: Tensor | None, landmarks: Tensor) -> dict[str, Any]:
        base = self.base(row.base)
        # The maps of the covered test images are the same for all rows of a base.
        digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
        probes: Tensor = self.once(f"probes {row.base} {digest}", lambda: base.all_maps(images))
        masks = None
        found: dict[str, Any] = {"groups": 1}
        if row.strategy is not None and occlusion is not None:
            dictionary = self.dictionary(row.base, row.strategy)
            dictionary.check_base(base)
            boxes = dictionary.regions.at(landmarks) if row.own else None
            occluded = dictionary.regions.occluded(occlusion, boxes)
            patterns, group = occluded.unique(dim=0, return_inverse=True)
            masks = dictionary.combine(patterns, soft=row.soft), group
            found = {
                "groups": len(patterns),
                "regions": float(occluded.double().sum(1).mean()),
                "kept": float(masks[0].double().flatten(1).mean(1)[group].mean()),
            }
        labels = self.faces.labels[self.faces.test]
        for compare in ("features", "maps"):
            ranking = match(
                self._gallery(row.base), self.faces.labels[self.faces.train], probes, masks, compare=compare, base=base
            )
            found[compare] = {"rank1": ranking.accuracy(labels, 1), "rank5": ranking.accuracy(labels, 5)}
        return found

    def _inside(self) -> dict[str, Any]:
        landmarks = self.faces.landmarks[self.faces.train]
        out = {}
        for strategy in ("lm1", "lm2"):
            shares, whole = self.regions(strategy).inside(landmarks)
            named = zip(self.regions(strategy).names, shares.tolist(), strict=True)
            out[strategy] = {"all": whole, **{name: share for name, share in named if not math.isnan(share)}}
        return out

    def _percentiles(self) -> dict[str, list[dict[str, float]]]:
        """Rank-1 over the five bands on validation images, for other percentiles than the paper's (compare as set)."""
        images, labels, _ = self.part("validation")
        base, gallery = self.base("plain"), self._gallery("plain")
        probes = {name: self.occluded("validation", name) for name in BANDS}
        maps = {name: base.all_maps(covered) for name, (covered, _) in probes.items()}
        out: dict[str, list[dict[str, float]]] = {}
        for row in TABLE[1:]:
            assert row.strategy is not None
            out[row.name] = []
            for percentile in self.settings.percentiles:
                dictionary = self.dictionary("plain", row.strategy).with_percentile(percentile)
                ranks = []
                for name, (_, mask) in probes.items():
                    # One band covers every image alike: one mask.
                    combined = dictionary.discard_mask(mask[:1])
                    group = torch.zeros(len(images), dtype=torch.int64)
                    found = match(
                        gallery,
                        self.faces.labels[self.faces.train],
                        maps[name],
                        (combined, group),
                        k=1,
                        compare=self.settings.compare,
                        base=base,
                    )
                    ranks.append(found.accuracy(labels))
                out[row.name].append({"percentile": percentile, "rank1": float(np.mean(ranks))})
        return out

    def pictures(self, output: Path) -> None:
        """Figures 2, 4, 8 and 9: saliency, regions over the mean face, saliency with and without the mask."""
        from matplotlib.figure import Figure

        from ...plots import gray

        images, _, landmarks = self.part("train")
        mean = (images.float().mean(0) / 255).numpy()
        strategies = ("3x3", "lm1", "lm2", *(("lm2-split",) if self.settings.past else ()))
        figure = Figure(figsize=(2.4 * len(strategies), 3.4), layout="constrained")
        for ax, strategy in zip(figure.subplots(1, len(strategies)), strategies, strict=True):
            self.regions(strategy).draw(mean, ax=ax, landmarks=landmarks)
            ax.set_title(strategy, fontsize=9)
        figure.savefig(output / "regions.png", dpi=110)

        base, dictionary = self.base("plain"), self.dictionary("plain", "lm2")
        names = ("clean", "eyes", "mouth", "face mask", "sunglasses")
        figure = Figure(figsize=(2.0 * len(names), 6.0), layout="constrained")
        axes = figure.subplots(3, len(names))
        for column, name in enumerate(names):
            covered, mask = self.occluded("test", name)
            one, where = covered[:1], mask[:1]
            axes[0, column].imshow(gray(one[0].numpy()), cmap="gray")
            axes[0, column].set_title(name, fontsize=9)
            for line, masks in ((1, None), (2, dictionary.discard_mask(where))):
                axes[line, column].imshow(saliency(base, one, mask=masks)[0].numpy(), cmap="inferno")
            for line in range(3):
                axes[line, column].set_axis_off()
        figure.savefig(output / "saliency.png", dpi=110)


def run(
    settings: PDSNSettings | None = None,
    output: str | Path = "pdsn",
    *,
    root: str | Path | None = None,
    device: str = "cpu",
    show: bool = True,
    dataset: FaceDataset | None = None,
) -> Path:
    """Run the experiment; returns the path of ``report.json``, beside which ``report.md`` has the tables.

    Args:
        settings: by default the paper's, with three seeds: days on a processor, hours on a GPU.
        output: a folder, made if need be; ``steps-…`` in it keeps what is finished.
        root: of the data set; see :class:`~occfast.data.LFW`.
        device: "cpu", "cuda" or "cuda:N".
        dataset: aligned faces with landmarks in place of those the settings name.

    Raises:
        DataError: the data set is not there, or a file is damaged.
    """
    settings, output = settings or PDSNSettings(), Path(output)
    dataset = open_faces(settings.data, root, size=settings.size) if dataset is None else dataset
    if dataset.landmarks is None:
        raise DataError(f"{type(dataset).__name__}: expected faces with landmarks, it has none")
    results = []
    for number, seed in enumerate(settings.seeds):
        folder = output / f"steps-{settings.fingerprint()}" / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        one = _Run(settings, seed, folder, dataset, device, show)
        results.append(one.result())
        if number == 0:
            one.pictures(output)
        _write(settings, results, output)
    return output / "report.json"


def summary(settings: PDSNSettings, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and (population) standard deviations over seeds, and whether the paper's orderings hold."""

    def over_seeds(look: Callable[[dict[str, Any]], float]) -> dict[str, float]:
        values = np.array([look(result) for result in results])
        return {"mean": float(values.mean()), "std": float(values.std())}

    compare = settings.compare
    table = {
        row.name: {
            occlusion: {
                masks: {
                    rank: over_seeds(lambda r, o=occlusion, m=masks, k=rank, n=row.name: r["rows"][n][o][m][compare][k])  # type: ignore[misc]
                    for rank in ("rank1", "rank5")
                }
                for masks in ("oracle", "predicted")
            }
            for occlusion in ("clean", *OCCLUSIONS)
        }
        for row in settings.rows
    }
    segmentation = {
        name: {
            score: over_seeds(lambda r, n=name, s=score: r["segmentation"][n][s])  # type: ignore[misc]
            for score in ("accuracy", "iou")
        }
        for name in ("clean", *OCCLUSIONS)
    }
    orderings = {}
    for occlusion in BANDS:
        rank1 = {
            name: [result["rows"][name][occlusion]["oracle"][compare]["rank1"] for result in results]
            for name in ("none", "LM2", "3x3")
        }
        orderings[occlusion] = {
            f"LM2 above {other}": {
                "of the means": bool(np.mean(rank1["LM2"]) > np.mean(rank1[other])),
                "seeds": sum(a > b for a, b in zip(rank1["LM2"], rank1[other], strict=True)),
            }
            for other in ("none", "3x3")
        }
    return {
        "compare": compare,
        "seeds": [result["seed"] for result in results],
        "clean": {rank: over_seeds(lambda r, k=rank: r["clean"][compare][k]) for rank in ("rank1", "rank5")},  # type: ignore[misc]
        "segmentation": segmentation,
        "table": table,
        "orderings": orderings,
    }


def _write(settings: PDSNSettings, results: Sequence[dict[str, Any]], output: Path) -> None:
    found = summary(settings, results)
    content = {
        "settings": asdict(settings),
        "version": __version__,
        "torch": torch.__version__,
        "paper": PAPER,
        "paper_clean": PAPER_CLEAN,
        "summary": found,
        "results": list(results),
    }
    write_atomically(output / "report.json", json.dumps(content, indent=1).encode())
    write_atomically(output / "report.md", _markdown(settings, found, results).encode())


def _markdown(settings: PDSNSettings, found: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    def cell(value: dict[str, float]) -> str:
        spread = f" ± {100 * value['std']:.2f}" if len(found["seeds"]) > 1 else ""
        return f"{100 * value['mean']:.2f}{spread}"

    clean = found["clean"]
    lines = [
        "# PDSN on landmarks",
        "",
        f"{settings.data.upper()}, {settings.network} with {settings.width} channels, "
        f"{settings.size[0]}×{settings.size[1]}, seeds {', '.join(map(str, found['seeds']))}; "
        f"{results[0]['images']['train']} gallery and {results[0]['images']['test']} test images; "
        f"cosine of {found['compare']}.",
        "",
        f"Clean test images: rank-1 {cell(clean['rank1'])} %, rank-5 {cell(clean['rank5'])} % "
        f"(the paper: {PAPER_CLEAN[0]} and {PAPER_CLEAN[1]} %).",
    ]
    for masks in ("oracle", "predicted"):
        lines += [
            "",
            f"## Rank-1 in %, occlusion {'known' if masks == 'oracle' else 'predicted'} (the paper's in brackets)",
        ]
        lines += [
            "",
            "| occlusion | " + " | ".join(row.name for row in TABLE) + " |",
            "| --- |" + " --- |" * len(TABLE),
        ]
        for occlusion in OCCLUSIONS:
            paper = ["" if value is None else f" ({value:.2f})" for value in PAPER[occlusion]]
            cells = [
                cell(found["table"][row.name][occlusion][masks]["rank1"]) + told
                for row, told in zip(TABLE, paper, strict=True)
            ]
            lines.append(f"| {occlusion} | " + " | ".join(cells) + " |")
    if settings.past:
        lines += ["", "## Past the paper: rank-1 in %, occlusion known"]
        lines += [
            "",
            "| masks | clean | " + " | ".join(OCCLUSIONS) + " |",
            "| --- | --- |" + " --- |" * len(OCCLUSIONS),
        ]
        for row in settings.rows:
            cells = [cell(found["table"][row.name][name]["oracle"]["rank1"]) for name in ("clean", *OCCLUSIONS)]
            lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## The paper's orderings, bands, occlusion known",
        "",
        "| band | " + " | ".join(("LM2 above none", "LM2 above 3x3")) + " |",
        "| --- | --- | --- |",
    ]
    for band, held in found["orderings"].items():
        cells = [
            f"{'holds' if entry['of the means'] else 'fails'} ({entry['seeds']} of {len(found['seeds'])} seeds)"
            for entry in held.values()
        ]
        lines.append(f"| {band} | " + " | ".join(cells) + " |")
    lines += ["", "## Segmentation, %", "", "| occlusion | accuracy | IoU |", "| --- | --- | --- |"]
    for name, score in found["segmentation"].items():
        lines.append(f"| {name} | {cell(score['accuracy'])} | {cell(score['iou'])} |")
    lines += ["", "## Percentile: mean rank-1 in % over the five bands, validation images", ""]
    sweeps = results[0]["percentiles"]
    shown = [f"{entry['percentile']:g}" for entry in next(iter(sweeps.values()))]
    lines += ["| masks | " + " | ".join(shown) + " |", "| --- |" + " --- |" * len(shown)]
    for name in sweeps:
        means = np.mean([[entry["rank1"] for entry in result["percentiles"][name]] for result in results], axis=0)
        lines.append(f"| {name} | " + " | ".join(f"{100 * value:.2f}" for value in means) + " |")
    return "\n".join(lines) + "\n"
