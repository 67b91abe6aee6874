"""What a network looks at: the gradient of its output by the image (pdsn-landmarks, Figures 2, 8 and 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import as_base, as_float, frozen


def saliency(
    base: nn.Module, images: Tensor, labels: Tensor | None = None, mask: Tensor | None = None, *, batch_size: int = 16
) -> Tensor:
    """|d logit / d pixel|, the largest over the channels.

    Args:
        base: see :func:`~occfast.pdsn.as_base`; it needs a head.
        images: uint8 or float in [0, 1], [N, C, H, W].
        labels: whose logit, int64 [N]; by default the highest one's.
        mask: of the base's maps, bool or float [N, C', H', W']: the logit of the masked maps.

    Returns:
        float32 [N, H, W].
    """
    base = as_base(base)
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"labels: expected shape [{len(images)}], got {list(labels.shape)}")
    if mask is not None and len(mask) != len(images):
        raise ValueError(f"mask: expected one for each of {len(images)} images, got {len(mask)}")
    parts = []
    with frozen(base), torch.enable_grad():
        for rows in torch.arange(len(images)).split(batch_size):
            x = as_float(images[rows].to(base.device)).detach().requires_grad_()
            maps = base.maps(x)
            if mask is not None:
                maps = maps * mask[rows].to(maps)
            logits = base.logits(maps)
            chosen = logits.argmax(1) if labels is None else labels[rows].to(logits.device)
            (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), x)
            parts.append(gradient.abs().amax(1).cpu())
    return torch.cat(parts)
