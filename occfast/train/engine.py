"""Training loop that everything in occfast trains with.

The loop is a generator of optimizer steps: logging, validation and checkpoints are the caller's, and the whole state
can be saved and restored between two steps. Batches, their order and the random numbers of augmentation are those of
the global batch in every process. Each process computes its share, so a run does not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..losses import PartialFC
from ..packages import require
from .batches import FromDisk, InMemory, Plan
from .cpu import suited_to_cpu

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Type of ``transform(images, sample_ids, uniform)``, which converts stored images [B, C, H, W] to the network's input.
#: ``sample_ids`` is int64 [B]; ``uniform`` holds random numbers in [0, 1), float32 [B, draws], where ``draws`` is an
#: attribute of the transform (0 without one). If its attribute ``needs_landmarks`` is true, a fourth argument holds the
#: images' landmarks, float64 [B, 5, 2].
Transform = Callable[..., Tensor]


class NotFinite(ValueError):
    """The loss, its gradient, the weights or an answer of the network became NaN or infinite.

    Attributes:
        step: Number of the step, from 0.
        names: Names of the images of this process's batch.
    """

    def __init__(self, quantity: str, epoch: int, step: int, rate: float, names: Sequence[str]) -> None:
        self.step, self.names = step, list(names)
        shown = ", ".join(self.names[:16]) + (f" and {len(self.names) - 16} more" if len(self.names) > 16 else "")
        super().__init__(
            f"learning_rate: {quantity} is no longer finite in epoch {epoch + 1}, step {step}; try less than {rate:g}"
            + (f", or look at its images: {shown}" if shown else "")
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning rate; see ``OptimizerPart`` of :mod:`occfast.train.recipe` for the attributes."""

    name: str = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.1
    clip: float | None = None

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Create the optimizer of the parameters that require a gradient; biases and norms are not decayed."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=self.learning_rate)
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum, nesterov=self.momentum > 0)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of the learning rate: it rises linearly, then falls along a cosine to 0 or stays."""
        rise = max(1, round(steps * self.warmup))
        if step < rise:
            return (step + 1) / rise
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))


@dataclass(frozen=True)
class Step:
    """One step of the optimizer.

    Attributes:
        number: Number of the step over all epochs, from 0.
        epoch: Number of the epoch, from 0.
        last: True for the last step of an epoch.
        loss, right: Mean loss and number of right answers of this process, detached, on its device.
        images: Number of images of this process.
        learning_rate: Learning rate.
        gradient_norm: Norm of the gradient before clipping, on the device.
    """

    number: int
    epoch: int
    last: bool
    loss: Tensor
    right: Tensor
    images: int
    learning_rate: float
    gradient_norm: Tensor


@dataclass
class Engine:
    """Training of an objective; iterate over :meth:`steps`.

    Attributes:
        objective: :class:`~occfast.train.objective.Classify` or ``Embed``: (images, labels) -> (loss, right).
        plan: Batches of each epoch; the batch size must be a multiple of processes × ``accumulate``.
        source: Source of the images' pixels.
        labels: int64 [N].
        config: Optimizer and learning rate.
        epochs: Number of epochs, at least 1.
        accelerator: Device, precision and processes.
        transform: See :data:`Transform`; None if images are stored as the network takes them.
        names: Names of the images, for messages.
        seed: Seed of the order of the images and of augmentation; PyTorch's generators belong to the caller.
        accumulate: Number of parts in which a process computes its batch.
        landmarks: float64 [N, 5, 2], for a transform that needs them.
        targets: Features that those of the images are kept near, [N, D]; None: none.
    """

    objective: nn.Module
    plan: Plan
    source: InMemory | FromDisk
    labels: Tensor
    config: OptimizerConfig
    epochs: int
    accelerator: Accelerator
    transform: Transform | None = None
    names: Sequence[str] = ()
    seed: int = 0
    accumulate: int = 1
    landmarks: Tensor | None = None
    targets: Tensor | None = None
    step: int = field(default=0, init=False)
    epoch: int = field(default=0, init=False)
    batch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        parts = self.world * self.accumulate
        if self.plan.size % parts:
            raise ValueError(
                f"batch.size: expected a multiple of {parts} = {self.world} processes × {self.accumulate} parts "
                f"(batch.accumulate), got {self.plan.size}"
            )
        self.device = self.accelerator.device
        self.sharded = next((part for part in self.objective.modules() if isinstance(part, PartialFC)), None)
        self.total = self.epochs * len(self.plan)
        if not self.total:
            raise ValueError("batch.size: expected an epoch to have at least one batch, got none")
        self.generator = torch.Generator().manual_seed(self.seed)
        self._epoch_start = self.generator.get_state()
        self.wrapped, self.optimizer = self.accelerator.prepare(self.objective, self.config.optimizer(self.objective))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._pending: _Pending | None = None

    # -- the loop --------------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        """Train from the present state to the end of the last epoch; yield after each step.

        Raises:
            NotFinite: In the step in which the loss or its gradient stops being finite, before weights change (on a
                GPU, which is not waited for, within the next step); after the last step, if the weights or the
                network's answers to its batch are not finite.
        """
        with suited_to_cpu(self.objective):
            yield from self._steps()

    def _steps(self) -> Iterator[Step]:
        while self.epoch < self.epochs:
            if self.batch == 0:
                self._epoch_start = self.generator.get_state()
                indices, ids = self.plan.epoch(self.epoch, self.generator)
            else:  # resumed within an epoch: repeat its order, then continue the draws
                now = self.generator.get_state()
                self.generator.set_state(self._epoch_start)
                indices, ids = self.plan.epoch(self.epoch, self.generator)
                self.generator.set_state(now)
            share = self.plan.size // self.world
            mine = slice(self.rank * share, (self.rank + 1) * share)
            indices, ids = indices[self.batch :, mine], ids[self.batch :, mine]
            number, batches = self.epoch, self.batch + len(indices)
            for images, chosen, samples in zip(self.source(indices), indices, ids, strict=True):
                loss, right, rate, norm, inputs = self._step(images, chosen, samples, mine)
                self.step, self.batch = self.step + 1, self.batch + 1
                last = self.batch == batches
                if last:
                    self.epoch, self.batch = self.epoch + 1, 0
                    if self.epoch == self.epochs:
                        self._check_result(inputs, chosen)
                del inputs
                yield Step(self.step - 1, number, last, loss, right, len(chosen), rate, norm)
        self._check_pending()

    def _step(
        self, images: Tensor, chosen: Tensor, samples: Tensor, mine: slice
    ) -> tuple[Tensor, Tensor, float, Tensor, Tensor]:
        self.wrapped.train()
        draws = getattr(self.transform, "draws", 0)
        uniform = torch.rand(self.plan.size, draws, generator=self.generator)[mine]
        images = images.to(self.device, non_blocking=True)
        labels = self.labels[chosen].to(self.device, non_blocking=True)
        if self.transform is not None:
            arguments = [images, samples.to(self.device), uniform]
            if getattr(self.transform, "needs_landmarks", False):
                assert self.landmarks is not None
                arguments.append(self.landmarks[chosen].to(self.device))
            images = self.transform(*arguments)
        rate = self.rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total, right = torch.zeros((), device=self.device), torch.zeros((), dtype=torch.int64, device=self.device)
        given = [images, labels]
        if self.targets is not None:
            given.append(self.targets[chosen].to(self.device, non_blocking=True))
        for part, each in enumerate(zip(*(one.chunk(self.accumulate) for one in given), strict=True)):
            with self._synchronized(part == self.accumulate - 1):
                loss, correct = self.wrapped(*each)
                loss = loss / self.accumulate if self.accumulate > 1 else loss
                total, right = total + loss.detach(), right + correct
                self.accelerator.backward(loss)
        norm = self._gradient_norm()
        self._watch(total, norm, rate, chosen)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, right, rate, norm, images

    @property
    def rate(self) -> float:
        """Learning rate of the step to come."""
        return self.config.learning_rate * self.config.factor(self.step, self.total)

    def _synchronized(self, last: bool) -> Any:
        # Gradients are summed over the processes with the last part only.
        return nullcontext() if last or self.world == 1 else self.accelerator.no_sync(self.wrapped)

    def _gradient_norm(self) -> Tensor:
        """Return the norm of the whole gradient, and clip it if that is wanted."""
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients()
        sharded = [] if self.sharded is None else list(self.sharded.parameters())
        common = [p.grad for p in self.parameters if p.grad is not None and not any(p is own for own in sharded)]
        norm = nn.utils.get_total_norm(common)
        if self.sharded is not None:
            norm = torch.hypot(norm.double(), self.sharded.gradient_norm()).to(norm.dtype)
        if self.config.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, norm)
        return norm

    # -- NaN -------------------------------------------------------------------------------------------

    def _watch(self, loss: Tensor, norm: Tensor, rate: float, chosen: Tensor) -> None:
        if self.accelerator.scaler is not None:
            norm = torch.zeros_like(norm)  # half precision overflows at times; the scaler skips that step
        found = torch.stack([loss.double(), norm.double()])
        if self.device.type == "cpu":
            self._pending = _Pending(found, None, self.epoch, self.step, rate, chosen)
            self._check_pending()
        else:
            self._check_pending()  # of the step before, which is done by now, so this does not wait
            copy = torch.empty(2, dtype=torch.float64, pin_memory=True).copy_(found, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = _Pending(copy, event, self.epoch, self.step, rate, chosen)

    def _check_pending(self) -> None:
        seen, self._pending = self._pending, None
        if seen is None:
            return
        if seen.event is not None:
            seen.event.synchronize()
        loss, norm = seen.found.tolist()
        if not math.isfinite(loss) or not math.isfinite(norm):
            quantity = "the gradient" if math.isfinite(loss) else "the loss"
            raise NotFinite(quantity, seen.epoch, seen.step, seen.rate, self._names(seen.chosen))

    def _names(self, chosen: Tensor) -> list[str]:
        return [self.names[k] if self.names else f"number {k}" for k in chosen.tolist()]

    def _check_weights(self, chosen: Tensor | None = None) -> None:
        """Raise NotFinite if a weight or a running statistic is NaN or infinite."""
        state = [v for v in self.objective.state_dict().values() if isinstance(v, Tensor) and v.is_floating_point()]
        if state and not bool(torch.stack([v.isfinite().all() for v in state]).all()):
            names = [] if chosen is None else self._names(chosen)
            raise NotFinite("a weight", max(self.epoch - 1, 0), max(self.step - 1, 0), self.rate, names)

    @torch.no_grad()
    def _check_result(self, inputs: Tensor, chosen: Tensor) -> None:
        """Check what the last update left, which no further step would show: the weights, and answers to the batch."""
        self._check_pending()
        self._check_weights(chosen)
        network = self.objective.network
        assert isinstance(network, nn.Module)
        mode = network.training
        network.eval()
        with self.accelerator.autocast():
            finite = [bool(network(part).isfinite().all()) for part in inputs.chunk(self.accumulate)]
        network.train(mode)
        if not all(finite):
            raise NotFinite("an answer of the network", self.epoch - 1, self.step - 1, self.rate, self._names(chosen))

    # -- state -----------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that further steps depend on: tensors by name, and JSON values.

        Every process must call it, between two steps. A classifier that is divided among processes is whole in the
        main process and left out in the others. Sample ids follow from the epoch and the order, so augmentation
        has no state of its own.

        Raises:
            NotFinite: If the loss, the gradient or a weight is not finite.
        """
        self._check_pending()
        self._check_weights()
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {"step": self.step, "epoch": self.epoch, "batch": self.batch, "extra": {}}
        for name, value in self.objective.state_dict().items():
            if isinstance(value, Tensor):
                tensors[f"objective/{name}"] = value
            else:
                values["extra"][name] = value
        state = self.optimizer.state_dict()
        if self.sharded is not None:
            for name, parameter in self.objective.named_parameters():
                if any(parameter is own for own in self.sharded.parameters()):
                    rows = self.sharded.gather_rows(parameter)
                    if rows is not None:
                        tensors[f"objective/{name}"] = rows
                    else:
                        del tensors[f"objective/{name}"]
            state = self.sharded.gather_optimizer_state(self.optimizer) or {"state": {}}
        values["optimizer"] = {}
        for number, entries in state["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{number}/{name}"] = value
                else:
                    values["optimizer"][f"{number}/{name}"] = value
        if self.accelerator.scaler is not None:
            values["scaler"] = self.accelerator.scaler.state_dict()
        tensors["generator/now"] = self.generator.get_state()
        tensors["generator/epoch"] = self._epoch_start
        for rank, (cpu, cuda) in enumerate(self._random_states()):
            tensors[f"random/{rank}/cpu"] = cpu
            if len(cuda):
                tensors[f"random/{rank}/cuda"] = cuda
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned, in a run of the same recipe; the number of processes may differ.

        Raises:
            ValueError: If the state belongs to another network or optimizer.
        """
        own = {k.removeprefix("objective/"): v for k, v in tensors.items() if k.startswith("objective/")}
        try:
            self.objective.load_state_dict({**own, **values["extra"]})
        except RuntimeError as error:
            raise ValueError(f"checkpoint: it belongs to another network ({' '.join(str(error).split())})") from error
        state = self.optimizer.state_dict()
        entries: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, number, name = key.split("/", 2)
                entries.setdefault(int(number), {})[name] = value
        for key, value in values["optimizer"].items():
            number, name = key.split("/", 1)
            entries.setdefault(int(number), {})[name] = value
        moments = {"state": entries, "param_groups": state["param_groups"]}
        if self.sharded is not None:
            moments = self.sharded.own_optimizer_state(self.optimizer, moments)
        for number, found in moments["state"].items():
            for name, value in found.items():
                found[name] = self._like_parameter(number, value) if isinstance(value, Tensor) else value
        self.optimizer.load_state_dict(moments)
        if self.accelerator.scaler is not None and "scaler" in values:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        self.step, self.epoch, self.batch = (int(values[name]) for name in ("step", "epoch", "batch"))
        self.generator.set_state(tensors["generator/now"])
        self._epoch_start = tensors["generator/epoch"]
        if f"random/{self.rank}/cpu" in tensors:
            torch.set_rng_state(tensors[f"random/{self.rank}/cpu"])
            if self.device.type == "cuda" and f"random/{self.rank}/cuda" in tensors:
                torch.cuda.set_rng_state(tensors[f"random/{self.rank}/cuda"], self.device)
        else:  # there were fewer processes
            torch.manual_seed(hash((self.seed, self.step, self.rank)) % 2**63)

    def restart_epoch(self) -> None:
        """Begin the present epoch anew, with the weights as they are: for a checkpoint of other data."""
        self.batch = 0
        self._epoch_start = self.generator.get_state()

    def _like_parameter(self, number: int, value: Tensor) -> Tensor:
        # Files hold dense tensors; moments go on in the layout of their parameter, as they would have.
        parameter = self.parameters[number]
        if value.shape != parameter.shape:
            return value
        return torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value)

    def _random_states(self) -> list[tuple[Tensor, Tensor]]:
        cpu = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else cpu[:0]
        if self.world == 1:
            return [(cpu, cuda)]
        gathered = self.accelerator.gather(torch.cat([cpu, cuda])[None].to(self.device)).cpu()
        return [(row[: len(cpu)].clone(), row[len(cpu) :].clone()) for row in gathered]


@dataclass(frozen=True)
class _Pending:
    """Loss and gradient norm of a step, float64 [2], valid once ``event`` is reached, and the step they belong to."""

    found: Tensor
    event: torch.cuda.Event | None
    epoch: int
    step: int
    rate: float
    chosen: Tensor


def accelerator(device: torch.device | str, precision: str = "fp32") -> Accelerator:
    """Create an Accelerator for the processes (those of ``torchrun``, if it started this one).

    Args:
        device: Device of the processes.
        precision: "fp32", "bf16" or "fp16".

    Raises:
        MissingPackage: If accelerate is not installed.
        ValueError: If the device does not support the precision.
    """
    require("training", "accelerate", extra="train")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    kind = torch.device(device).type
    if precision == "fp16" and kind == "cpu":
        raise ValueError("precision: expected 'fp32' or 'bf16' on a CPU, got 'fp16'")
    # accelerate keeps one state per process; two runs of a process may differ in device and precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=kind == "cpu", mixed_precision="no" if precision == "fp32" else precision)
