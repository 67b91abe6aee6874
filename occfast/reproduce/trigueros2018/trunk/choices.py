"""Hyperparameters, chosen on pairs of people whom no network is trained on and who are in no pair of the table.

Candidates are compared by their mean accuracy over :attr:`TrunkSettings.choosing_seeds`; the first of equals wins. The
results of these steps are needed by those that train the table's networks, so they are on the disk before LFW is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ....evaluate import PairProtocol
from .heads import Examples, Network, classify, separate
from .measures import measure
from .settings import LOSSES, STAGES, TrunkSettings


def choose_base(s: TrunkSettings, examples: Examples, features: Tensor, pairs: PairProtocol) -> dict[str, Any]:
    """Choose the epochs of A.

    Args:
        s: settings.
        examples: to train A on.
        features: the trunk's, of the people to choose by.
        pairs: of these people.
    """
    accuracies: dict[int, list[float]] = {epochs: [] for epochs in s.base_epochs}
    for seed in s.choosing_seeds:
        for epochs, network in classify(s, examples, seed, epochs=s.base_epochs, rate=s.base_rate).items():
            accuracies[epochs].append(_accuracy(network, features, pairs))
    best = max(accuracies, key=lambda epochs: float(np.mean(accuracies[epochs])))
    tried = [{"epochs": epochs, "accuracies": values} for epochs, values in accuracies.items()]
    return {"epochs": best, "tried": tried, "brief": f"{best} epochs"}


def choose_stage(
    s: TrunkSettings,
    base_epochs: int,
    examples: Examples,
    stage: Callable[[str], Examples],
    features: Tensor,
    pairs: PairProtocol,
) -> dict[str, Any]:
    """Choose learning rate and epochs of each triplet stage, without occluders.

    Args:
        s: settings.
        base_epochs: epochs of A.
        examples: to train A on.
        stage: returns the images of a stage.
        features: the trunk's, of the people to choose by.
        pairs: of these people.
    """
    bases = _bases(s, base_epochs, examples)
    tried: list[dict[str, Any]] = [
        {"network": "A", "accuracies": [_accuracy(base, features, pairs) for base in bases.values()]}
    ]
    chosen: dict[str, dict[str, Any]] = {loss: {} for loss in LOSSES}
    for people in STAGES:
        on = stage(people)
        for loss, name in LOSSES.items():
            accuracies: dict[tuple[float, int], list[float]] = {}
            for rate in s.rates:
                for seed, base in bases.items():
                    networks = separate(s, on, seed, loss=name, epochs=s.epochs, rate=rate, start=base)
                    for epochs, network in networks.items():
                        accuracies.setdefault((rate, epochs), []).append(_accuracy(network, features, pairs))
            rate, epochs = max(accuracies, key=lambda one: float(np.mean(accuracies[one])))
            chosen[loss][people] = {"rate": rate, "epochs": epochs}
            tried += [
                {"network": loss, "people": people, "rate": r, "epochs": e, "accuracies": values}
                for (r, e), values in accuracies.items()
            ]
    return {"stage": chosen, "tried": tried}


def choose_cover(
    s: TrunkSettings,
    base_epochs: int,
    examples: Examples,
    covered: Callable[[tuple[int, int], float], Examples],
    features: Tensor,
    pairs: PairProtocol,
) -> dict[str, Any]:
    """Choose the share of the images that are occluded in training, one for all occluders.

    Args:
        s: settings.
        base_epochs: epochs of A.
        examples: to train A on.
        covered: returns these images with an occluder's draws and a share.
        features: the trunk's, of the people to choose by.
        pairs: of these people.
    """
    bases = _bases(s, base_epochs, examples)
    tried: list[dict[str, Any]] = []
    shares: dict[float, list[float]] = {share: [] for share in s.covered}
    for share in s.covered:
        for name, size in s.sizes.items():
            on, found = covered(size, share), []
            for seed, base in bases.items():
                fine = classify(s, on, seed, epochs=(s.fine_epochs,), rate=s.fine_rate, start=base)[s.fine_epochs]
                found.append(_accuracy(fine, features, pairs))
            shares[share] += found
            tried.append({"network": f"A{name}", "covered": share, "accuracies": found})
    best = max(shares, key=lambda share: float(np.mean(shares[share])))
    return {"covered": best, "tried": tried, "brief": f"{best:.0%} of the images"}


def _bases(s: TrunkSettings, epochs: int, examples: Examples) -> dict[int, Network]:
    return {seed: classify(s, examples, seed, epochs=(epochs,), rate=s.base_rate)[epochs] for seed in s.choosing_seeds}


def _accuracy(network: Network, features: Tensor, pairs: PairProtocol) -> float:
    found, *_ = measure(network, features, pairs)
    return float(found["accuracy"])
