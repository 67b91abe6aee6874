"""Sáez Trigueros, Meng and Hartnett (2018): the paper's tables and figures as a graph of steps.

A learns to classify people. Occlusion maps of A show where covering a face hurts (Figure 1) and where noisy occluders
are placed (Eq. 4, Figure 2). Six networks are fine-tuned with these occluders and mapped again (Table 1), eight more
with the triplet loss and the batch triplet loss (Figure 4). Twelve networks are evaluated on LFW's pairs (Table 2) and
four on AR's occlusions (Figure 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data import FaceDataset, Subset
from ...evaluate import TarAtFar, embed, pair_scores, verification
from ...files import write_npz
from ...models import build, features
from ...sweep import occlusion_map
from ...train import Trained, load_network, predict, split, train
from ...train.recipe import ValidationPart
from ..cost import forward_flops
from ..graph import Graph, Step, StepContext, Work
from .settings import FIGURE_6, SIZES, TABLE_2, Settings, size_of, times
from .sources import Sources, split_by_person

#: Speed of the exact sweep over plain dense PyTorch on W1 with a center on every pixel: bench/results/sweep-cpu.json.
SWEEP_SPEEDUP = {(20, 20): 7.39, (20, 40): 7.42, (40, 40): 5.21}


def plan(settings: Settings, sources: Sources, root: Path) -> Graph:
    """Return the graph of the whole experiment, for all seeds."""
    steps: list[Step] = []
    for seed in settings.seeds:
        steps += _Seed(settings, sources, seed).steps()
    return Graph(steps, root, sources.fingerprints)


def targets(graph: Graph, settings: Settings, tables: Iterable[int], figures: Iterable[int]) -> list[str]:
    """List the steps whose results these tables and figures show."""
    wanted: list[Callable[[str], bool]] = []
    for table in tables:
        if table not in settings.tables:
            raise ValueError(f"table: expected one of {', '.join(map(str, settings.tables))}, got {table}")
        wanted.append(_named("table ") if table == 1 else _named("verify "))
    for figure in figures:
        if figure not in settings.figures:
            known = ", ".join(map(str, settings.figures))
            raise ValueError(f"figure: expected one of {known} (3, 5 and 7 show photographs), got {figure}")
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


def parts(settings: Settings, faces: FaceDataset, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of the images for training, for P and for Table 1; no image is in two parts."""
    if settings.split is not None:
        trained, placement, table = split_by_person(faces.labels, settings.split, seed)
        return trained, placement, table
    trained, held = split(faces, ValidationPart(share=settings.share), 1, seed)
    order = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(seed))]
    half = len(order) // 2
    return trained, order[:half], order[half:]


