"""Gather rows across processes, with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import torch.distributed as dist


class _GatherRows(torch.autograd.Function):
    """Concatenate the rows of all ranks; the backward pass returns this rank's rows times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
        import torch.distributed as dist

        rank = dist.get_rank(group)
        ctx.first, ctx.size, ctx.ranks = sum(sizes[:rank]), sizes[rank], len(sizes)
        # Sent as bytes, padded to the longest part: every backend sends bytes, whatever the dtype.
        longest = max(sizes)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: sizes[rank]] = rows
        sent = padded.view(torch.uint8) if padded.numel() else padded.to(torch.uint8)
        received = [torch.empty_like(sent) for _ in sizes]
        if sent.numel():
            dist.all_gather(received, sent, group=group)
        return torch.cat([part.view(rows.dtype)[:size] for part, size in zip(received, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        return grads[0][ctx.first : ctx.first + ctx.size] * ctx.ranks, None, None


def process_count(group: dist.ProcessGroup | None) -> int:
    """Return the number of processes; 1 where ``torch.distributed`` is not initialized."""
    import torch.distributed as dist

    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def exchange(numbers: Sequence[int], device: torch.device, group: dist.ProcessGroup | None) -> list[list[int]]:
    """Return the numbers of all ranks, in rank order; every rank gives as many. Waits for the device."""
    import torch.distributed as dist

    mine = torch.tensor(numbers, device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    found: list[list[int]] = torch.stack(everyone).tolist()
    return found


def gather_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """Concatenate the rows of all ranks, of which each has ``sizes[rank]``; see :class:`_GatherRows`."""
    gather: Any = _GatherRows.apply
    found: Tensor = gather(rows, sizes, group)
    return found


def collect_rows(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None) -> Tensor | None:
    """Return the rows of all ranks on the CPU of rank 0, which receives one part at a time; None on the others."""
    import torch.distributed as dist

    rank, mine = dist.get_rank(group), rows.detach().contiguous()
    if rank:
        dist.send(mine.view(torch.uint8), group=group, group_dst=0)
        return None
    whole = torch.empty(sum(sizes), *rows.shape[1:], dtype=rows.dtype)
    parts = list(whole.split(list(sizes)))
    parts[0].copy_(mine)
    for source, part in enumerate(parts[1:], 1):
        received = torch.empty_like(part, device=rows.device)
        dist.recv(received.view(torch.uint8), group=group, group_src=source)
        part.copy_(received)
    return whole


def gather_batch(embeddings: Tensor, labels: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Return the embeddings and labels of all ranks, in rank order; batch sizes may differ.

    Args:
        embeddings: This rank's rows [B, D].
        labels: This rank's labels, int64 [B].
        group: Process group; None for the default group.

    Raises:
        ValueError: If no process group is initialized.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("distributed: expected an initialized torch.distributed process group, got none")
    if dist.get_world_size(group) == 1:
        return embeddings, labels
    sizes = [size for [size] in exchange([embeddings.shape[0]], embeddings.device, group)]
    return gather_rows(embeddings, sizes, group), gather_rows(labels[:, None], sizes, group)[:, 0]
