"""How likely a recognizer rejects a covered face, by the share covered of each region."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import checks
from .regions import REGIONS


@dataclass(frozen=True)
class RejectionModel:
    """Logistic regression of "a genuine pair is rejected" on the share covered of each region of the probe.

    Attributes:
        bias: Log odds for an uncovered face.
        weights: Increase of the log odds if all of a region is covered, by region; at least 0.
        about: What it was fitted to, such as the recognizer and the false match rate, for reports.
    """

    bias: float
    weights: Mapping[str, float]
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        if tuple(self.weights) != REGIONS:
            raise ValueError(f"weights: expected the regions {', '.join(REGIONS)}, got {', '.join(self.weights)}")
        for name, value in (("bias", self.bias), *((f"weights: {k}", v) for k, v in self.weights.items())):
            if not math.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value}")

    def probability(self, shares: Tensor) -> Tensor:
        """Return the probability of rejection, float64 [N].

        Args:
            shares: Share covered of each region, in [0, 1], float [N, len(REGIONS)].
        """
        weights = torch.tensor(list(self.weights.values()), dtype=torch.float64)
        return (shares.double() @ weights + self.bias).sigmoid()

    def as_dict(self) -> dict[str, Any]:
        """Return the model as values that JSON can hold."""
        return {"bias": self.bias, "weights": dict(self.weights), "about": dict(self.about)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RejectionModel:
        """Restore a model from :meth:`as_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        weights = {name: float(values["weights"][name]) for name in REGIONS}
        return cls(float(values["bias"]), weights, dict(values["about"]))

    @classmethod
    def fit(cls, shares: Tensor, rejected: Tensor, about: Mapping[str, Any] | None = None) -> RejectionModel:
        """Fit by maximum likelihood with weights of at least 0, so that covering more never lowers the probability.

        A penalty of a thousandth of each squared weight keeps those of regions that are never covered at 0.

        Args:
            shares: Share covered of each region, in [0, 1], float [N, len(REGIONS)].
            rejected: Whether the genuine pair of each face was rejected, bool [N].
            about: See :class:`RejectionModel`.

        Raises:
            TypeError: ``rejected`` is not bool.
            ValueError: Shapes differ, or all pairs, or none, were rejected.
        """
        from scipy.optimize import minimize

        if rejected.dtype != torch.bool:
            raise TypeError(f"rejected: expected dtype bool, got {str(rejected.dtype).removeprefix('torch.')}")
        if shares.dim() != 2 or shares.shape[1] != len(REGIONS) or rejected.shape != shares.shape[:1]:
            raise ValueError(
                f"shares, rejected: expected [N, {len(REGIONS)}] and [N], got {list(shares.shape)} and "
                f"{list(rejected.shape)}"
            )
        count = int(rejected.sum())
        if count in (0, len(rejected)):
            raise ValueError(f"rejected: expected some pairs rejected and some not, got {count} of {len(rejected)}")
        x = np.column_stack([shares.double().numpy(), np.ones(len(shares))])
        sign = np.where(rejected.numpy(), 1.0, -1.0)

        def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
            margin = sign * (x @ w)
            value = np.logaddexp(0, -margin).mean() + 1e-3 * (w[:-1] ** 2).mean()
            pull = np.append(2e-3 * w[:-1] / (len(w) - 1), 0.0)
            return float(value), pull - (x * (sign / (1 + np.exp(margin)))[:, None]).mean(0)

        bounds = [(0.0, None)] * len(REGIONS) + [(None, None)]
        with np.errstate(over="ignore"):
            found = minimize(loss, np.zeros(len(REGIONS) + 1), jac=True, method="L-BFGS-B", bounds=bounds).x
        checks.number(float(found[-1]), "bias")
        weights = dict(zip(REGIONS, map(float, found[:-1]), strict=True))
        return cls(float(found[-1]), weights, dict(about or {}))
