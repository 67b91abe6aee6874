"""Sáez Trigueros, Meng and Hartnett 2018: its tables and figures as a graph of steps.

A learns to tell people apart; occlusion maps of A say where covering hurts (Figure 1) and where noisy occluders go
(Eq. 4, Figure 2); six networks are fine-tuned with them and mapped again (Table 1); eight more by the triplet and the
batch triplet loss (Figure 4), and twelve are judged by LFW's pairs (Table 2); four by AR's occlusions (Figure 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import checks
from ...evaluate import TarAtFar, embed, pair_scores, verification
from ...files import write_npz
from ...models import build, features
from ...sweep import occlusion_map
from ...sweep.types import MethodName
from ...train import Recipe, Trained, load_network, load_recipe, predict, train
from ...train.augment import TEMPERATURES
from ...train.faces import split
from ...train.recipe import ValidationPart
from ..cost import forward_flops
from ..graph import Graph, Step, StepContext, Work
from .sources import Sources

SIZES = tuple(TEMPERATURES)
#: Table 1, %: mean and standard deviation over locations, columns 20×20, 20×40, 40×40.
TABLE_1 = {
    "A": ((92.9, 10.99), (86.18, 18.51), (76.19, 27.89)),
    "A20x20": ((97.69, 2.62), (95.1, 5.64), (88.9, 14.13)),
    "A20x20R": ((97.12, 3.55), (93.98, 7.39), (86.93, 16.98)),
    "A20x40": ((97.75, 2.42), (95.85, 4.03), (90.64, 10.88)),
    "A20x40R": ((97.62, 2.9), (95.45, 5.12), (89.54, 13.29)),
    "A40x40": ((98.37, 1.7), (96.8, 3.16), (93.47, 6.94)),
    "A40x40R": ((98.31, 2.29), (96.52, 4.14), (92.61, 9.13)),
}
#: Table 2, %: accuracy on LFW and its standard deviation over the ten splits.
TABLE_2 = {
    "A": (97.33, 0.71),
    "B": (97.73, 0.76),
    "C": (98.12, 0.65),
    "A20x20": (97.4, 0.71),
    "B20x20": (97.85, 0.69),
    "C20x20": (98.35, 0.73),
    "A20x40": (97.68, 0.83),
    "B20x40": (97.79, 0.82),
    "C20x40": (98.42, 0.68),
    "A40x40": (97.18, 0.63),
    "B40x40": (97.5, 0.57),
    "C40x40": (98.16, 0.64),
}
#: Networks of Figure 6.
FIGURE_6 = ("A", "A20x20", "A20x40", "A40x40")
FIGURES = (1, 2, 4, 6)
TABLES = (1, 2)
#: A trained as long again as the fine-tuned networks, without occluders: what more training alone gives.
CONTROL = "A longer"

# Speed of the exact sweep over plain dense PyTorch on W1 with a center on every pixel: bench/results/sweep-cpu.md.
_SWEEP_SPEEDUP = {(20, 20): 7.39, (20, 40): 7.42, (40, 40): 5.21}
_JITTER = "jitter={flip: 0.5, shift: 0.03, scale: 0.05, turn: 5.0, gain: 0.15, offset: 0.08}"


def times(size: tuple[int, int]) -> str:
    """As the paper's network names have it: 20x40."""
    return f"{size[0]}x{size[1]}"


def size_of(network: str) -> tuple[int, int] | None:
    """The occluder that a network was trained with, from its name; None for A, B and C."""
    height, _, width = network[1:].removesuffix("R").partition("x")
    return (int(height), int(width)) if width else None


