"""What ``tools.wheel_check`` runs with an installed wheel: use the kernels and print what came out, as JSON.

    python wheel_use.py

Not a part of the package: it runs in an environment of its own, away from the checkout.
"""

from __future__ import annotations

import hashlib
import json
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def digest(tensor: Tensor) -> str:
    """Return a hash of the bits of a tensor."""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def main() -> None:
    """Use the occluder first, and time that; then a map and the loss."""
    images, ids = torch.rand(8, 3, 40, 37, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    started = time.perf_counter()
    import occfast

    occluder = occfast.NoisyOccluder(size=(9, 14), seed=3)
    covered = occluder(images, ids)
    first_use = time.perf_counter() - started

    noise = {"float32": digest(covered), "uint8": digest(occluder((images * 255).to(torch.uint8), ids))}
    for dtype in (torch.float16, torch.bfloat16):
        noise[str(dtype).removeprefix("torch.")] = digest(occluder(images.to(dtype), ids).view(torch.int16))

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 10 * 9, 16)).eval()
    maps = {}
    for method in ("incremental", "dense"):
        m = occfast.occlusion_map(
            model, images, occluder=(9, 14), score="similarity_drop", stride=2, method=method, progress=False
        )
        maps[method] = torch.as_tensor(m.values).double()
    features = F.normalize(torch.randn(64, 24, dtype=torch.float64)).requires_grad_()
    loss = occfast.BatchTripletLoss(mining="semihard")(features, torch.arange(64) // 4)
    loss.backward()
    assert features.grad is not None
    from occfast.native import prebuilt

    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "package": occfast.__file__,
                "backend": occfast.backend()["cpu"],
                "variant": prebuilt.choose("cpu")[1],
                "first_use": first_use,
                "noise": noise,
                "map": maps["incremental"].flatten().tolist(),
                "map_error": float((maps["incremental"] - maps["dense"]).abs().max()),
                "loss": float(loss.detach()),
                "gradient": features.grad.flatten().tolist(),
            }
        )
    )


if __name__ == "__main__":
    main()
