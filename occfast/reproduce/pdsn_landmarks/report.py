"""The graph of steps of the pdsn-landmarks reproduction, and its report: tables and figures.

A base network, mask generators and dictionaries for a grid and for regions on landmarks, a segmentation network; then
covered faces are looked for among clean ones (Table 1).
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data import FaceDataset
from ...errors import DataError
from ...files import read_npz, write_npz
from ...models import build
from ...pdsn import UNet, difference_labels, saliency, segment
from ...pdsn.faces import BANDS, OCCLUSIONS, occlude, open_faces
from ...plots import gray
from ..cost import forward_flops
from ..graph import Done, Graph, Step, StepContext, Work, fingerprint
from ..report import Claim, Comparison, Number, Picture, Report, Table
from .settings import EXTENSIONS, PAPER, PAPER_CLEAN, TABLE, PDSNSettings
from .steps import _Run

TABLES = (1,)
#: Figure 1 explains Siamese networks.
FIGURES = (2, 3, 4, 5, 6, 7, 8, 9)
#: Accuracy of the segmentation in %, section 5.2.
PAPER_SEGMENTATION = 90.49
_BASE = (
    "data",
    "size",
    "people",
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
    "generator_patience",
    "generator_batch",
    "generator_rate",
    "weight",
    "dictionary_images",
)
_SEGMENTATION = ("segmentation_width", "segmentation_epochs", "segmentation_rate")
_FACES = ("data", "size", "people")
#: Training images by data set, for predictions.
_IMAGES = {"orl": 280, "lfw": 2959}
_PARTS = ("left eye", "right eye", "nose", "left of the mouth", "right of the mouth")


def settings_of(scale: str, **changes: Any) -> PDSNSettings:
    """Those of a scale: "smoke" (ORL, minutes), "small" (LFW, a quarter of ResNet-34's channels, hours on a processor)
    or "paper" (LFW, ResNet-34).
    """
    found = {
        "smoke": PDSNSettings.small(epochs=28, generator_epochs=8, segmentation_epochs=8),
        "small": PDSNSettings(
            seeds=(0,),
            width=16,
            epochs=24,
            segmentation_width=0.25,
            segmentation_epochs=6,
            generator_epochs=12,
            map_images=100,
        ),
        "paper": PDSNSettings(seeds=(0,)),
    }
    if scale not in found:
        raise ValueError(f"scale: expected one of {', '.join(found)}, got {scale!r}")
    return replace(found[scale], **changes)


class Faces:
    """The data set, opened when it is needed; its images are read once a process and seed."""

    def __init__(self, settings: PDSNSettings, root: Path | None = None) -> None:
        self.settings, self.root = settings, root
        self.read: dict[int, Any] = {}

    @cached_property
    def dataset(self) -> FaceDataset:
        found = open_faces(self.settings.data, self.root, size=self.settings.size)
        if found.landmarks is None:
            raise DataError(f"{self.settings.data}: expected faces with landmarks, it has none")
        return found

    @property
    def here(self) -> bool:
        """Whether the data can be opened."""
        try:
            return self.dataset is not None
        except DataError:
            return False


def plan(settings: PDSNSettings, faces: Faces, root: Path) -> Graph:
    """The whole experiment, for all seeds."""
    steps: list[Step] = []
    for seed in settings.seeds:
        steps += _Seed(settings, faces, seed).steps()
    return Graph(steps, root, {"faces": lambda: fingerprint(faces.dataset)})


def targets(graph: Graph, tables: Iterable[int] = TABLES, figures: Iterable[int] = FIGURES) -> list[str]:
    """Names of the steps whose results these tables and figures show."""
    tables, figures = list(tables), list(figures)
    for kind, asked, known in (("table", tables, TABLES), ("figure", figures, FIGURES)):
        if unknown := set(asked) - set(known):
            raise ValueError(f"{kind}: expected one of {', '.join(map(str, known))}, got {sorted(unknown)[0]}")
    ends = (("search",) if tables else ()) + (("examples",) if figures else ())
    return [name for name in graph.steps if name.endswith(ends)]


class _Seed:
    """The steps of one seed; each works on copies of the files that it needs, in a folder of its own."""

    def __init__(self, settings: PDSNSettings, faces: Faces, seed: int) -> None:
        self.settings, self.faces, self.seed = settings, faces, seed

    def name(self, text: str) -> str:
        return f"seed {self.seed}: {text}"

    def steps(self) -> list[Step]:
        """In the order of the paper."""
        rows = self.settings.rows
        kinds = list(dict.fromkeys(row.base for row in rows))
        strategies = list(dict.fromkeys((row.base, row.strategy) for row in rows if row.strategy is not None))
        out = [self._step("base plain", lambda run: run.base("plain"), _BASE, work=self._base_work)]
        if "occluders" in kinds:
            out.append(
                self._step(
                    "locations",
                    lambda run: run.locations(),
                    ("map_images", "map_stride"),
                    ("base plain",),
                    work=self._map_work,
                )
            )
        for kind in kinds:
            if kind != "plain":
                needs = ("base plain", "locations") if kind == "occluders" else ()
                out.append(
                    self._step(f"base {kind}", partial(_Run.base, kind=kind), _BASE, needs, work=self._base_work)
                )
        for kind, strategy in strategies:
            out.append(
                self._step(
                    f"dictionary {kind} {strategy}",
                    partial(_Run.dictionary, kind=kind, strategy=strategy),
                    _GENERATORS,
                    (f"base {kind}",),
                    work=self._dictionary_work(strategy),
                )
            )
        out.append(
            self._step("segmentation", lambda run: run.segmentation(), _SEGMENTATION, work=self._segmentation_work)
        )
        all_of = [step.name.partition(": ")[2] for step in out]
        found = self._step("search", _search, ("percentiles", "compare"), tuple(all_of), work=self._search_work)
        out.append(replace(found, settings={**found.settings, "rows": [asdict(row) for row in rows]}))
        out.append(self._step("examples", None, _FACES, ("base plain", "dictionary plain lm2", "segmentation")))
        return out

    def _step(
        self,
        text: str,
        make: Callable[[_Run], Any] | None,
        fields: Sequence[str],
        needs: tuple[str, ...] = (),
        work: Work | None = None,
    ) -> Step:
        stated = asdict(self.settings)
        return Step(
            self.name(text),
            partial(self._do, make),
            {"seed": self.seed, **{f: stated[f] for f in (*_FACES, *fields)}},
            tuple(map(self.name, needs)),
            ("faces",),
            work=work or Work(),
        )

    def _do(self, make: Callable[[_Run], Any] | None, place: StepContext) -> dict[str, Any]:
        for done in place.needs.values():
            _borrow(done.folder, place.folder)
        cache = {"faces": self.faces.read[self.seed]} if self.seed in self.faces.read else {}
        run = _Run(self.settings, self.seed, place.folder, self.faces.dataset, place.device, place.show, cache)
        self.faces.read[self.seed] = run.faces
        found = _examples(run, place.folder) if make is None else make(run)
        return found if isinstance(found, dict) else {}

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
        # Through the base: the clean images, each covered once an epoch, and once on every region for the dictionary;
        # the masks are little beside it.  At most: generators stop early.
        images = (1 + self.settings.generator_epochs + regions) * self._images
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


def _search(run: _Run) -> dict[str, Any]:
    return run.result()


def _borrow(source: Path, target: Path) -> None:
    """Files of another step, by their names: linked where the disk can, else copied."""
    for file in source.iterdir():
        if file.suffix not in (".safetensors", ".npz", ".pt") or (target / file.name).exists():
            continue
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)


def _examples(run: _Run, folder: Path, count: int = 24) -> dict[str, Any]:
    """What the figures draw: means over faces, so that no single face is shown."""
    images, _, landmarks = run.part("train")
    mean = images.double().mean(0).round().to(torch.uint8)[None]
    points = landmarks.mean(0)[None]
    base, dictionary, unet = run.base("plain"), run.dictionary("plain", "lm2"), run.segmentation()
    zero = torch.zeros(1, dtype=torch.int64)
    content: dict[str, Any] = {"mean": mean[0].numpy(), "landmarks": landmarks.numpy()}
    for name in ("clean", *OCCLUSIONS):
        key = name.replace(" ", "-")
        covered, _ = occlude(name, mean, points, run.regions("lm2"), zero, run.seed)
        content[f"face {key}"] = covered[0].numpy()
        content[f"label {key}"] = difference_labels(mean, covered, radius=0)[0].numpy()
        content[f"cleaned {key}"] = difference_labels(mean, covered)[0].numpy()
        content[f"predicted {key}"] = segment(unet, covered)[0].cpu().numpy()
        tested, masks = run.occluded("test", name)
        tested, masks = tested[:count], masks[:count]
        content[f"share {key}"] = segment(unet, tested).double().mean(0).cpu().numpy()
        content[f"saliency {key}"] = saliency(base, tested).mean(0).numpy()
        content[f"masked {key}"] = saliency(base, tested, mask=dictionary.discard_mask(masks)).mean(0).numpy()
    for strategy in ("3x3", "lm1", "lm2"):
        content[f"boxes {strategy}"] = run.regions(strategy).boxes.numpy()
    write_npz(folder / "examples.npz", **content)
    return {"images": len(tested)}


# -- the report ------------------------------------------------------------------------------------------


def report(
    settings: PDSNSettings,
    faces: Faces,
    scale: str,
    found: Sequence[Done],
    command: str,
    tables: Iterable[int] = TABLES,
    figures: Iterable[int] = FIGURES,
) -> Report:
    """From finished steps; of the tables and figures asked for."""
    by_name = {step.name: step for step in found}
    results = [by_name[f"seed {seed}: search"].result for seed in settings.seeds] if list(tables) else []
    figures = list(figures)
    pictures: list[Picture] = []
    if figures:
        content = read_npz(by_name[f"seed {settings.seeds[0]}: examples"].folder / "examples.npz")
        pictures = [picture for k, picture in _pictures(content, command, figures) if k in figures]
    images = {k: len(v) for k, v in (("images", faces.dataset), ("people", faces.dataset.people))}
    return Report(
        paper="pdsn-landmarks",
        title=f"PDSN on facial landmarks: the paper beside occfast ({scale})",
        lead="A pairwise differential Siamese network whose masks belong to regions on facial landmarks, done again on "
        + {"orl": "400 photographs of 40 people (ORL).", "lfw": "the 158 people of LFW with ten images or more."}[
            settings.data
        ],
        scale=scale,
        seeds=settings.seeds,
        settings=asdict(settings),
        data={"name": settings.data, **images, **(results[0]["images"] if results else {})},
        command=command,
        claims=_claims(settings, results) if results else [],
        tables=_tables(settings, results, command) if results else [],
        pictures=pictures,
        differences=_differences(settings),
        steps=found,
    )


def _ranks(
    settings: PDSNSettings,
    results: Sequence[dict[str, Any]],
    row: str,
    occlusion: str,
    masks: str = "predicted",
    rank: str = "rank1",
) -> tuple[float, ...]:
    return tuple(100 * float(r["rows"][row][occlusion][masks][settings.compare][rank]) for r in results)


def _tables(settings: PDSNSettings, results: Sequence[dict[str, Any]], command: str) -> list[Table]:
    clean = {
        rank: tuple(100 * float(r["clean"][settings.compare][rank]) for r in results) for rank in ("rank1", "rank5")
    }
    kinds = ("clean", *OCCLUSIONS)
    segmentation = tuple(100 * float(np.mean([r["segmentation"][k]["accuracy"] for k in kinds])) for r in results)
    iou = tuple(100 * float(np.mean([r["segmentation"][k]["iou"] for k in OCCLUSIONS])) for r in results)
    n = results[0]["images"]
    out = [
        Table(
            "Base and segmentation",
            "Sections 5.1 and 5.2, in %: clean test images looked for among the training images by cosine; pixels "
            "that the U-Net labels right, over clean and covered test images in equal parts.",
            ["", "%"],
            {
                "rank-1, clean": [Number(clean["rank1"], paper=PAPER_CLEAN[0])],
                "rank-5, clean": [Number(clean["rank5"], paper=PAPER_CLEAN[1])],
                "segmentation, pixels right": [Number(segmentation, paper=PAPER_SEGMENTATION)],
                "segmentation, IoU of what is covered": [Number(iou)],
            },
            f"{n['test']} test images, {n['train']} in the gallery; one image is {100 / n['test']:.2f} points.",
            f"{command} --table 1" if "--table" not in command else command,
        )
    ]
    for masks, name in (("predicted", "Table 1"), ("oracle", "Table 1, occlusion known")):
        rows = {
            occlusion: [
                Number(
                    _ranks(settings, results, row.name, occlusion, masks), paper=told if masks == "predicted" else None
                )
                for row, told in zip(TABLE, PAPER[occlusion], strict=True)
            ]
            for occlusion in OCCLUSIONS
        }
        caption = (
            "Rank-1 in % of covered test images; which regions are covered is found by the segmentation, as in the "
            "paper."
            if masks == "predicted"
            else "The same where the covered pixels are known: what the masks can do at best."
        )
        out.append(
            Table(
                name,
                caption,
                ["occlusion", *("no masks" if r.name == "none" else r.name for r in TABLE)],
                rows,
                command=out[0].command,
            )
        )
    if settings.past:
        past = [TABLE[0], TABLE[2], *EXTENSIONS]
        out.append(
            Table(
                "Past the paper",
                "Rank-1 in %, occlusion known: what its conclusion asks for, and each face's own regions.",
                ["masks", "clean", *OCCLUSIONS],
                {
                    row.name: [
                        Number(_ranks(settings, results, row.name, o, "oracle"), digits=1)
                        for o in ("clean", *OCCLUSIONS)
                    ]
                    for row in past
                },
                command=out[0].command,
            )
        )
    return [*out, *_masks(settings, results, out[0].command)]


def _masks(settings: PDSNSettings, results: Sequence[dict[str, Any]], command: str) -> list[Table]:
    """Why a strategy wins: how much its masks leave, and what other percentiles would do."""
    masked = TABLE[1:]
    kept = {
        occlusion: [
            Number(tuple(100 * float(r["rows"][row.name][occlusion]["oracle"]["kept"]) for r in results), digits=1)
            for row in masked
        ]
        for occlusion in OCCLUSIONS
    }
    swept: dict[str, list[Number]] = {}
    for row in masked:
        of_seeds = zip(*(r["percentiles"][row.name] for r in results), strict=True)
        swept[row.name] = [Number(tuple(100 * float(one["rank1"]) for one in each), digits=1) for each in of_seeds]
    percentiles = [one["percentile"] for one in results[0]["percentiles"][masked[0].name]]
    return [
        Table(
            "What the masks keep",
            "Features in % that remain to compare by, occlusion known. A mask of several regions is the product of "
            "theirs, so a strategy that covers a band with three cells discards more than one that covers it with one.",
            ["occlusion", *(row.name for row in masked)],
            kept,
            command=command,
        ),
        Table(
            "Percentiles",
            "Mean rank-1 in % over the five bands, occlusion known, on validation images, where masks discard that "
            "share of the features (the paper's: LM1 20, LM2 30, 3x3 25).",
            ["masks", *map(str, percentiles)],
            swept,
            command=command,
        ),
    ]


def _claims(settings: PDSNSettings, results: Sequence[dict[str, Any]]) -> list[Claim]:
    def above(a: tuple[str, str], b: tuple[str, str], masks: str = "predicted") -> Comparison:
        first, second = (_ranks(settings, results, row, occlusion, masks) for row, occlusion in (a, b))
        text = (f"{a[0]} above {b[0]}, {a[1]}" if a[1] == b[1] else f"{a[1]} above {b[1]}").replace("none", "no masks")
        return Comparison(text, tuple(x - y for x, y in zip(first, second, strict=True)))

    def rows(
        a: str, others: Sequence[str], occlusions: Sequence[str], masks: str = "predicted"
    ) -> tuple[Comparison, ...]:
        return tuple(above((a, o), (b, o), masks) for o, b in itertools.product(occlusions, others))

    others = ("none", "LM1", "3x3")
    claims = [
        Claim("Table 1: under bands across the face LM2 is best", rows("LM2", others, BANDS)),
        Claim(
            "Table 1, occlusion known: under bands across the face LM2 is best", rows("LM2", others, BANDS, "oracle")
        ),
        Claim(
            "Table 1: under face masks and sunglasses no masks are best (the paper's puzzle)",
            rows("none", ("LM1", "LM2", "3x3"), ("face mask", "sunglasses")),
        ),
        Claim(
            "Table 1: under face masks and sunglasses LM2 is above the grid",
            rows("LM2", ("3x3",), ("face mask", "sunglasses")),
        ),
        Claim(
            "Table 1: the lower half matters less: without masks a covered mouth or chin costs less than forehead or "
            "eyes",
            tuple(
                above(("none", a), ("none", b)) for a, b in itertools.product(("mouth", "chin"), ("forehead", "eyes"))
            ),
        ),
        Claim(
            "Section 5.3: without masks a face mask costs less than a band from nose to chin, which covers the "
            "background too",
            (above(("none", "face mask"), ("none", "nose to chin")),),
        ),
    ]
    if settings.past:
        claims += [
            Claim(
                "Beyond the paper: a base trained with occluders is better without masks",
                rows("none, base with occluders", ("none",), OCCLUSIONS, "oracle"),
                beyond=True,
            ),
            Claim(
                "Beyond the paper: … and LM2's masks improve it further",
                rows("LM2, base with occluders", ("none, base with occluders",), BANDS, "oracle"),
                beyond=True,
            ),
            Claim(
                "Beyond the paper: bands in halves are above bands under face masks and sunglasses",
                rows("LM2 split", ("LM2",), ("face mask", "sunglasses"), "oracle"),
                beyond=True,
            ),
        ]
    return claims


def _pictures(content: Mapping[str, Any], command: str, figures: Sequence[int]) -> Iterable[tuple[int, Picture]]:
    def only(k: int) -> str:
        return f"{command} --figure {k}" if "--figure" not in command else command

    def sheet(rows: Sequence[tuple[str, str]], names: Sequence[str], cmap: str = "inferno") -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1.75 * len(names), 2.3 * len(rows) + 0.2), layout="constrained")
        axes = np.asarray(figure.subplots(len(rows), len(names), squeeze=False))
        for line, (key, text) in enumerate(rows):
            for column, name in enumerate(names):
                ax, image = axes[line, column], content[f"{key} {name.replace(' ', '-')}"]
                ax.imshow(
                    gray(image) if key == "face" else image,
                    cmap="gray" if key in ("face", "label", "cleaned", "predicted") else cmap,
                )
                ax.set_xticks([])
                ax.set_yticks([])
                if line == 0:
                    ax.set_title(name, fontsize=9)
            axes[line, 0].set_ylabel(text, fontsize=9)
        return figure

    what = "Means over faces: no single face is shown."
    face = ("face", "mean face")
    yield (
        2,
        Picture(
            "Figure 2",
            f"Saliency: |d logit / d pixel| of the base on clean test images. {what}",
            "Mean face and mean saliency",
            sheet([face, ("saliency", "saliency")], ["clean"]),
            only(2),
        ),
    )
    if 3 in figures:
        yield (
            3,
            Picture(
                "Figure 3",
                "Where landmarks lie about their mean places, in pixels: the spread that LM1 and LM2 are made from.",
                "Histograms of landmark offsets",
                _offsets(content["landmarks"]),
                only(3),
            ),
        )
    if 4 in figures:
        yield (
            4,
            Picture(
                "Figure 4",
                "Regions over the mean face: the 3×3 grid, LM1 and LM2.",
                "Regions of the three strategies",
                _regions(content),
                only(4),
            ),
        )
    yield (
        5,
        Picture(
            "Figure 5",
            "Labels of the segmentation from |clean − covered|, before and after opening and closing; the mean face.",
            "Segmentation labels before and after cleaning",
            sheet([face, ("label", "cut"), ("cleaned", "cleaned")], ["face mask", "sunglasses", "eyes"]),
            only(5),
        ),
    )
    yield (
        6,
        Picture(
            "Figure 6",
            "Sunglasses and a face mask, drawn on the mean face.",
            "Mean face with sunglasses and mask",
            sheet([face], ["clean", "sunglasses", "face mask"]),
            only(6),
        ),
    )
    yield (
        7,
        Picture(
            "Figure 7",
            f"What the U-Net finds: on the mean face, and how often on test images. {what}",
            "Predicted occlusions",
            sheet([face, ("predicted", "found"), ("share", "how often")], ["face mask", "sunglasses", "eyes", "chin"]),
            only(7),
        ),
    )
    for k, names in ((8, list(BANDS)), (9, ["face mask", "sunglasses"])):
        yield (
            k,
            Picture(
                f"Figure {k}",
                f"Saliency without and with LM2's discard mask, occlusion known. {what}",
                "Mean saliency with and without the discard mask",
                sheet([face, ("saliency", "no mask"), ("masked", "with mask")], names),
                only(k),
            ),
        )


def _offsets(landmarks: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.subplots(2, 5, sharey=True, sharex=True)
    offsets = landmarks - landmarks.mean(0)
    for part, name in enumerate(_PARTS):
        for axis, text in enumerate(("rows", "columns")):
            ax = axes[axis, part]
            ax.hist(offsets[:, part, axis], bins=np.arange(-15.5, 16), color="#b5367a", alpha=0.7)
            ax.set_title(
                f"{name}\nσ = {offsets[:, part, axis].std():.2f}"
                if axis == 0
                else f"σ = {offsets[:, part, axis].std():.2f}",
                fontsize=9,
            )
            if part == 0:
                ax.set_ylabel(text)
    return figure


def _regions(content: Mapping[str, Any]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    for ax, strategy in zip(figure.subplots(1, 3), ("3x3", "lm1", "lm2"), strict=True):
        ax.imshow(gray(content["mean"]), cmap="gray")
        for top, left, bottom, right in content[f"boxes {strategy}"]:
            ax.add_patch(
                Rectangle(
                    (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="#ff7d00", linewidth=1.5
                )
            )
        points = content["landmarks"].mean(0)
        ax.plot(points[:, 1], points[:, 0], "+", color="#2f7fb5")
        ax.set_title({"3x3": "3×3", "lm1": "LM1", "lm2": "LM2"}[strategy], fontsize=10)
        ax.set_axis_off()
    return figure


def _differences(s: PDSNSettings) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if s.data == "orl":
        found.append(
            (
                "40 people of ORL, gray, photographed in one laboratory; one test image a person, not 566 of LFW.",
                "Everybody is found easily: figures are far above the paper's, and one image is 2.5 points. What "
                "holds here shows that the code runs, not that the paper is right.",
            )
        )
    if (s.network, s.width) != ("resnet34", 64):
        found.append(
            (
                f"{s.network} with {s.width} channels in its first stage, not ResNet-34 with 64.",
                "Speed; what it costs or gains in accuracy on so few faces was not measured.",
            )
        )
    found += [
        (
            "Landmarks are published or stored ones and boxes are fitted to them; the paper ran MTCNN itself.",
            "Where a face lies in its box differs by some pixels: LM1's and LM2's spreads, and with them the size of "
            "their regions.",
        ),
        (
            "Masks are drawn on from landmarks (three kinds), not by MaskTheFace; the U-Net has no ImageNet weights.",
            "Face mask and sunglasses rows.",
        ),
        (
            "Optimizer, λ, scale and margin are ours; the generators' convolution is 3×3.",
            "The paper does not tell them.",
        ),
        (
            f"Faces are compared by {'masked maps' if s.compare == 'maps' else 'the features of masked maps'} "
            "(settings.compare).",
            "The paper says “the output of each of the masked feature maps”; search results hold both.",
        ),
    ]
    return found


__all__ = ["FIGURES", "TABLES", "Faces", "plan", "report", "settings_of", "targets"]