@dataclass(frozen=True)
class Settings:
    """Everything that the figures depend on beside the data.

    Attributes:
        scale: "smoke", "small" or "paper"; names the data.
        seeds: one whole run each: split, weights, batches, occluders.
        network: arguments of :class:`~occfast.models.PaperNet`.
        common, base, fine, triplet: overrides of the packaged recipes: of all, of A, of A… with occluders, of B and C.
        share: of the training set's images that are kept out of training: half for P, half for the table.
        placement_images, table_images: that A (or the network at hand) gets right uncovered, at most.
        stride: of the occluder's center in pixels; the paper's is 1.
        map_method: of :func:`~occfast.occlusion_map`.
        control: also :data:`CONTROL`.
    """

    scale: str = "paper"
    seeds: tuple[int, ...] = (0,)
    network: tuple[tuple[str, Any], ...] = ()
    common: tuple[str, ...] = ()
    base: tuple[str, ...] = ()
    fine: tuple[str, ...] = ()
    triplet: tuple[str, ...] = ()
    share: float = 0.1
    placement_images: int = 1000
    table_images: int = 1000
    stride: int = 1
    map_method: MethodName = "auto"
    control: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected different numbers, got {self.seeds}")
        for seed in self.seeds:
            checks.seed(seed)
        checks.number(self.share, "share", 0.0, 0.9)

    @classmethod
    def of(cls, scale: str, **changes: Any) -> Settings:
        """Those of a scale.

        "smoke" (ORL): a quarter of the channels, batch normalization, minutes.  "small" (CelebA subset): half of the
        channels, batch normalization, hours.  "paper": the paper's network and numbers; optimizer and epochs, which it
        doesn't tell, are the packaged recipes'.
        """
        adam = ("optimizer.name=adamw", "optimizer.weight_decay=1e-4", "optimizer.warmup=0.1")
        found = {
            "smoke": cls(
                "smoke",
                network=(("batch_norm", True), ("width", 0.25)),
                common=(*adam, "data.std=0.25", _JITTER, "batch.size=20", "validation.every=1000"),
                base=("epochs=50", "optimizer.learning_rate=0.004"),
                fine=("epochs=24", "optimizer.learning_rate=0.002"),
                triplet=("epochs=10", "batch.size=60", "batch.images_each=4", "optimizer.learning_rate=0.0005"),
                share=0.4,
                placement_images=60,
                table_images=60,
                stride=8,
            ),
            "small": cls(
                "small",
                network=(("batch_norm", True), ("width", 0.5)),
                common=(*adam, "data.std=0.25", _JITTER, "batch.size=64", "validation.every=4"),
                base=("epochs=30", "optimizer.learning_rate=0.003"),
                fine=("epochs=5", "optimizer.learning_rate=0.001"),
                triplet=("epochs=3", "batch.size=128", "batch.images_each=4", "optimizer.learning_rate=0.0003"),
                share=0.2,
                placement_images=150,
                table_images=150,
                stride=4,
                control=True,
            ),
            "paper": cls("paper", common=("validation.every=4", "data.workers=8", "data.memory=8GiB")),
        }
        if scale not in found:
            raise ValueError(f"scale: expected one of {', '.join(found)}, got {scale!r}")
        return replace(found[scale], **changes)

    def recipe(self, name: str, seed: int) -> Recipe:
        """Of a network by its name; where it starts and where its occluders go is not known yet."""
        kind = self.base if name == "A" else self.triplet if name[0] in "BC" else self.fine
        arguments = ", ".join(f"{key}: {str(value).lower()}" for key, value in self.network)
        overrides = [
            "data.name=orl",
            f"network.arguments={{{arguments}}}",
            f"validation.share={self.share}",
            "log.tensorboard=false",
            f"seed={seed}",
            *self.common,
            *kind,
        ]
        if name not in ("A", CONTROL):
            overrides.append("start=another step")
        if size_of(name) and not name.endswith("R"):
            overrides.append("occluder.locations=another step")
        return load_recipe("A" if name == CONTROL else name, overrides)


def plan(settings: Settings, sources: Sources, root: Path) -> Graph:
    """The whole experiment, for all seeds."""
    steps: list[Step] = []
    for seed in settings.seeds:
        steps += _Seed(settings, sources, seed).steps()
    return Graph(steps, root, sources.fingerprints)


