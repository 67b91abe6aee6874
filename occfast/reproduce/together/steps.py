"""Both papers together as a graph of steps.

A deployed recognizer is trained further in six ways, each for every seed. P comes from its own verification map on
people whom nobody is trained on; learning rate and weight of the distillation are chosen on pairs of these people,
before LFW or AR is read. PDSN's masks are learned for the networks of three of the trainings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...evaluate import embed, roc, verification
from ...files import write_npz
from ...models import MobileFaceNet, features
from ...occlude.named import named_occlusion
from ...pdsn import Generators, build_dictionary, match, regions, train_generators
from ...pdsn.base import base_of
from ...sweep import Mismatch, occlusion_map
from ...train import Trained, load_network, train
from ..cost import forward_flops
from ..graph import Graph, Step, StepContext, Work
from ..trigueros2018.steps import scores_of
from .settings import AS_IS, COVERINGS, MASKS, OCCLUDER, TRAININGS, TogetherSettings
from .sources import SIZES, TogetherSources

#: False match rate that thresholds of the choice and of the map are set at.
_FMR = 1e-3
#: Conditions that a network is chosen by, each with the same weight.
_CHOOSE_BY = (None, "sunglasses", "scarf")
#: Rows of an aligned face that AR's coverings hide, as masks are told them: about the eyes; from below the nose on.
_HIDDEN = {"sunglasses": (43, 66), "scarf": (78, 112)}

#: A training that chooses: its name, learning rate (None: the chosen one) and weight of the distillation.
Values = tuple[str, float | None, float]


class Plan:
    """The steps of all seeds.

    Args:
        settings: of the run.
        sources: of the run.
    """

    def __init__(self, settings: TogetherSettings, sources: TogetherSources) -> None:
        self.settings, self.sources = settings, sources

    def graph(self, root: Path) -> Graph:
        """Return the graph."""
        s = self.settings
        steps = [self._map()]
        tried = [("all", rate, s.weights[0]) for rate in s.rates]
        steps += [self._train("try " + _tried(*one), one[0], s.choosing_seed, one) for one in tried]
        steps.append(self._choose("rate", [_tried(*one) for one in tried]))
        kept = [("kept", None, weight) for weight in s.weights]
        steps += [self._train("try " + _tried(*one), one[0], s.choosing_seed, one, ("choose rate",)) for one in kept]
        steps.append(self._choose("weight", [_tried(*one) for one in kept]))
        chosen = ("choose rate", "choose weight")
        for seed in s.seeds:
            steps += [self._train(f"seed {seed}: train {name}", name, seed, None, chosen) for name in TRAININGS]
        steps.append(self._verify("verify " + AS_IS, None))
        for seed in s.seeds:
            steps += [self._verify(f"seed {seed}: verify {name}", f"seed {seed}: train {name}") for name in TRAININGS]
            steps += [self._masks(seed, name) for name in s.masked]
        return Graph(steps, root, self.sources.fingerprints)

    # -- steps ------------------------------------------------------------------------------------------------

    def _map(self) -> Step:
        s = self.settings
        positions = s.map_people * -(-112 // s.map_stride) * -(-96 // s.map_stride)
        return Step(
            "map",
            self._make_map,
            settings={"people": s.map_people, "stride": s.map_stride, "occluder": OCCLUDER},
            data=("trunk", "choosing"),
            work=Work(self._flops * positions, positions, "sweep", disk=200_000),
        )

    def _train(self, name: str, training: str, seed: int, values: Values | None, needs: tuple[str, ...] = ()) -> Step:
        s = self.settings
        _, rate, weight = values or (training, None, s.weights[0])
        stated = asdict(s.recipe(training, seed, rate or s.rates[0], weight))
        for free in ("device", "log", "start"):
            del stated[free]
        # What another step states.
        if values is None:
            del stated["loss"]["distillation"]
        if rate is None:
            del stated["optimizer"]["learning_rate"]
        images = s.epochs * SIZES["training"]
        return Step(
            name,
            partial(self._make_network, training, seed, values),
            settings=stated,
            needs=("map", *needs) if TRAININGS[training].noisy else needs,
            data=("trunk", "training"),
            together=True,
            work=Work(3 * self._flops * images, images, "train", disk=20_000_000),
        )

    def _choose(self, what: str, tried: list[str]) -> Step:
        images = len(tried) * len(_CHOOSE_BY) * SIZES["choosing"]
        return Step(
            f"choose {what}",
            partial(self._make_choice, what, tried),
            settings={"fmr": _FMR, "by": [str(covering) for covering in _CHOOSE_BY]},
            needs=tuple("try " + one for one in tried),
            data=("choosing",),
            work=Work(self._flops * images, images, "embed"),
        )

    def _verify(self, name: str, of: str | None) -> Step:
        images = (1 + len(COVERINGS)) * SIZES["lfw"] + SIZES["ar"]
        return Step(
            name,
            partial(self._make_verification, of),
            settings={"coverings": COVERINGS},
            # Nothing of LFW or AR is read before every choice is made.
            needs=("choose rate", "choose weight", *([] if of is None else [of])),
            data=("trunk", "lfw", "ar"),
            work=Work(self._flops * images, images, "embed", disk=1_000_000),
        )

    def _masks(self, seed: int, training: str) -> Step:
        s = self.settings
        images = s.dictionary_images * (s.generator_epochs + 15) + SIZES["ar"]
        return Step(
            f"seed {seed}: masks {training}",
            partial(self._make_masks, seed, training),
            settings={"epochs": s.generator_epochs, "images": s.dictionary_images, "masks": list(MASKS)},
            needs=(f"seed {seed}: train {training}",),
            data=("training", "ar"),
            work=Work(self._flops * images, images, "embed", disk=200_000_000),
        )

    @cached_property
    def _flops(self) -> float:
        with torch.random.fork_rng(devices=[]):
            return forward_flops(MobileFaceNet(), (3, 112, 96))

    # -- networks ---------------------------------------------------------------------------------------------

    def _as_is(self) -> Trained:
        return load_network(
            self.sources.weights_file, network="mobilefacenet", preprocessing=self.sources.preprocessing
        )

    def _network(self, context: StepContext, step: str | None) -> Trained:
        if step is None:
            found = self._as_is()
        else:
            done = context.needs[step]
            found = load_network(done.folder / str(done.result["weights"]))
        found.network.to(context.device)
        return found

    def _make_network(self, training: str, seed: int, values: Values | None, context: StepContext) -> dict[str, Any]:
        if values is None:
            key = "choose weight" if TRAININGS[training].kept else "choose rate"
            rate, weight = (context.needs[key].result[name] for name in ("rate", "weight"))
        else:
            _, told, weight = values
            rate = context.needs["choose rate"].result["rate"] if told is None else told
        recipe = self.settings.recipe(training, seed, rate, weight)
        recipe.device, recipe.start = context.device.partition(":")[0], str(self.sources.weights_file)
        recipe.data.workers = 0
        if TRAININGS[training].noisy:
            recipe.occluder.locations = str(context.needs["map"].folder / "map.npz")
        faces = self.sources.training
        found = train(recipe, context.folder / "run", resume=True, progress=context.progress, faces=faces)
        if found.stopped == "interrupted":
            raise KeyboardInterrupt
        return {"weights": "run/last.safetensors", "rate": rate, "weight": weight, "steps": found.steps}

    # -- P and the choice -------------------------------------------------------------------------------------

    def _make_map(self, context: StepContext) -> dict[str, Any]:
        """Map where covering a face makes the recognizer reject it, on people whom nobody is trained on."""
        trained = self._network(context, None)
        faces, protocol = self.sources.choosing
        table = self._embedded(trained, faces, protocol.index, context)
        scores = scores_of(table, table, protocol.index)
        threshold = roc(scores, protocol.same).tar_at_far(_FMR).threshold
        first, second = [], []
        for person in range(min(len(faces.people), self.settings.map_people)):
            own = (faces.labels == person).nonzero()[:2, 0].tolist()
            if len(own) == 2:
                first.append(own[0])
                second.append(own[1])
        references = self._embedded(trained, faces, torch.tensor(first), context)[first]
        found = occlusion_map(
            trained.network.eval(),
            trained.preprocessing(faces.images(torch.tensor(second))).to(context.device),
            nn.functional.normalize(references).to(context.device),
            occluder=OCCLUDER,
            stride=self.settings.map_stride,
            score=Mismatch(float(threshold)),
            progress=context.progress,
            checkpoint=context.folder / "map.checkpoint",
            group=False,
        )
        found.save(context.folder / "map.npz")
        return {"images": found.n_images, "threshold": float(threshold), "mean": float(found.values.mean())}

    def _make_choice(self, what: str, tried: list[str], context: StepContext) -> dict[str, Any]:
        faces, protocol = self.sources.choosing
        rows = []
        for name in tried:
            trained, done = self._network(context, "try " + name), context.needs["try " + name]
            clean = self._embedded(trained, faces, protocol.index, context)
            rates = []
            for covering in _CHOOSE_BY:
                second = (
                    clean
                    if covering is None
                    else self._embedded(trained, faces, protocol.index[:, 1:], context, named_occlusion(covering, 0))
                )
                scores = scores_of(clean, second, protocol.index)
                rates.append(float(roc(scores, protocol.same).tar_at_far(_FMR).tar))
            rows.append({"rate": done.result["rate"], "weight": done.result["weight"], "accepted": rates})
        best = max(rows, key=lambda row: float(np.mean(row["accepted"])))
        return {
            "rate": best["rate"],
            "weight": best["weight"],
            "tried": rows,
            "brief": f"{what}: {best['rate']:g}, {best['weight']:g}",
        }

    # -- tests ------------------------------------------------------------------------------------------------

    def _embedded(
        self, trained: Trained, faces: Any, index: Tensor, context: StepContext, covering: Any = None
    ) -> Tensor:
        """Return features by image number, [len(faces), D], NaN for images that ``index`` does not name."""
        used = index.unique()
        found = embed(
            features(trained.network),
            faces,
            trained.preprocessing,
            indices=used,
            occlusion=covering,
            flip="none",
            device=context.device,
            progress=context.progress,
        )
        table = torch.full((len(faces), found.features.shape[1]), torch.nan)
        table[used] = found.features
        return table

    def _make_verification(self, of: str | None, context: StepContext) -> dict[str, Any]:
        trained = self._network(context, of)
        kept: dict[str, np.ndarray] = {}
        result: dict[str, Any] = {}
        faces, conditions = self.sources.tested("lfw")
        protocol = conditions[0].protocol
        clean = self._embedded(trained, faces, protocol.index, context)
        for covering in (None, *COVERINGS):
            second = (
                clean
                if covering is None
                else self._embedded(trained, faces, protocol.index[:, 1:], context, named_occlusion(covering, 0))
            )
            scores = scores_of(clean, second, protocol.index)
            found = verification(scores, protocol.same, protocol.folds)
            assert found.correct is not None and found.accuracy is not None
            key = f"lfw {covering or 'clean'}"
            result[key], kept[key] = found.accuracy, np.asarray(found.correct)
        faces, conditions = self.sources.tested("ar")
        everyone = torch.cat([condition.protocol.index for condition in conditions])
        table = self._embedded(trained, faces, everyone, context)
        for condition in conditions:
            scores = scores_of(table, table, condition.protocol.index)
            kept[f"ar {condition.name}"] = scores.numpy().astype(np.float32)
        write_npz(context.folder / "scores.npz", **{name.replace(":", "-"): value for name, value in kept.items()})
        return {**result, "brief": f"LFW {100 * result['lfw clean']:.2f} %"}

    # -- PDSN -------------------------------------------------------------------------------------------------

    def _make_masks(self, seed: int, training: str, context: StepContext) -> dict[str, Any]:
        """Rank AR's neutral photographs for its covered ones, without masks and with each kind."""
        s, base = self.settings, base_of(self._network(context, f"seed {seed}: train {training}"))
        order = torch.randperm(len(self.sources.training), generator=torch.Generator().manual_seed(seed))
        images, labels, landmarks = self.sources.images(order[: s.dictionary_images])
        gallery, gallery_labels, probes = self._search_faces()
        stored = base.all_maps(gallery)
        maps = {condition: base.all_maps(found) for condition, (found, _) in probes.items()}
        hits: dict[str, np.ndarray] = {}
        for title in ("no masks", *MASKS):
            for condition, (_, persons) in probes.items():
                masks = None
                if title != "no masks":
                    kind, soft = MASKS[title]
                    dictionary = self._dictionary(base, kind, images, labels, landmarks, seed, context)
                    hidden = torch.zeros(1, 112, 96, dtype=torch.bool)
                    hidden[:, slice(*_HIDDEN[condition])] = True
                    combined = dictionary.discard_mask(hidden, soft=soft)
                    masks = combined, torch.zeros(len(persons), dtype=torch.int64)
                ranking = match(stored, gallery_labels, maps[condition], masks, k=1, compare="features", base=base)
                hits[f"{title} {condition}"] = (ranking.labels[:, 0].cpu() == persons).numpy()
        write_npz(context.folder / "hits.npz", **{name.replace(",", ""): value for name, value in hits.items()})
        return {name: float(value.mean()) for name, value in hits.items()}

    def _search_faces(self) -> tuple[Tensor, Tensor, Mapping[str, tuple[Tensor, Tensor]]]:
        faces, conditions = self.sources.tested("ar")
        references = conditions[0].protocol.index[:, 0].unique()
        probes = {}
        for condition in conditions[1:]:
            shown = condition.protocol.index[:, 1].unique()
            probes[condition.name] = faces.images(shown), faces.labels[shown]
        return faces.images(references), faces.labels[references], probes

    def _dictionary(
        self, base: Any, kind: str, images: Tensor, labels: Tensor, landmarks: Tensor, seed: int, context: StepContext
    ) -> Any:
        from ...pdsn import MaskDictionary

        path = context.folder / f"{kind}.npz"
        if not path.exists():
            found = regions.named(kind, (112, 96), landmarks)
            trained = context.folder / f"{kind}.pt"
            if not trained.exists():
                train_generators(
                    base,
                    found,
                    images,
                    labels,
                    epochs=self.settings.generator_epochs,
                    seed=seed,
                    progress=context.progress,
                    checkpoint=context.folder / f"{kind}.checkpoint",
                ).save(trained)
            generators = Generators.load(trained).to(base.device)
            build_dictionary(
                base, found, [(images, labels)], generators=generators, seed=seed, progress=context.progress
            ).save(path)
        return MaskDictionary.load(path)


def _tried(training: str, rate: float | None, weight: float) -> str:
    return f"{training} {weight:g}" if rate is None else f"{training} {rate:g}"


__all__ = ["Plan"]
