"""Saliency maps: gradients of a logit with respect to the image (pdsn-landmarks, Figures 2, 8 and 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import checks
from .base import as_base, as_float, frozen


def saliency(
    base: nn.Module, images: Tensor, labels: Tensor | None = None, *, mask: Tensor | None = None, batch_size: int = 16
) -> Tensor:
    """Compute ``|d logit / d pixel|``, the maximum over the channels.

    Args:
        base: Base network with a head; see :func:`~occfast.pdsn.as_base`.
        images: uint8, or floating point in [0, 1], [N, C, H, W].
        labels: Class whose logit is differentiated, int64 [N]. Default: the predicted class.
        mask: Mask of the base's maps, bool or float [N, C', H', W']. Default: no mask.
        batch_size: Number of images per pass, at least 1.

    Returns:
        float32 [N, H, W] on the CPU.

    Raises:
        ValueError: The base has no head, or shapes differ.
    """
    base = as_base(base)
    checks.integer(batch_size, "batch_size", 1)
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"labels: expected shape [{len(images)}], got {list(labels.shape)}")
    if mask is not None and len(mask) != len(images):
        raise ValueError(f"mask: expected one mask for each of {len(images)} images, got {len(mask)}")
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