class _Seed:
    """The steps of one seed."""

    def __init__(self, settings: Settings, sources: Sources, seed: int) -> None:
        self.settings, self.sources, self.seed = settings, sources, seed

    def name(self, text: str) -> str:
        return f"seed {self.seed}: {text}"

    # -- the graph -------------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        """Return the steps in the order of the paper: Table 1, Table 2, Figure 6."""
        rows = self.settings.rows
        out = [self._train("A")]
        out += [self._map("map", "A", size) for size in SIZES]
        out += [self._train(name) for name in rows[1:]]
        out += [self._map("table", name, size) for name in rows for size in SIZES]
        if 2 in self.settings.tables:
            out += [self._train(name) for name in TABLE_2 if name[0] in "BC"]
            out += [self._evaluate("verify", name, self._verify) for name in TABLE_2]
        if 6 in self.settings.figures:
            out += [self._evaluate("roc", name, self._roc) for name in FIGURE_6]
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
            settings={**stated, **self._stated_split},
            needs=tuple(map(self.name, needs)),
            data=("train",),
            together=True,
            work=Work(3 * work.flops * images, images, "train", disk=5 * work.weights),
        )

    def _map(self, use: str, name: str, size: tuple[int, int]) -> Step:
        s = self.settings
        count = s.placement_images if use == "map" else s.table_images
        positions = min(count, self._work.held) * (-(-100 // s.stride)) ** 2
        stated = {
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
            settings={**stated, **self._stated_split},
            needs=(self.name(f"train {name}"),),
            data=("train",),
            work=Work(
                self._work.flops * positions,
                positions,
                "sweep",
                disk=positions // 10 + 50_000,
                speedup=SWEEP_SPEEDUP[size],
            ),
        )

    def _evaluate(self, use: str, name: str, make: Callable[[str, StepContext], dict[str, Any]]) -> Step:
        images = self.sources.sizes.pairs if use == "verify" else self.sources.sizes.ar
        return Step(
            self.name(f"{use} {name}"),
            partial(make, name),
            settings={"flip": "none"},
            needs=(self.name(f"train {name}"),),
            data=("lfw" if use == "verify" else "ar",),
            work=Work(self._work.flops * images, images, "embed", disk=100_000),
        )

    @property
    def _stated_split(self) -> dict[str, Any]:
        split = self.settings.split
        # "by image": until 0.1.0 the split depended on the number of images; such results must not be mixed.
        return {"split": "by image"} if split is None else {"split": split, "split_seed": self.seed}

    @cached_property
    def _work(self) -> _Sizes:
        sizes, s = self.sources.sizes, self.settings
        with torch.random.fork_rng(devices=[]):
            network = build("paper", sizes.people, channels=1, size=(100, 100), **dict(s.network))
        weights = 4 * sum(p.numel() for p in network.parameters())
        held = int(s.share * sizes.train) // 2 if s.split is None else s.split[1] * sizes.people
        trained = round((1 - s.share) * sizes.train) if s.split is None else s.split[0] * sizes.people
        return _Sizes(forward_flops(network, (1, 100, 100)), weights, trained, held)

    # -- the work -------------------------------------------------------------------------------------------

    def _make_network(
        self, name: str, parent: str | None, placed: tuple[int, int] | None, context: StepContext
    ) -> dict[str, Any]:
        recipe = self.settings.recipe(name, self.seed)
        recipe.device = context.device.partition(":")[0]
        if parent is not None:
            recipe.start = str(self._weights(context, parent))
        if placed is not None:
            recipe.occluder.locations = str(context.needs[self.name(f"map A {times(placed)}")].folder / "map.npz")
        if self.sources.train.fits:  # this process keeps them in memory; workers would each read them again
            recipe.data.workers = 0
        faces: FaceDataset = self.sources.train
        if self.settings.split is not None:  # otherwise training splits the data set in the same way
            faces = Subset(faces, parts(self.settings, faces, self.seed)[0])
        output = context.folder / name.replace(" ", "-")
        found = train(recipe, output, resume=True, progress=context.progress, faces=faces)
        if found.stopped == "interrupted":
            raise KeyboardInterrupt
        # The last weights, not the best by validation: the validation images give P and the table.
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

    def _weights(self, context: StepContext, name: str) -> Path:
        done = context.needs[self.name(f"train {name}")]
        return done.folder / str(done.result["weights"])

    def _network(self, context: StepContext, name: str) -> Trained:
        trained = load_network(self._weights(context, name))
        trained.network.to(context.device)
        return trained

    def _make_map(self, use: str, name: str, size: tuple[int, int], context: StepContext) -> dict[str, Any]:
        s, faces = self.settings, self.sources.train
        trained, held = self._network(context, name), parts(s, faces, self.seed)[1 if use == "map" else 2]
        classes = torch.tensor([trained.people.index(person) for person in faces.people])
        labels = classes[faces.labels[held]]
        model = trained.classifier()
        right, wanted = [], s.placement_images if use == "map" else s.table_images
        for rows in torch.arange(len(held)).split(64):
            images = trained.preprocessing(faces.images(held[rows])).to(context.device)
            right.append(predict(model, images, batch_size=16).argmax(1).cpu() == labels[rows])
        flags = torch.cat(right)
        chosen = flags.nonzero()[:, 0][:wanted]
        if not len(chosen):
            raise ValueError(
                f"{name}: recognizes none of the {len(held)} held-out faces, so there is nothing to map; train longer"
            )
        found = occlusion_map(
            model,
            trained.preprocessing(faces.images(held[chosen])).to(context.device),
            labels[chosen].to(context.device),
            occluder=size,
            stride=s.stride,
            method=s.map_method,
            progress=context.progress,
            checkpoint=context.folder / "map.checkpoint",
            group=False,  # other processes compute other maps
        )
        found.save(context.folder / "map.npz")
        write_npz(context.folder / "images.npz", mapped=held[chosen].numpy(), held=held.numpy())
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
        self, trained: Trained, faces: Any, indices: Tensor, context: StepContext, title: str, cover: Any = None
    ) -> Tensor:
        """Return features by image number, [len(faces), D], NaN for images that are not in ``indices``."""
        found = embed(
            features(trained.network),
            faces,
            trained.preprocessing,
            indices=indices.unique(),
            occlusion=cover,
            flip="none",
            device=context.device,
            progress=context.progress,
            title=title,
        )
        table = torch.full((len(faces), found.features.shape[1]), torch.nan)
        table[indices.unique()] = found.features
        return table

    def _verify(self, name: str, context: StepContext) -> dict[str, Any]:
        trained, (faces, protocol) = self._network(context, name), self.sources.pairs
        table = self._embed(trained, faces, protocol.index, context, f"pairs, {name}")
        scores = _scores(table, table, protocol.index)
        found = verification(scores, protocol.same, protocol.folds)
        write_npz(context.folder / "scores.npz", scores=scores.numpy(), same=protocol.same.numpy())
        return {
            **found.as_dict(),
            **distributions(scores, protocol.same),
            "brief": f"accuracy {100 * (found.accuracy or 0):.2f} %",
        }

    def _roc(self, name: str, context: StepContext) -> dict[str, Any]:
        trained, (faces, conditions) = self._network(context, name), self.sources.ar
        references = self._embed(trained, faces, conditions[0].protocol.index[:, 0], context, f"references, {name}")
        out = {}
        for condition in conditions:
            protocol = condition.protocol
            queries = self._embed(
                trained, faces, protocol.index[:, 1], context, f"{condition.name}, {name}", condition.cover
            )
            found = verification(_scores(references, queries, protocol.index), protocol.same, None)
            far, tar, _ = found.roc.points(400)
            out[condition.name] = {
                "auc": found.auc,
                "eer": found.eer,
                "n_same": found.n_same,
                "n_different": found.n_different,
                "tar_at_far": [_plain(entry) for entry in found.tar_at_far.values()],
                "far": [float(v) for v in far],
                "tar": [float(v) for v in tar],
            }
        return {"conditions": out}


@dataclass(frozen=True)
class _Sizes:
    flops: float  # of a forward pass of one face
    weights: int  # bytes
    train: int  # images trained on
    held: int  # images for P, and for the table


def _plain(entry: TarAtFar) -> dict[str, Any]:
    return entry.as_dict()


def _scores(references: Tensor, queries: Tensor, index: Tensor) -> Tensor:
    first, i = index[:, 0].unique(return_inverse=True)
    second, j = index[:, 1].unique(return_inverse=True)
    return pair_scores(references[first], queries[second], i, j)


def distributions(scores: Tensor, same: Tensor, bins: int = 50) -> dict[str, Any]:
    """Compute Figure 4: histograms of the scores of pairs of one person and of two, and their separation.

    The scores are cosine similarities. The squared Euclidean distance of unit features, the paper's d, is 2 − 2·score;
    the decidability of Eq. 8 is the same for both.
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


__all__ = ["distributions", "plan", "targets"]
