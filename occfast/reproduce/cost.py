"""Predicts the cost of a graph of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .graph import Graph, Work, describe
from .processes import ProcessGroup


@dataclass(frozen=True)
class Rates:
    """Floating-point operations per second of one process.

    Attributes:
        train: rate of training steps.
        forward: rate of forward passes.
        how: origin of the rates, in words.
    """

    train: float
    forward: float
    how: str

    def seconds(self, work: Work, processes: int = 1) -> float | None:
        """Predict the seconds that some work takes; None if its rate is unknown. ``processes`` share a training."""
        if work.kind == "train":
            return work.flops / self.train / processes
        if work.kind in ("sweep", "embed"):
            return work.flops / work.speedup / self.forward
        return None

    @classmethod
    def measured(cls, network: torch.nn.Module, shape: tuple[int, ...], flops: float, device: str) -> Rates:
        """Measure the rates for a second or two.

        Args:
            network: trained and evaluated on random images.
            shape: [N, C, H, W] of a batch.
            flops: floating-point operations of the forward pass of one image.
            device: "cpu" or "cuda:N".
        """
        place = torch.device(device)
        network = network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.rand(shape, device=place).contiguous(memory_format=torch.channels_last)

        def rate(work: Callable[[], Any], each: float) -> float:
            work()
            best, spent = float("inf"), 0.0
            while spent < 0.6:
                start = time.perf_counter()
                work()
                if place.type == "cuda":
                    torch.cuda.synchronize(place)
                best = min(best, time.perf_counter() - start)
                spent += time.perf_counter() - start
            return each / best

        def step() -> None:
            network.zero_grad()
            network(images).square().mean().backward()

        network.train()
        trained = rate(step, 3 * flops * shape[0])
        network.eval()
        with torch.no_grad():
            forward = rate(lambda: network(images), flops * shape[0])
        return cls(trained, forward, f"measured now on {describe(device)}")


def predict(graph: Graph, rates: Rates, processes: int = 1, known: bool = True) -> dict[str, Any]:
    """Predict the time and disk space of each step and of the whole graph.

    Args:
        graph: the steps.
        rates: of one process.
        processes: number of processes that share the work.
        known: whether to look for finished steps, which requires the data.

    Returns:
        {"steps": [{"name", "done", "kind", "images", "flops", "seconds", "disk"}], "seconds", "disk", "rates"}; the
        total seconds and bytes are those of the steps that are not done.
    """
    rows, total = [], 0.0
    finished = {name: known and graph.done(name) is not None for name in graph.steps}
    for name, step in graph.steps.items():
        rows.append(
            {
                "name": name,
                "done": finished[name],
                "kind": step.work.kind,
                "images": step.work.images,
                "flops": step.work.flops,
                "seconds": rates.seconds(step.work, processes if step.together else 1),
                "disk": step.work.disk,
            }
        )
    for level in graph.levels():
        open_steps = [step for step in level if not finished[step.name]]
        load = [
            sum(
                rates.seconds(step.work) or 0.0
                for step in ProcessGroup(rank, processes).share([s for s in open_steps if not s.together])
            )
            for rank in range(processes)
        ]
        total += max(load) + sum(rates.seconds(s.work, processes) or 0.0 for s in open_steps if s.together)
    return {
        "steps": rows,
        "seconds": total,
        "disk": sum(step.work.disk for n, step in graph.steps.items() if not finished[n]),
        "rates": {"train": rates.train, "forward": rates.forward, "how": rates.how, "processes": processes},
    }


def forward_flops(network: torch.nn.Module, shape: tuple[int, ...]) -> float:
    """Count the floating-point operations of a forward pass of one image of ``shape`` [C, H, W]."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(network.parameters()).device
    training = network.training
    network.eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(1, *shape, device=device))
    network.train(training)
    return float(counter.get_total_flops())
