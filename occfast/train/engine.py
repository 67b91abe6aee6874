"""The one training loop: everything that trains goes through it.

It is a generator of optimizer steps, so that logging, validation and checkpoints are the caller's own loop; between two
steps its whole state can be saved and put back.  Batches, their order and what is drawn for augmentation are those of
the global batch in every process, each of which takes its share: a run doesn't depend on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..packages import require
from .batches import FromDisk, InMemory, Plan
from .pointwise import safe_pointwise_gradients

if TYPE_CHECKING:
    from accelerate import Accelerator

#: ``transform(images [B, C, H, W] as stored, sample_ids int64 [B], uniform float32 [B, draws]) -> [B, C, H, W]``: makes
#: stored images what the network sees.  ``uniform`` are random numbers in [0, 1); how many each image takes is the
#: attribute ``draws`` (0 where there is none).
Transform = Callable[[Tensor, Tensor, Tensor], Tensor]


class NotFinite(ValueError):
    """The loss or its gradient became NaN or infinite.

    Attributes:
        step: number of the step, from 0.
        names: of the images of this process' batch.
    """

    def __init__(self, what: str, epoch: int, step: int, rate: float, names: Sequence[str]) -> None:
        self.step, self.names = step, list(names)
        shown = ", ".join(self.names[:16]) + (f" and {len(self.names) - 16} more" if len(self.names) > 16 else "")
        super().__init__(
            f"learning_rate: {what} is no longer finite in epoch {epoch + 1}, step {step}; try less than {rate:g}, "
            f"or look at its images: {shown}"
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights follow the gradient; see ``OptimizerPart`` of :mod:`occfast.train.recipe`."""

    name: str = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.1
    clip: float | None = None

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Over the parameters that require a gradient; biases and the scales of norms are not decayed."""
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
        """What the learning rate is multiplied by: rises linearly, then falls along a cosine to 0, or stays."""
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
        number: from 0, over all epochs.
        epoch: from 0.
        last: whether it is the epoch's last.
        loss, right: this process' mean loss and number of right answers, detached, on its device.
        images: of this process.
        learning_rate: of this step.
        gradient_norm: before clipping, on the device.
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
    """Trains an objective; iterate :meth:`steps`.

    Attributes:
        objective: :class:`~occfast.train.objective.Classify` or ``Embed``: (images, labels) -> (loss, right).
        plan: which images make a batch; its size must divide by processes × ``accumulate``.
        source: where their pixels come from.
        labels: int64 [N].
        rule: of the optimizer.
        epochs: at least 1.
        accelerator: device, precision and processes.
        transform: see :data:`Transform`; None: images are stored as the network takes them.
        names: of the images, for messages.
        seed: of the order of the images and of augmentation; PyTorch's own generators are the caller's.
        accumulate: parts of a process' batch.
    """

    objective: nn.Module
    plan: Plan
    source: InMemory | FromDisk
    labels: Tensor
    rule: OptimizerConfig
    epochs: int
    accelerator: Accelerator
    transform: Transform | None = None
    names: Sequence[str] = ()
    seed: int = 0
    accumulate: int = 1
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
        self.total = self.epochs * len(self.plan)
        if not self.total:
            raise ValueError("batch.size: expected an epoch to have at least one batch, got none")
        self.generator = torch.Generator().manual_seed(self.seed)
        self._epoch_start = self.generator.get_state()
        self.wrapped, self.optimizer = self.accelerator.prepare(self.objective, self.rule.optimizer(self.objective))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._pending: _Seen | None = None

    # -- the loop --------------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        """Train from where the state is to the last epoch's end; yields after each step.

        Raises:
            NotFinite: in the step in which the loss or its gradient stops being finite, before weights are changed;
                on a GPU, whose answer is not waited for, within the next.
        """
        with safe_pointwise_gradients(self.objective):
            yield from self._steps()

    def _steps(self) -> Iterator[Step]:
        while self.epoch < self.epochs:
            if self.batch == 0:
                self._epoch_start = self.generator.get_state()
                indices, ids = self.plan.epoch(self.epoch, self.generator)
            else:  # resumed within the epoch: its order again, then on with the draws
                now = self.generator.get_state()
                self.generator.set_state(self._epoch_start)
                indices, ids = self.plan.epoch(self.epoch, self.generator)
                self.generator.set_state(now)
            share = self.plan.size // self.world
            mine = slice(self.rank * share, (self.rank + 1) * share)
            indices, ids = indices[self.batch :, mine], ids[self.batch :, mine]
            number, batches = self.epoch, self.batch + len(indices)
            for images, chosen, samples in zip(self.source(indices), indices, ids, strict=True):
                loss, right, rate, norm = self._step(images, chosen, samples, mine)
                self.step, self.batch = self.step + 1, self.batch + 1
                last = self.batch == batches
                if last:
                    self.epoch, self.batch = self.epoch + 1, 0
                yield Step(self.step - 1, number, last, loss, right, len(chosen), rate, norm)
        self._check_pending()

    def _step(
        self, images: Tensor, chosen: Tensor, samples: Tensor, mine: slice
    ) -> tuple[Tensor, Tensor, float, Tensor]:
        self.wrapped.train()
        draws = getattr(self.transform, "draws", 0)
        uniform = torch.rand(self.plan.size, draws, generator=self.generator)[mine]
        images = images.to(self.device, non_blocking=True)
        labels = self.labels[chosen].to(self.device, non_blocking=True)
        if self.transform is not None:
            images = self.transform(images, samples.to(self.device), uniform)
        rate = self.rule.learning_rate * self.rule.factor(self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total, right = torch.zeros((), device=self.device), torch.zeros((), dtype=torch.int64, device=self.device)
        for part, (x, y) in enumerate(zip(images.chunk(self.accumulate), labels.chunk(self.accumulate), strict=True)):
            with self._synchronized(part == self.accumulate - 1):
                loss, correct = self.wrapped(x, y)
                loss = loss / self.accumulate if self.accumulate > 1 else loss
                total, right = total + loss.detach(), right + correct
                self.accelerator.backward(loss)
        norm = self._gradient_norm()
        self._watch(total, norm, rate, chosen)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, right, rate, norm

    def _synchronized(self, last: bool) -> Any:
        # Gradients are added up over the processes with the last part only.
        return nullcontext() if last or self.world == 1 else self.accelerator.no_sync(self.wrapped)

    def _gradient_norm(self) -> Tensor:
        if self.rule.clip is not None:
            clipped: Tensor = self.accelerator.clip_grad_norm_(self.parameters, self.rule.clip)
            return clipped
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients()
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    # -- NaN -------------------------------------------------------------------------------------------

    def _watch(self, loss: Tensor, norm: Tensor, rate: float, chosen: Tensor) -> None:
        if self.accelerator.scaler is not None:
            norm = torch.zeros_like(norm)  # half precision overflows now and then; the scaler leaves that step out
        found = torch.stack([loss.double(), norm.double()])
        if self.device.type == "cpu":
            self._pending = _Seen(found, None, self.epoch, self.step, rate, chosen)
            self._check_pending()
        else:
            self._check_pending()  # of the step before, which is done by now: the device is not waited for
            copy = torch.empty(2, dtype=torch.float64, pin_memory=True).copy_(found, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = _Seen(copy, event, self.epoch, self.step, rate, chosen)

    def _check_pending(self) -> None:
        seen, self._pending = self._pending, None
        if seen is None:
            return
        if seen.event is not None:
            seen.event.synchronize()
        loss, norm = seen.found.tolist()
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "the gradient" if math.isfinite(loss) else "the loss"
            names = [self.names[k] if self.names else f"number {k}" for k in seen.chosen.tolist()]
            raise NotFinite(what, seen.epoch, seen.step, seen.rate, names)

    # -- state -----------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the steps to come depend on: tensors by name, and what JSON can hold.

        Call it in every process, between two steps.  Sample ids follow from the epoch and the order, so augmentation
        has no state of its own.
        """
        self._check_pending()
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {"step": self.step, "epoch": self.epoch, "batch": self.batch, "extra": {}}
        for name, value in self.objective.state_dict().items():
            if isinstance(value, Tensor):
                tensors[f"objective/{name}"] = value
            else:
                values["extra"][name] = value
        state = self.optimizer.state_dict()
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
        """Put back what :meth:`state` gave, in a run of the same recipe; the number of processes may be another.

        Raises:
            ValueError: the state is of another network or optimizer.
        """
        own = {k.removeprefix("objective/"): v for k, v in tensors.items() if k.startswith("objective/")}
        try:
            self.objective.load_state_dict({**own, **values["extra"]})
        except RuntimeError as error:
            raise ValueError(f"checkpoint: of another network ({' '.join(str(error).split())})") from error
        state = self.optimizer.state_dict()
        entries: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, number, name = key.split("/", 2)
                entries.setdefault(int(number), {})[name] = self._like_parameter(int(number), value)
        for key, value in values["optimizer"].items():
            number, name = key.split("/", 1)
            entries.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})
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
class _Seen:
    """Loss and gradient norm of a step, float64 [2] in memory once ``event`` is reached, and what they were of."""

    found: Tensor
    event: torch.cuda.Event | None
    epoch: int
    step: int
    rate: float
    chosen: Tensor


def accelerator(device: torch.device | str, precision: str = "fp32") -> Accelerator:
    """The processes (those of ``torchrun``, if it started this one), their device and precision.

    Raises:
        MissingPackage: accelerate is not installed.
        ValueError: the precision is not possible on the device.
    """
    require("training", "accelerate", extra="train")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    kind = torch.device(device).type
    if precision == "fp16" and kind == "cpu":
        raise ValueError("precision: expected 'fp32' or 'bf16' on a CPU, got 'fp16'")
    # accelerate keeps one state a process for ever; two runs of one process may differ in device and precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=kind == "cpu", mixed_precision="no" if precision == "fp32" else precision)
