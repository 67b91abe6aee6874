"""Classifier whose classes are divided among processes, with sampled negatives (Partial FC)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import checks
from ..native.reference.occluders import philox, uniform53
from .cosface import LargeMarginCosine
from .distributed import collect_rows, exchange, gather_rows, process_count
from .inputs import check_batch, check_cosface, check_features, prepare

if TYPE_CHECKING:
    import torch.distributed as dist

#: Loss of a classifier; see :class:`~occfast.losses.PartialFC`.
ClassifierLoss = Literal["large_margin_cosine", "cross_entropy"]

#: Rows of the whole classifier that are drawn at a time, whatever the processes are.
_DRAWN = 4096
_WORD = 2**32 - 1


class Elements(NamedTuple):
    """Numbers that one process of a :class:`PartialFC` holds.

    Attributes:
        weights: Its rows of the classifier. Gradient and each moment of an optimizer take as many.
        logits: Logits of the global batch for the classes that it keeps, held once from the forward pass to the end of
            the backward pass.
        features: Features of the global batch, also held once; the backward pass adds their gradient.
    """

    weights: int
    logits: int
    features: int


class PartialFC(nn.Module):
    r"""Classifier and loss whose classes are divided among processes, optionally with sampled negatives.

    Sources: An et al. 2021, "Partial FC: Training 10 Million Identities on a Single Machine"; An et al. 2022, "Killing
    Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC".

    Every process holds the weight rows of K / n of the K classes, gathers the features of all processes, and computes
    the logits of the global batch for its own classes. Of each image, the processes share the largest logit, the sum of
    the exponentials and the logit of the right class, which give the loss

    ::

        L = mean_i (log Σ_j exp z_ij - z_iy)

    of the whole classifier. Its logits are those of :class:`LargeMarginCosine` ("large_margin_cosine") or of
    ``nn.Linear`` ("cross_entropy"), computed in float32 (float64 for float64 features), also under autocast.

    Every process must make the same calls; their batches may differ in size, and be empty. Each call returns the loss
    of the global batch, on every process. The weights receive their whole gradient, so they must not be averaged:
    wrap the network in DistributedDataParallel, not this module. Features receive *n times* the gradient of the loss,
    and DistributedDataParallel, which averages over the processes, gives the network's parameters exactly the gradient
    of the loss. Divide by n where gradients are summed instead. A norm of the gradient must add those of all processes
    (:meth:`gradient_norm`).

    With ``sampling`` < 1, a call in training mode keeps the classes of the global batch and each other class with that
    probability. The loss is the one of a classifier without the other classes: their gradient is 0. Draws depend on
    (``seed``, number of the call, class) alone, so the result does not depend on the number of processes. With
    ``sampling=1``, and in evaluation mode, all classes are kept.

    Args:
        in_features: Size D of the features, at least 1.
        n_classes: Number of classes K of the whole classifier, at least one for each process.
        loss: "large_margin_cosine" or "cross_entropy" (softmax, with a bias).
        scale, margin: s > 0 and m >= 0 of the large margin cosine loss.
        label_smoothing: Label smoothing over the classes kept, in [0, 1].
        sampling: Probability with which a class without an image in the batch is kept, in (0, 1].
        seed: Seed of the draws, in [0, 2**63).
        process_group: Process group; by default all processes, or this one alone where ``torch.distributed`` is not
            initialized.

    Attributes:
        weight: Own rows, [K_own, D]. Drawn as those of the whole classifier: with PyTorch's generator seeded alike in
            all processes, the rows do not depend on their number.
        bias: [K_own] for "cross_entropy", else None.
        classes: Own classes, a range.
        predicted: int64 [B] after a call: class of the largest logit, without the margin, among the classes kept.

    Raises:
        TypeError, ValueError: If an argument has a wrong type or value, or there are fewer classes than processes.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        *,
        loss: ClassifierLoss = "large_margin_cosine",
        scale: float = 64.0,
        margin: float = 0.35,
        label_smoothing: float = 0.0,
        sampling: float = 1.0,
        seed: int = 0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.in_features = checks.integer(in_features, "in_features", 1)
        self.n_classes = checks.integer(n_classes, "n_classes", 1)
        self.loss = checks.choice(loss, "loss", get_args(ClassifierLoss))
        self.scale, self.margin = check_cosface(scale, margin)
        self.label_smoothing = checks.number(label_smoothing, "label_smoothing", 0.0, 1.0)
        self.sampling = checks.number(sampling, "sampling", 0.0, 1.0, above=0.0)
        self.seed = checks.seed(seed)
        self.process_group = process_group
        self.processes = process_count(process_group)
        if self.n_classes < self.processes:
            raise ValueError(
                f"n_classes: expected at least {self.processes}, one for each process, got {self.n_classes}"
            )
        self.shares = _shares(self.n_classes, self.processes)
        rank = 0 if self.processes == 1 else torch.distributed.get_rank(process_group)
        first = sum(self.shares[:rank])
        self.classes = range(first, first + self.shares[rank])
        self.step = 0
        self.predicted: Tensor | None = None
        self._checked = False
        cosine = self.loss == "large_margin_cosine"
        size = self.in_features
        self.weight = nn.Parameter(self._drawn(math.sqrt(6 / (self.n_classes + size)) if cosine else size**-0.5, size))
        self.bias = None if cosine else nn.Parameter(self._drawn(size**-0.5))

    @torch.no_grad()
    def _drawn(self, bound: float, *width: int) -> Tensor:
        """Draw the whole classifier uniformly within ±bound, some rows at a time, and return the own rows."""
        own, first = torch.empty(len(self.classes), *width), self.classes.start
        for start in range(0, self.n_classes, _DRAWN):
            stop = min(start + _DRAWN, self.n_classes)
            rows = torch.empty(stop - start, *width).uniform_(-bound, bound)
            low, high = max(start, first), min(stop, self.classes.stop)
            if low < high:
                own[low - first : high - first] = rows[low - start : high - start]
        return own

    @staticmethod
    def elements(
        in_features: int, n_classes: int, batch: int, *, processes: int = 1, sampling: float = 1.0
    ) -> Elements:
        """Return what the process with most classes holds; with ``sampling`` < 1 logits are expected numbers.

        Args:
            in_features, n_classes, sampling: As for the class; ``n_classes`` at least ``processes``.
            batch: Images of the global batch, each of another class, at least 1.
            processes: Number of processes.

        Raises:
            TypeError, ValueError: If an argument has a wrong type or value.
        """
        size = checks.integer(in_features, "in_features", 1)
        images = checks.integer(batch, "batch", 1)
        most = _shares(checks.integer(n_classes, "n_classes", checks.integer(processes, "processes", 1)), processes)[0]
        present = min(images / processes, most)
        kept = present + checks.number(sampling, "sampling", 0.0, 1.0, above=0.0) * (most - present)
        return Elements(most * size, round(images * kept), images * size)

    # -- the loss --------------------------------------------------------------------------------------

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of the global batch.

        Args:
            features: Floating point [B, D] of this process, on the device of the weights; need not be normalized. B may
                be 0, unless it is in all processes.
            labels: Integers [B] in [0, K).

        Returns:
            A scalar, equal in all processes: float64 for float64 features, else float32.

        Raises:
            TypeError, ValueError: If an argument has a wrong type, shape or device; if a label of any process lies
                outside [0, K); if DistributedDataParallel averages the weights; if the process group has changed.
            RuntimeError: If sampled negatives are recomputed by activation checkpointing.
        """
        check_features(features, self.in_features, self.weight.device, empty=self.processes > 1)
        labels = check_batch(features, labels, ("features", "labels"), empty=self.processes > 1)
        self._check_processes()
        sampled = self.training and self.sampling < 1
        if sampled and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "sampling: negatives are drawn anew at each call, so activation checkpointing can't recompute them; "
                "call the classifier outside of torch.utils.checkpoint"
            )
        with torch.autocast(features.device.type, enabled=False):
            rows, sizes, labels = self._gathered(features, labels)
            own = labels - self.classes.start
            own = torch.where((own >= 0) & (own < len(self.classes)), own, -1)
            weight, bias = (None if p is None else p.to(rows.dtype) for p in (self.weight, self.bias))
            kept = self._kept(own) if sampled else None
            if kept is not None:
                place = torch.full((len(self.classes),), -1, device=kept.device)
                place[kept] = torch.arange(len(kept), device=kept.device)
                own = torch.where(own >= 0, place[own.clamp(min=0)], -1)
                assert weight is not None
                weight, bias = (None if p is None else p.index_select(0, kept) for p in (weight, bias))
            apply: Any = _Loss.apply
            loss, best = apply(rows, weight, bias, own, self._numbers(kept), self)
        self.step = (self.step + 1) % 2**32 if sampled else self.step
        self.predicted = self._mine(best, sizes)
        result: Tensor = loss
        return result

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Return the classes with the largest logits over all processes, without a margin.

        Args:
            features: Floating point [B, D] of this process, as in a call. Every process must call it.

        Returns:
            int64 [B]; -1 where a logit is NaN or infinite.

        Raises:
            TypeError, ValueError: As for a call.
        """
        check_features(features, self.in_features, self.weight.device, empty=self.processes > 1)
        self._check_processes()
        with torch.autocast(features.device.type, enabled=False):
            rows, sizes, _ = self._gathered(features, None)
            bias = None if self.bias is None else self.bias.to(rows.dtype)
            weight = self.weight.to(rows.dtype)
            if self.loss == "large_margin_cosine":
                weight = weight / _lengths(weight)
            logits = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
            top, best = logits.max(1)
            top = top.where(logits.isfinite().all(1), torch.nan).double()
            tops, classes = self._everyone(torch.stack([top, self._numbers(None)[best].double()]))
        answers = classes.gather(0, tops.argmax(0, keepdim=True))[0].long()
        return self._mine(torch.where(tops.isfinite().all(0), answers, -1), sizes)

    def _gathered(self, features: Tensor, labels: Tensor | None) -> tuple[Tensor, list[int], Tensor]:
        """Return the features of all processes, their numbers of rows, and all labels, which are checked."""
        rows = features if features.dtype == torch.float64 else features.float()
        if self.loss == "large_margin_cosine":
            rows = prepare(rows, "cosine")
        if labels is None:
            labels = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        low, high = (int(edge) for edge in labels.aminmax()) if len(labels) else (self.n_classes, -1)
        sizes = [len(rows)]
        if self.processes > 1:
            every = exchange([len(rows), low, high], rows.device, self.process_group)
            sizes, low, high = [one[0] for one in every], min(one[1] for one in every), max(one[2] for one in every)
        if not sum(sizes):
            raise ValueError("features: expected at least one row over all processes, got none")
        if low < 0 or high >= self.n_classes:
            raise ValueError(f"labels: expected values in [0, {self.n_classes}), got [{low}, {high}]")
        if self.processes > 1:
            rows = gather_rows(rows, sizes, self.process_group)
            labels = gather_rows(labels[:, None], sizes, self.process_group)[:, 0]
        return rows, sizes, labels

    @torch.no_grad()
    def _kept(self, own: Tensor) -> Tensor:
        """Return the own classes of a call, ascending: those of the batch, and others drawn with ``sampling``."""
        number = torch.arange(self.classes.start, self.classes.stop, device=own.device)
        step = torch.full_like(number, self.step)
        words = philox(number & _WORD, number >> 32, step, torch.zeros_like(step), self.seed & _WORD, self.seed >> 32)
        keep = uniform53(words[0], words[1]) < self.sampling
        keep[own[own >= 0]] = True
        return keep.nonzero()[:, 0]

    def _numbers(self, kept: Tensor | None) -> Tensor:
        """Return the numbers of the classes in the whole classifier, int64."""
        if kept is None:
            return torch.arange(self.classes.start, self.classes.stop, device=self.weight.device)
        return kept + self.classes.start

    def _mine(self, values: Tensor, sizes: Sequence[int]) -> Tensor:
        rank = 0 if self.processes == 1 else torch.distributed.get_rank(self.process_group)
        first = sum(sizes[:rank])
        return values[first : first + sizes[rank]]

    def _everyone(self, values: Tensor) -> Tensor:
        """Return the values [M, N] of all processes as [M, n, N]."""
        if self.processes == 1:
            return values[:, None]
        everyone = [torch.empty_like(values) for _ in range(self.processes)]
        torch.distributed.all_gather(everyone, values.contiguous(), group=self.process_group)
        return torch.stack(everyone, 1)

    def _sum(self, values: Tensor) -> Tensor:
        """Add the values of all processes, in place."""
        if self.processes > 1:
            torch.distributed.all_reduce(values, group=self.process_group)
        return values

    def _check_processes(self) -> None:
        if (now := process_count(self.process_group)) != self.processes:
            raise ValueError(
                f"process_group: expected the {self.processes} processes that the classifier was created for, got "
                f"{now}; create it after torch.distributed.init_process_group"
            )
        if self._checked or self.processes == 1:
            return
        wrapper = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
        if wrapper is not None and any(p is self.weight for p in getattr(wrapper, "_module_parameters", ())):
            raise ValueError(
                "weight: expected each process to keep its own rows, got DistributedDataParallel around the "
                "classifier, which averages them; wrap the network alone"
            )
        self._checked = True

    # -- gradients, checkpoints ------------------------------------------------------------------------------

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Return the norm of the gradient of the whole classifier, float64; every process must call it.

        Without gradients it is 0.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        for parameter in self.parameters():
            if parameter.grad is not None:
                total += torch.linalg.vector_norm(parameter.grad).double().square()
        return self._sum(total).sqrt()

    def own_rows(self, whole: Tensor) -> Tensor:
        """Return this process's rows of a tensor of the whole classifier, [K, ...]; a view.

        Raises:
            ValueError: If there are not K rows.
        """
        if whole.dim() == 0 or len(whole) != self.n_classes:
            raise ValueError(f"whole: expected {self.n_classes} rows, got shape {list(whole.shape)}")
        return whole[self.classes.start : self.classes.stop]

    def gather_rows(self, own: Tensor) -> Tensor | None:
        """Return the rows of all processes, [K, ...], on the CPU of process 0; None in the others.

        Every process must call it. Process 0 receives one part at a time.

        Args:
            own: This process's rows, [K_own, ...], on the device of the weights.

        Raises:
            ValueError: If there are not K_own rows.
        """
        if own.dim() == 0 or len(own) != len(self.classes):
            raise ValueError(f"own: expected {len(self.classes)} rows, got shape {list(own.shape)}")
        if self.processes == 1:
            return torch.empty_like(own, device="cpu").copy_(own.detach())
        return collect_rows(own, self.shares, self.process_group)

    def whole(self) -> nn.Linear | LargeMarginCosine | None:
        """Return the whole classifier on the CPU of process 0, as :class:`LargeMarginCosine` or ``nn.Linear``.

        Every process must call it. The others receive None.
        """
        weight = self.gather_rows(self.weight)
        bias = None if self.bias is None else self.gather_rows(self.bias)
        if weight is None:
            return None
        with torch.device("meta"):
            head: nn.Linear | LargeMarginCosine = (
                LargeMarginCosine(self.in_features, self.n_classes, scale=self.scale, margin=self.margin)
                if bias is None
                else nn.Linear(self.in_features, self.n_classes)
            )
        state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        head.load_state_dict(state, assign=True)
        return head.train(self.training)

    @torch.no_grad()
    def load_whole(self, state: dict[str, Tensor]) -> None:
        """Take this process's rows from the ``state_dict`` of a whole classifier.

        Args:
            state: "weight" [K, D], and "bias" [K] for "cross_entropy".

        Raises:
            ValueError: If a name is missing or not of this classifier, or a shape is another one.
        """
        own = dict(self.named_parameters())
        if own.keys() != state.keys():
            raise ValueError(f"state: expected {', '.join(own)}, got {', '.join(state) or 'nothing'}")
        for name, parameter in own.items():
            shape = [self.n_classes, *parameter.shape[1:]]
            if list(state[name].shape) != shape:
                raise ValueError(f"state: expected {name} of shape {shape}, got {list(state[name].shape)}")
        for name, parameter in own.items():
            parameter.copy_(self.own_rows(state[name]))

    def gather_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Return ``optimizer.state_dict()`` with the moments of the whole classifier, for a checkpoint.

        Every process must call it. It can be loaded on any number of processes (:meth:`own_optimizer_state`).

        Args:
            optimizer: Optimizer of this classifier's parameters, and perhaps of others.

        Returns:
            The state in process 0, where moments of the classifier are on the CPU; None in the others.

        Raises:
            ValueError: If the state of a parameter is neither a scalar nor of its shape.
        """
        state = optimizer.state_dict()
        entries = dict(state["state"])
        for number, parameter in self._owned(optimizer):
            entries[number] = dict(sorted(entries.get(number, {}).items()))
            for name, value in entries[number].items():
                if isinstance(value, Tensor) and value.dim():
                    if value.shape != parameter.shape:
                        raise ValueError(
                            f"optimizer: expected {name} to have the shape {list(parameter.shape)} of its parameter, "
                            f"got {list(value.shape)}"
                        )
                    entries[number][name] = self.gather_rows(value)
        entries = {number: values for number, values in entries.items() if values}
        return {**state, "state": entries} if self.classes.start == 0 else None

    def own_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Return this process's part of what :meth:`gather_optimizer_state` returned, for ``load_state_dict``.

        Args:
            optimizer: Optimizer to load it into.
            state: State with the moments of the whole classifier.

        Raises:
            ValueError: If a moment has not K rows.
        """
        entries = dict(state["state"])
        for number, _ in self._owned(optimizer):
            if number in entries:
                entries[number] = {
                    name: self.own_rows(value).clone() if isinstance(value, Tensor) and value.dim() else value
                    for name, value in entries[number].items()
                }
        return {**state, "state": entries}

    def _owned(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, nn.Parameter]]:
        """Yield this classifier's parameters with their numbers in the optimizer."""
        every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        own = list(self.parameters())
        for number, parameter in enumerate(every):
            if any(parameter is one for one in own):
                yield number, parameter

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # A state of the whole classifier fits any number of processes.
        for name, parameter in self.named_parameters():
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.shape == (self.n_classes, *parameter.shape[1:]):
                state_dict[prefix + name] = self.own_rows(value)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of calls that drew negatives, for ``state_dict``."""
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self.step = int(state["step"])

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        cosine = f"scale={self.scale}, margin={self.margin}, " if self.loss == "large_margin_cosine" else ""
        return (
            f"{self.in_features}, {self.n_classes}, loss={self.loss!r}, {cosine}sampling={self.sampling}, "
            f"classes={self.classes.start}..{self.classes.stop - 1}"
        )


class _Loss(torch.autograd.Function):
    """Loss of gathered features, and the class of each largest logit; own rows of the classifier.

    With p the softmax over all classes kept, q the target (1 - ε at the right class, and ε / S everywhere, of S
    classes), the derivative by a logit is (p - q) / N. It takes the place of the logits, and gives each process the
    gradient of its rows, and its part of that of the features, which are added.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, own: Tensor, numbers: Tensor, head: PartialFC
    ) -> tuple[Tensor, Tensor]:
        cosine, smoothing = head.loss == "large_margin_cosine", head.label_smoothing
        unit = weight / _lengths(weight) if cosine else weight
        logits = rows @ unit.T if bias is None else torch.addmm(bias, rows, unit.T)
        del unit
        mine = (own >= 0).nonzero()[:, 0]
        target = own[mine]
        n, kept = logits.shape
        if kept:
            top, index = logits.max(1)
            best = numbers[index]
        else:  # no class of this process was drawn
            top, best = logits.new_full((n,), -torch.inf), own
        if cosine:
            logits[mine, target] -= head.margin
            logits *= head.scale
        peak = logits.amax(1) if kept else top
        tops, bests, peaks = head._everyone(torch.stack([top.double(), best.double(), peak.double()]))
        best = bests.gather(0, tops.argmax(0, keepdim=True))[0].long()
        logits -= peaks.amax(0).to(logits.dtype)[:, None]  # before exp, lest it overflow
        sums = logits.new_zeros(4, n, dtype=torch.float64)  # of the exponentials, right logits, all logits, and classes
        sums[1, mine] = logits[mine, target].double()
        if smoothing:
            sums[2], sums[3] = logits.sum(1).double(), kept
        logits.exp_()
        sums[0] = logits.sum(1).double()
        total, right, every, classes = head._sum(sums)
        loss = total.log() - (1 - smoothing) * right
        if smoothing:
            loss -= smoothing * every / classes
        if any(ctx.needs_input_grad):
            logits /= total.to(logits.dtype)[:, None]
            logits[mine, target] -= 1 - smoothing
            if smoothing:
                logits -= (smoothing / classes).to(logits.dtype)[:, None]
            ctx.save_for_backward(rows, weight, logits)
        ctx.head, ctx.cosine, ctx.bias = head, cosine, bias is not None
        ctx.mark_non_differentiable(best)
        return loss.mean().to(logits.dtype), best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        rows, weight, slope = ctx.saved_tensors
        factor = grads[0] / len(rows)
        bias = slope.sum(0) * factor if ctx.bias else None
        if ctx.cosine:
            factor = factor * ctx.head.scale
            lengths = _lengths(weight)
            unit = weight / lengths
            by_weight = slope.T @ rows
            by_weight *= factor
            along = (unit * by_weight).sum(1, keepdim=True)
            by_weight = by_weight.sub_(unit * along).div_(lengths)
        else:
            unit, by_weight = weight, (slope.T @ rows).mul_(factor)
        # Always added: a process whose own features need no gradient still has a part of the others'.
        by_rows = ctx.head._sum((slope @ unit).mul_(factor))
        return by_rows, by_weight, bias, None, None, None


def _lengths(rows: Tensor) -> Tensor:
    """Return the length of each row, [K, 1], infinite for rows of zeros: divided by it, they stay zeros."""
    parts = [torch.linalg.vector_norm(part, dim=1, keepdim=True, dtype=torch.float64) for part in rows.split(_DRAWN)]
    lengths = torch.cat(parts)
    return torch.where(lengths > 0, lengths, torch.inf).to(rows.dtype)


def _shares(classes: int, processes: int) -> list[int]:
    """Return the number of classes of each process, which differ by one at most."""
    return [classes // processes + (rank < classes % processes) for rank in range(processes)]
