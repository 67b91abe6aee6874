"""Table 2 on a frozen trunk as a graph of steps.

The trunk's features are computed once. A is a head trained on them to classify people; maps of A with the trunk give P,
and the trunk's features of drawn occluders are computed once, too. Hyperparameters are chosen on people whom no network
is trained on. Then each seed trains A, B and C and those with occluders, and only the last step of a seed reads LFW's
pairs.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....data import Subset
from ....evaluate import PairProtocol
from ....evaluate.protocols import drawn_pairs
from ....files import write_npz
from ....models.tensor_files import read_tensors, write_tensors
from ....occlude.noisy import NoisyOccluder
from ....sweep import OcclusionMap, Sampled, occlusion_map
from ....train import split
from ....train.augment import TEMPERATURES
from ....train.recipe import ValidationPart
from ...cost import forward_flops
from ...graph import Graph, Step, StepContext, Work
from ..settings import times
from . import features
from .choices import choose_base, choose_cover, choose_stage
from .heads import Examples, Network, classify, from_weights, joined, separate, weights
from .measures import measure
from .settings import LOSSES, STAGES, TrunkSettings
from .sources import SIZES as IMAGES
from .sources import Trunk, TrunkSources

#: Keys of the occluders of the two sets of training images lie this far apart, those of two draws much further.
_SETS = {"train": 0, "others": 1_000_000}
_DRAW = 10_000_000
#: Settings that networks depend on: those without occluders, and those with them besides.
_STAGE = ("feature_size", "share", "dropout", "batch", "base_rate", "people_each", "images_each")
_COVER = ("feature_size", "share", "dropout", "batch", "base_rate", "draws", "fine_epochs", "fine_rate")
_HEADS = "heads.safetensors"


def named(loss: str, end: str, stage: str) -> str:
    """Return the key of a network of the triplet stage, such as "B20x40 other"."""
    return f"{loss}{end} {stage}"


class Plan:
    """The steps of all seeds.

    Args:
        settings: of the run.
        sources: of the run.
    """

    def __init__(self, settings: TrunkSettings, sources: TrunkSources) -> None:
        self.settings, self.sources = settings, sources

    def graph(self, root: Path) -> Graph:
        """Return the graph."""
        s = self.settings
        steps = [self._features(name) for name in ("train", "choosing", "others")]
        steps += [self._choose_base(), self._choose_stage()]
        if s.occluders:
            steps += [self._placement()]
            steps += [self._map(name) for name in s.occluders]
            steps += [self._covered(of, name, draw) for draw in range(s.draws) for name in s.occluders for of in _SETS]
            steps += [self._choose_cover()]
        steps.append(self._features("lfw"))
        for end in s.ends:
            for seed in s.seeds:
                steps += [self._networks(seed, end), self._verify(seed, end)]
        return Graph(steps, root, self.sources.fingerprints)

    # -- features -------------------------------------------------------------------------------------------

    def _features(self, name: str) -> Step:
        count = self._count(name)
        return Step(
            f"features {name}",
            partial(self._make_features, name),
            settings={"layer": "linear7"},
            data=("trunk", name),
            work=Work(self._flops * count, count, "embed", disk=4 * count * 512),
        )

    def _make_features(self, name: str, context: StepContext) -> dict[str, Any]:
        faces = self.sources.faces(name)
        indices = torch.arange(len(faces)) if name != "lfw" else self.sources.protocol("lfw").index.unique()
        features.compute(
            self.sources.trunk().to(context.device),
            faces,
            self.sources.preprocessing,
            indices,
            context.folder / features.FILE,
            device=context.device,
            progress=context.progress,
            title=f"features, {name}",
        )
        return {"images": len(indices), "brief": f"{len(indices):,} images"}

    def _count(self, name: str) -> int:
        return len(self.sources.faces(name)) if name != "lfw" and self.sources.here else IMAGES[name]

    @cached_property
    def _flops(self) -> float:
        from ....models import MobileFaceNet

        with torch.random.fork_rng(devices=[]):
            return forward_flops(Trunk(MobileFaceNet()), (3, 112, 96))

    # -- who is trained on --------------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Numbers of the images of "train" that A is trained on, and of those that are held out for P."""
        return split(self.sources.train, ValidationPart(share=self.settings.share), 1, 0)

    def _loaded(self, context: StepContext, name: str) -> Tensor:
        done = context.needs[f"features {name}"]
        return features.load(done.folder / features.FILE, int(done.result["images"]))

    def examples(self, context: StepContext, of: str, end: str = "", covered: float = 0.0) -> Examples:
        """Return the features of a set to train on, with those under the occluder ``end``."""
        faces, clean = self.sources.faces(of), self._loaded(context, of)
        labels = faces.labels
        if of == "train":
            clean, labels = clean[self.parts[0]], labels[self.parts[0]]
        drawn = []
        for draw in range(self.settings.draws if end else 0):
            done = context.needs[_covered_name(of, end, draw)]
            drawn.append(features.load(done.folder / features.FILE, len(labels)))
        return Examples(clean, labels, tuple(drawn), covered)

    def stage(self, context: StepContext, stage: str, end: str = "", covered: float = 0.0) -> Examples:
        """Return what the triplet stage trains on: "same", "other" or "all" people."""
        sets = {"same": ("train",), "other": ("others",), "all": ("train", "others")}[stage]
        return joined(*(self.examples(context, of, end, covered) for of in sets))

    # -- hyperparameters ------------------------------------------------------------------------------------------

    def _choose_base(self) -> Step:
        s = self.settings
        stated = {
            name: getattr(s, name)
            for name in ("feature_size", "share", "dropout", "batch", "base_epochs", "base_rate", "choosing_seeds")
        }
        return Step(
            "choose A",
            self._make_choice_of_base,
            settings=stated,
            needs=("features train", "features choosing"),
            data=("train", "choosing"),
        )

    def _make_choice_of_base(self, context: StepContext) -> dict[str, Any]:
        pairs = self.sources.protocol("choosing")
        return choose_base(self.settings, self.examples(context, "train"), self._loaded(context, "choosing"), pairs)

    def _choose_stage(self) -> Step:
        stated = {name: getattr(self.settings, name) for name in (*_STAGE, "rates", "epochs", "choosing_seeds")}
        return Step(
            "choose B and C",
            self._make_choice_of_stage,
            settings=stated,
            needs=("features train", "features choosing", "features others", "choose A"),
            data=("train", "others", "choosing"),
        )

    def _make_choice_of_stage(self, context: StepContext) -> dict[str, Any]:
        return choose_stage(
            self.settings,
            _epochs_of(context),
            self.examples(context, "train"),
            partial(self.stage, context),
            self._loaded(context, "choosing"),
            self.sources.protocol("choosing"),
        )

    def _choose_cover(self) -> Step:
        stated = {name: getattr(self.settings, name) for name in (*_COVER, "covered", "choosing_seeds")}
        needs = [
            _covered_name("train", end, draw) for draw in range(self.settings.draws) for end in self.settings.occluders
        ]
        return Step(
            "choose occluders",
            self._make_choice_of_cover,
            settings=stated,
            needs=("features train", "features choosing", "choose A", *needs),
            data=("train", "choosing"),
        )

    def _make_choice_of_cover(self, context: StepContext) -> dict[str, Any]:
        return choose_cover(
            self.settings,
            _epochs_of(context),
            self.examples(context, "train"),
            lambda size, share: self.examples(context, "train", times(size), share),
            self._loaded(context, "choosing"),
            self.sources.protocol("choosing"),
        )

    # -- occluders ------------------------------------------------------------------------------------------------

    def _placement(self) -> Step:
        stated = {name: getattr(self.settings, name) for name in ("feature_size", "share", "dropout", "batch")}
        return Step(
            "A for P",
            self._make_placement,
            settings={**stated, "rate": self.settings.base_rate, "seed": self.settings.choosing_seeds[0]},
            needs=("features train", "choose A"),
            data=("train",),
        )

    def _make_placement(self, context: StepContext) -> dict[str, Any]:
        s, epochs = self.settings, _epochs_of(context)
        examples = self.examples(context, "train")
        found = classify(s, examples, s.choosing_seeds[0], epochs=(epochs,), rate=s.base_rate)[epochs]
        write_tensors(context.folder / _HEADS, weights({"A": found}), {})
        held, faces = self.parts[1], self.sources.train
        accuracy = found.accuracy(self._loaded(context, "train")[held], faces.labels[held])
        return {"accuracy": accuracy, "brief": f"{100 * accuracy:.2f} % of held-out images recognized"}

    def _map(self, end: str) -> Step:
        s, size = self.settings, self.settings.sizes[end]
        positions = s.map_images * round(112 / s.map_spacing) * round(96 / s.map_spacing)
        return Step(
            f"map A {times(size)}",
            partial(self._make_map, size),
            settings={
                **{name: getattr(s, name) for name in ("share", "map_images", "map_spacing", "precision")},
                "occluder": size,
            },
            needs=("A for P",),
            data=("trunk", "train"),
            work=Work(self._flops * positions, positions, "sweep", disk=50_000),
        )

    def _make_map(self, size: tuple[int, int], context: StepContext) -> dict[str, Any]:
        s, faces, held = self.settings, self.sources.train, self.parts[1]
        base = from_weights(read_tensors(context.needs["A for P"].folder / _HEADS)[0])["A"]
        assert base.classifier is not None
        model = nn.Sequential(self.sources.trunk(), base.head, base.classifier).eval().requires_grad_(False)
        model.to(context.device)
        order = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(0))]
        images = self.sources.preprocessing(faces.images(order[: s.map_images])).to(context.device)
        found = occlusion_map(
            model,
            images,
            faces.labels[order[: s.map_images]].to(context.device),
            size,
            method=Sampled(spacing=s.map_spacing),
            precision="bf16" if s.precision == "bf16" else None,
            batch_size=16 if context.device == "cpu" else None,
            checkpoint=context.folder / "map.checkpoint",
            progress=context.progress,
            group=False,
        )
        found.save(context.folder / "map.npz")
        mean, std = found.accuracy
        return {
            "mean": mean,
            "std": std,
            "images": found.n_images,
            "evaluations": found.n_evaluations,
            "brief": f"{100 * mean:.2f} ± {100 * std:.2f} % over locations",
        }

    def _covered(self, of: str, end: str, draw: int) -> Step:
        s, size = self.settings, self.settings.sizes[end]
        count = round(self._count(of) * ((1 - s.share) if of == "train" else 1))
        return Step(
            _covered_name(of, end, draw),
            partial(self._make_covered, of, size, draw),
            settings={
                "layer": "linear7",
                "share": s.share,
                "precision": s.precision,
                "temperature": TEMPERATURES[size],
            },
            needs=(f"map A {times(size)}",),
            data=("trunk", of),
            work=Work(self._flops * count, count, "embed", disk=4 * count * 512),
        )

    def _make_covered(self, name: str, size: tuple[int, int], draw: int, context: StepContext) -> dict[str, Any]:
        faces = self.sources.faces(name)
        indices = self.parts[0] if name == "train" else torch.arange(len(faces))
        found = OcclusionMap.load(context.needs[f"map A {times(size)}"].folder / "map.npz")
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        features.compute(
            self.sources.trunk().to(context.device, dtype),
            faces,
            self.sources.preprocessing,
            indices,
            context.folder / features.FILE,
            device=context.device,
            occluder=NoisyOccluder(size, found.distribution(TEMPERATURES[size]), seed=0),
            first_id=_SETS[name] + draw * _DRAW,
            dtype=dtype,
            progress=context.progress,
            title=f"{name} under {times(size)}",
        )
        return {"images": len(indices), "brief": f"{len(indices):,} images"}

    # -- a seed ---------------------------------------------------------------------------------------------------

    def _networks(self, seed: int, end: str) -> Step:
        s = self.settings
        needs = ["features train", "features others", "choose A", "choose B and C"]
        stated = {name: getattr(s, name) for name in _STAGE}
        if end:
            needs += ["choose occluders", f"seed {seed}: networks"]
            needs += [_covered_name(of, end, draw) for draw in range(s.draws) for of in _SETS]
            stated |= {name: getattr(s, name) for name in _COVER}
        return Step(
            f"seed {seed}: {step_of('networks', end)}",
            partial(self._make_networks, seed, end),
            settings={**stated, "seed": seed},
            needs=tuple(needs),
            data=("train", "others"),
            work=Work(disk=(1 + len(LOSSES) * len(STAGES)) * 4 * s.feature_size * 513),
        )

    def _make_networks(self, seed: int, end: str, context: StepContext) -> dict[str, Any]:
        s, clean = self.settings, self.examples(context, "train")
        chosen = context.needs["choose B and C"].result["stage"]
        if end:
            covered = float(context.needs["choose occluders"].result["covered"])
            before, _ = read_tensors(context.needs[f"seed {seed}: networks"].folder / _HEADS)
            epochs, rate, start = s.fine_epochs, s.fine_rate, from_weights(before)["A"]
        else:
            covered, epochs, rate, start = 0.0, _epochs_of(context), s.base_rate, None
        base = classify(
            s, self.examples(context, "train", end, covered), seed, epochs=(epochs,), rate=rate, start=start
        )[epochs]
        networks = {f"A{end}": base}
        for stage in STAGES:
            on = self.stage(context, stage, end, covered)
            for loss, criterion in LOSSES.items():
                epochs, rate = int(chosen[loss][stage]["epochs"]), float(chosen[loss][stage]["rate"])
                networks[named(loss, end, stage)] = separate(
                    s, on, seed, loss=criterion, epochs=(epochs,), rate=rate, start=base
                )[epochs]
        write_tensors(context.folder / _HEADS, weights(networks), {})
        pairs = drawn_pairs(Subset(self.sources.train, self.parts[0]), folds=2)
        facts: dict[str, Any] = {key: _facts(network, clean, pairs, end) for key, network in networks.items()}
        held, labels = self._loaded(context, "train")[self.parts[1]], self.sources.train.labels[self.parts[1]]
        facts[f"A{end}"] |= {"training": base.accuracy(clean.clean, clean.labels), "held": base.accuracy(held, labels)}
        return {"networks": facts, "brief": f"{100 * facts[f'A{end}']['held']:.2f} % of held-out images recognized"}

    def _verify(self, seed: int, end: str) -> Step:
        return Step(
            f"seed {seed}: {step_of('verify', end)}",
            partial(self._make_verification, seed, end),
            settings={"flip": "none"},
            needs=("features lfw", f"seed {seed}: {step_of('networks', end)}"),
            data=("lfw",),
        )

    def _make_verification(self, seed: int, end: str, context: StepContext) -> dict[str, Any]:
        protocol = self.sources.protocol("lfw")
        tensors, _ = read_tensors(context.needs[f"seed {seed}: {step_of('networks', end)}"].folder / _HEADS)
        stored = self._loaded(context, "lfw")
        table = torch.full((len(self.sources.faces("lfw")), stored.shape[1]), torch.nan)
        table[protocol.index.unique()] = stored
        results, correct, scores = {}, {}, {}
        for key, network in from_weights(tensors).items():
            results[key], correct[key], scores[key] = measure(network, table, protocol)
            if end:
                del results[key]["distribution"]
        write_npz(context.folder / "correct.npz", **correct)
        if not end:
            write_npz(context.folder / "scores.npz", **scores)
        return {"networks": results, "brief": f"A{end} {100 * results[f'A{end}']['accuracy']:.2f} %"}


def step_of(what: str, end: str) -> str:
    """Return the name of a step of a seed: "networks" or "verify", and the occluder."""
    return f"{what} {end}".rstrip()


def _covered_name(of: str, end: str, draw: int) -> str:
    return f"features {of} under {end}, draw {draw}"


def _epochs_of(context: StepContext) -> int:
    return int(context.needs["choose A"].result["epochs"])


def _facts(network: Network, clean: Examples, pairs: PairProtocol, end: str) -> dict[str, Any]:
    found, *_ = measure(network, clean.clean, pairs)
    kept = ("gap", "decidability", "std_same", "std_different", "auc", *(() if end else ("distribution",)))
    return {**({"active": network.active} if network.active else {}), **{name: found[name] for name in kept}}


__all__ = ["Plan", "named", "step_of"]
