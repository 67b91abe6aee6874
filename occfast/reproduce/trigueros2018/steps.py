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

import numpy as np
import torch
from torch import Tensor

from ...data import FaceDataset, Subset
from ...evaluate import TarAtFar, embed, pair_scores, verification
from ...files import read_npz, write_npz
from ...models import build, features
from ...sweep import occlusion_map
from ...train import Trained, load_network, predict, split, train
from ...train.recipe import ValidationPart
from ..cost import forward_flops
from ..graph import Graph, Step, StepContext, Work
from .settings import FIGURE_6, SIZES, TABLE_2, Settings, scheme_of, size_of, times
from .sources import Sources, split_by_person

#: Networks that are mapped at every second pixel too, to tell what the stride of Table 1 changes.
FINER, FINER_STRIDE = ("A", "A40x40"), 2
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
        wanted.append(_named("table ", "finer ") if table == 1 else _named("verify "))
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
    count = int(settings.placement_share * len(order))
    return trained, order[:count], order[count:]


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
        if self.settings.same_images:
            out.append(self._recognized())
        out += [self._map("table", name, size) for name in rows for size in SIZES]
        if self.settings.finer_images and self.seed == self.settings.seeds[0]:
            out += [self._map("finer", name, size) for name in FINER for size in SIZES]
        if 2 in self.settings.tables:
            out += [self._train(name) for name in TABLE_2 if name[0] in "BC"]
            out += [self._evaluate("verify", name, self._verify) for name in TABLE_2]
        if 6 in self.settings.figures:
            out += [self._evaluate("roc", name, self._roc) for name in FIGURE_6]
        return out

    def _train(self, name: str) -> Step:
        parent = None if name == "A" else "A" if name[0] == "A" or size_of(name) is None else f"A{name[1:]}"
        occluder = size_of(name)
        scheme = scheme_of(name)
        placed = scheme is not None and scheme.locations == "map"
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
        count = self._wanted(use)
        stride = FINER_STRIDE if use == "finer" else s.stride
        positions = min(count, self._work.held if use == "map" else self._work.tested) * (-(-100 // stride)) ** 2
        stated = {
            "seed": self.seed,
            "images": count,
            "share": s.share,
            "placement_share": s.placement_share,
            "use": use,
            "occluder": size,
            "stride": stride,
            "method": s.map_method,
            "fill": 0.0,
        }
        needs = [f"train {name}"] + (["recognized"] if use != "map" and s.same_images else [])
        return Step(
            self.name(f"{use} {name} {times(size)}"),
            partial(self._make_map, use, name, size),
            settings={**stated, **self._stated_split},
            needs=tuple(map(self.name, needs)),
            data=("train",),
            work=Work(
                self._work.flops * positions,
                positions,
                "sweep",
                disk=positions // 10 + 50_000,
                speedup=SWEEP_SPEEDUP[size],
            ),
        )

    def _wanted(self, use: str) -> int:
        s = self.settings
        return {"map": s.placement_images, "table": s.table_images, "finer": s.finer_images}[use]

    def _recognized(self) -> Step:
        rows, images = self.settings.rows, self._work.tested
        return Step(
            self.name("recognized"),
            self._make_recognized,
            settings={
                "share": self.settings.share,
                "placement_share": self.settings.placement_share,
                **self._stated_split,
            },
            needs=tuple(self.name(f"train {name}") for name in rows),
            data=("train",),
            work=Work(self._work.flops * images * len(rows), images * len(rows), "embed", disk=100_000),
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
        out = int(s.share * sizes.train)
        held = int(s.placement_share * out) if s.split is None else s.split[1] * sizes.people
        tested = out - held if s.split is None else s.split[2] * sizes.people
        trained = round((1 - s.share) * sizes.train) if s.split is None else s.split[0] * sizes.people
        return _Sizes(forward_flops(network, (1, 100, 100)), weights, trained, held, tested)

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
        labels = self._classes(trained)[faces.labels[held]]
        if use == "map" or not s.same_images:
            flags = self._right(trained, held, context)
            able = flags
        else:
            found_ = read_npz(context.needs[self.name("recognized")].folder / "flags.npz")
            flags = torch.from_numpy(found_["right"][s.rows.index(name)])
            able = torch.from_numpy(found_["right"].all(0))
        chosen = able.nonzero()[:, 0][: self._wanted(use)]
        if not len(chosen):
            who = name if able is flags else "all networks of the table together"
            raise ValueError(
                f"{who}: none of the {len(held)} held-out faces is recognized, so there is nothing to map; train longer"
            )
        found = occlusion_map(
            trained.classifier(),
            trained.preprocessing(faces.images(held[chosen])).to(context.device),
            labels[chosen].to(context.device),
            occluder=size,
            stride=FINER_STRIDE if use == "finer" else s.stride,
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

    def _classes(self, trained: Trained) -> Tensor:
        """Return the network's class of each person of the training set, int64 [people]."""
        return torch.tensor([trained.people.index(person) for person in self.sources.train.people])

    def _right(self, trained: Trained, held: Tensor, context: StepContext) -> Tensor:
        """Tell which of these images a network recognizes, bool [len(held)]."""
        faces, model, right = self.sources.train, trained.classifier(), []
        labels = self._classes(trained)[faces.labels[held]]
        for rows in torch.arange(len(held)).split(64):
            images = trained.preprocessing(faces.images(held[rows])).to(context.device)
            right.append(predict(model, images, batch_size=16).argmax(1).cpu() == labels[rows])
        return torch.cat(right)

    def _make_recognized(self, context: StepContext) -> dict[str, Any]:
        held = parts(self.settings, self.sources.train, self.seed)[2]
        right = torch.stack([self._right(self._network(context, name), held, context) for name in self.settings.rows])
        write_npz(context.folder / "flags.npz", right=right.numpy(), held=held.numpy())
        everyone = int(right.all(0).sum())
        return {
            "held": len(held),
            "common": everyone,
            "brief": f"all networks recognize {everyone} of {len(held)} images",
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
        scores = scores_of(table, table, protocol.index)
        found = verification(scores, protocol.same, protocol.folds)
        assert found.correct is not None
        write_npz(context.folder / "scores.npz", scores=scores.numpy(), correct=np.asarray(found.correct))
        return {
            **found.as_dict(),
            **distributions(scores, protocol.same),
            "brief": f"accuracy {100 * (found.accuracy or 0):.2f} %",
        }

    def _roc(self, name: str, context: StepContext) -> dict[str, Any]:
        trained, (faces, conditions) = self._network(context, name), self.sources.ar
        references = self._embed(trained, faces, conditions[0].protocol.index[:, 0], context, f"references, {name}")
        out, kept = {}, {}
        for condition in conditions:
            protocol = condition.protocol
            queries = self._embed(
                trained, faces, protocol.index[:, 1], context, f"{condition.name}, {name}", condition.cover
            )
            scores = scores_of(references, queries, protocol.index)
            kept[condition.name] = scores.numpy().astype(np.float32)
            found = verification(scores, protocol.same, None)
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
        write_npz(context.folder / "scores.npz", **kept)
        return {"conditions": out}


@dataclass(frozen=True)
class _Sizes:
    flops: float  # of a forward pass of one face
    weights: int  # bytes
    train: int  # images trained on
    held: int  # images for P
    tested: int  # images for the table


def _plain(entry: TarAtFar) -> dict[str, Any]:
    return entry.as_dict()


def scores_of(references: Tensor, queries: Tensor, index: Tensor) -> Tensor:
    """Return the cosine of each pair of ``index``, [P, 2], from tables of features by image number; others are NaN."""
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


__all__ = ["distributions", "plan", "scores_of", "targets"]
