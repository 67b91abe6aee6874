"""Gather embeddings across processes, with gradients."""

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
    ranks = dist.get_world_size(group)
    if ranks == 1:
        return embeddings, labels
    mine = torch.tensor([embeddings.shape[0]], device=embeddings.device)
    everyone = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(everyone, mine, group=group)
    sizes = torch.cat(everyone).tolist()
    gather: Any = _GatherRows.apply
    return gather(embeddings, sizes, group), gather(labels[:, None], sizes, group)[:, 0]