def targets(graph: Graph, tables: Iterable[int] = TABLES, figures: Iterable[int] = FIGURES) -> list[str]:
    """Names of the steps whose results these tables and figures show."""
    wanted: list[Callable[[str], bool]] = []
    for table in tables:
        if table not in TABLES:
            raise ValueError(f"table: expected one of {', '.join(map(str, TABLES))}, got {table}")
        wanted.append(_named("table ") if table == 1 else _named("verify "))
    for figure in figures:
        if figure not in FIGURES:
            raise ValueError(
                f"figure: expected one of {', '.join(map(str, FIGURES))} (3, 5 and 7 show photographs), got {figure}"
            )
        wanted.append(
            {
                1: _named("map "),
                2: _named("map "),
                4: _named("verify A", "verify B", "verify C", whole=True),
                6: _named("roc "),
            }[figure]
        )
    return [name for name in graph.steps if any(test(name.partition(": ")[2]) for test in wanted)]


def _named(*beginnings: str, whole: bool = False) -> Callable[[str], bool]:
    return lambda name: name in beginnings if whole else name.startswith(beginnings)


class _Seed:
    """The steps of one seed."""

    def __init__(self, settings: Settings, sources: Sources, seed: int) -> None:
        self.settings, self.sources, self.seed = settings, sources, seed

    def name(self, text: str) -> str:
        return f"seed {self.seed}: {text}"

    # -- what is done ----------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        """In an order that a reader follows: Table 1, Table 2, Figure 6."""
        out = [self._train("A")]
        out += [self._map("map", "A", size) for size in SIZES]
        first = [name for name in TABLE_1 if name != "A"] + ([CONTROL] if self.settings.control else [])
        out += [self._train(name) for name in first]
        out += [self._map("table", name, size) for name in ("A", *first) for size in SIZES]
        out += [self._train(name) for name in TABLE_2 if name[0] in "BC"]
        out += [self._judge("verify", name, self._verify) for name in TABLE_2]
        out += [self._judge("roc", name, self._roc) for name in FIGURE_6]
        return out

    def _train(self, name: str) -> Step:
        parent = None if name == "A" else "A" if name[0] == "A" or size_of(name) is None else f"A{name[1:]}"
        occluder = size_of(name)
        placed = occluder is not None and not name.endswith("R")
        recipe = self.settings.recipe(name, self.seed)
        needs = [] if parent is None else [f"train {parent}"]
        if placed and occluder is not None:
            needs.append(f"map A {times(occluder)}")
        work = self._work
        images = recipe.epochs * (work.train // recipe.batch.size * recipe.batch.size)
        stated = asdict(recipe)
        for free in ("device", "log"):
            del stated[free]
        for free in ("root", "in_memory", "memory", "workers"):
            del stated["data"][free]
        return Step(
            self.name(f"train {name}"),
            partial(self._make_network, name, parent, occluder if placed else None),
            settings=stated,
            needs=tuple(map(self.name, needs)),
            data=("train",),
            together=True,
            work=Work(3 * work.flops * images, images, "train", disk=5 * work.weights),
        )

    def _map(self, use: str, name: str, size: tuple[int, int]) -> Step:
        s = self.settings
        count = s.placement_images if use == "map" else s.table_images
        held = int(s.share * self.sources.sizes.train) // 2
        positions = min(count, held) * (-(-100 // s.stride)) ** 2
        about = {
            "seed": self.seed,
            "images": count,
            "share": s.share,
            "use": use,
            "occluder": size,
            "stride": s.stride,
            "method": s.map_method,
            "fill": 0.0,
        }
        return Step(
            self.name(f"{use} {name} {times(size)}"),
            partial(self._make_map, use, name, size),
            settings=about,
            needs=(self.name(f"train {name}"),),
            data=("train",),
            work=Work(
                self._work.flops * positions,
                positions,
                "sweep",
                disk=positions // 10 + 50_000,
                speedup=_SWEEP_SPEEDUP[size],
            ),
        )

    def _judge(self, use: str, name: str, make: Callable[[str, StepContext], dict[str, Any]]) -> Step:
        images = self.sources.sizes.pairs if use == "verify" else self.sources.sizes.ar
        return Step(
            self.name(f"{use} {name}"),
            partial(make, name),
            settings={"flip": "none"},
            needs=(self.name(f"train {name}"),),
            data=("lfw" if use == "verify" else "ar",),
            work=Work(self._work.flops * images, images, "embed", disk=100_000),
        )

    @cached_property
    def _work(self) -> _Sizes:
        people = self.sources.sizes.people
        with torch.random.fork_rng(devices=[]):
            network = build("paper", people, channels=1, size=(100, 100), **dict(self.settings.network))
        weights = 4 * sum(p.numel() for p in network.parameters())
        return _Sizes(
            forward_flops(network, (1, 100, 100)), weights, round((1 - self.settings.share) * self.sources.sizes.train)
        )

    # -- how -------------------------------------------------------------------------------------------

    def _make_network(
        self, name: str, parent: str | None, placed: tuple[int, int] | None, place: StepContext
    ) -> dict[str, Any]:
        recipe = self.settings.recipe(name, self.seed)
        recipe.device = place.device.partition(":")[0]
        if parent is not None:
            recipe.start = str(self._weights(place, parent))
        if placed is not None:
            recipe.occluder.locations = str(place.needs[self.name(f"map A {times(placed)}")].folder / "map.npz")
        if self.sources.train.fits:  # this process keeps them in memory; workers would each read them again
            recipe.data.workers = 0
        output = place.folder / name.replace(" ", "-")
        found = train(recipe, output, resume=True, progress=place.show, faces=self.sources.train)
        if found.stopped == "interrupted":
            raise KeyboardInterrupt
        # The last weights, not the best by validation: the validation images make P and the table.
        metric = (
            {}
            if found.best is None
            else {"validation": found.metric, "best": found.best, "best_epoch": found.best_epoch}
        )
        return {
            "weights": f"{output.name}/last.safetensors",
            "steps": found.steps,
            "epochs": found.epochs,
            "images": found.images,
            **metric,
        }

    def _weights(self, place: StepContext, name: str) -> Path:
        done = place.needs[self.name(f"train {name}")]
        return done.folder / str(done.result["weights"])

    def _network(self, place: StepContext, name: str) -> Trained:
        trained = load_network(self._weights(place, name))
        trained.network.to(place.device)
        return trained

    def _held(self, use: str) -> Tensor:
        """Numbers of the images for P or for the table: halves of what is kept out of training, in random order."""
        held = split(self.sources.train, ValidationPart(share=self.settings.share), 1, self.seed)[1]
        order = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(self.seed))]
        half = len(order) // 2
        return order[:half] if use == "map" else order[half:]

    def _make_map(self, use: str, name: str, size: tuple[int, int], place: StepContext) -> dict[str, Any]:
        s, faces = self.settings, self.sources.train
        trained, held = self._network(place, name), self._held(use)
        classes = torch.tensor([trained.people.index(person) for person in faces.people])
        labels = classes[faces.labels[held]]
        model = trained.classifier()
        right, wanted = [], s.placement_images if use == "map" else s.table_images
        for rows in torch.arange(len(held)).split(64):
            images = trained.preprocessing(faces.images(held[rows])).to(place.device)
            right.append(predict(model, images, batch_size=16).argmax(1).cpu() == labels[rows])
        flags = torch.cat(right)
        chosen = flags.nonzero()[:, 0][:wanted]
        if not len(chosen):
            raise ValueError(
                f"{name}: recognizes none of {len(held)} held-out faces, so there is nothing to map; train longer"
            )
        found = occlusion_map(
            model,
            trained.preprocessing(faces.images(held[chosen])).to(place.device),
            labels[chosen].to(place.device),
            occluder=size,
            stride=s.stride,
            method=s.map_method,
            progress=place.show,
            checkpoint=place.folder / "map.checkpoint",
            group=False,  # other processes are at other maps
        )
        found.save(place.folder / "map.npz")
        mean, std = found.accuracy
        return {
            "mean": mean,
            "std": std,
            "images": found.n_images,
            "clean": float(flags.double().mean()),
            "held": len(held),
            "evaluations": found.n_evaluations,
            "method": found.method,
            "brief": f"{100 * mean:.2f} ± {100 * std:.2f} % over locations",
        }

    def _embed(
        self, trained: Trained, faces: Any, indices: Tensor, place: StepContext, title: str, cover: Any = None
    ) -> Tensor:
        """Features by image number, [len(faces), D], NaN where not asked for."""
        found = embed(
            features(trained.network),
            faces,
            trained.preprocessing,
            indices=indices.unique(),
            occlusion=cover,
            flip="none",
            device=place.device,
            progress=place.show,
            title=title,
        )
        table = torch.full((len(faces), found.features.shape[1]), torch.nan)
        table[indices.unique()] = found.features
        return table

    def _verify(self, name: str, place: StepContext) -> dict[str, Any]:
        trained, (faces, protocol) = self._network(place, name), self.sources.pairs
        table = self._embed(trained, faces, protocol.index, place, f"pairs, {name}")
        scores = _scores(table, table, protocol.index)
        judged = verification(scores, protocol.same, protocol.folds)
        write_npz(place.folder / "scores.npz", scores=scores.numpy(), same=protocol.same.numpy())
        return {
            **judged.as_dict(),
            **distributions(scores, protocol.same),
            "brief": f"accuracy {100 * (judged.accuracy or 0):.2f} %",
        }

    def _roc(self, name: str, place: StepContext) -> dict[str, Any]:
        trained, (faces, conditions) = self._network(place, name), self.sources.ar
        references = self._embed(trained, faces, conditions[0].protocol.index[:, 0], place, f"references, {name}")
        out = {}
        for condition in conditions:
            protocol = condition.protocol
            queries = self._embed(
                trained, faces, protocol.index[:, 1], place, f"{condition.name}, {name}", condition.cover
            )
            judged = verification(_scores(references, queries, protocol.index), protocol.same, None)
            far, tar, _ = judged.roc.points(400)
            out[condition.name] = {
                "auc": judged.auc,
                "eer": judged.eer,
                "n_same": judged.n_same,
                "n_different": judged.n_different,
                "tar_at_far": [_plain(entry) for entry in judged.tar_at_far.values()],
                "far": [float(v) for v in far],
                "tar": [float(v) for v in tar],
            }
        return {"conditions": out}


@dataclass(frozen=True)
class _Sizes:
    flops: float  # of a forward pass of one face
    weights: int  # bytes
    train: int  # images trained on


def _plain(entry: TarAtFar) -> dict[str, Any]:
    return entry.as_dict()


def _scores(references: Tensor, queries: Tensor, index: Tensor) -> Tensor:
    first, i = index[:, 0].unique(return_inverse=True)
    second, j = index[:, 1].unique(return_inverse=True)
    return pair_scores(references[first], queries[second], i, j)


def distributions(scores: Tensor, same: Tensor, bins: int = 50) -> dict[str, Any]:
    """Figure 4: histograms of the scores of pairs of one person and of two, and how far apart they are.

    The scores are cosine similarities; the squared Euclidean distance of unit features, the paper's d, is 2 − 2·score,
    and the decidability of Eq. 8 is the same for both.
    """
    positive, negative = scores[same].double(), scores[~same].double()
    edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64)
    spread = ((positive.var(correction=0) + negative.var(correction=0)) / 2).sqrt()
    gap = positive.mean() - negative.mean()
    return {
        "distribution": {
            "edges": edges.tolist(),
            "same": torch.histogram(positive, edges).hist.int().tolist(),
            "different": torch.histogram(negative, edges).hist.int().tolist(),
        },
        "gap": float(gap),
        "decidability": float(gap.abs() / spread),
        "std_same": float(positive.std(correction=0)),
        "std_different": float(negative.std(correction=0)),
    }


__all__ = ["CONTROL", "FIGURES", "FIGURE_6", "TABLES", "TABLE_1", "TABLE_2", "Settings", "plan", "targets"]
