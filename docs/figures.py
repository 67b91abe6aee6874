"""Draws the pictures of the docs with the package itself: ``python docs/figures.py``.

The face is scikit-image's public-domain photograph of the astronaut Eileen Collins.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from occfast import LocationDistribution, NoisyOccluder

IMAGES = Path(__file__).resolve().parent / "images"


def face() -> torch.Tensor:
    """Float32 [1, 1, 100, 100] in [0, 1]."""
    from skimage import color, data, transform

    crop = color.rgb2gray(data.astronaut())[20:220, 125:325]
    return torch.from_numpy(transform.resize(crop, (100, 100), anti_aliasing=True)).float()[None, None]


def save(figure: Figure, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=80)
    print(IMAGES / name)


def occluders() -> None:
    """Three kinds of noise in three sizes, as in Figure 2 of trigueros2018."""
    figure = Figure(figsize=(7.2, 7.4), layout="constrained")
    axes = figure.subplots(3, 3)
    for row, size in zip(axes, ((20, 20), (20, 40), (40, 40)), strict=True):
        for ax, noise in zip(row, ("salt_and_pepper", "speckle", "gaussian"), strict=True):
            occluder = NoisyOccluder(size, "normal", noise=noise, level=(0.1, 0.3), intensity=(0.2, 0.8), seed=2)
            ax.imshow(occluder(face(), torch.tensor([len(noise)]))[0, 0], cmap="gray", vmin=0, vmax=1)
            ax.set_title(f"{size[0]}×{size[1]} {noise.replace('_', ' ')}", fontsize=10)
            ax.set_axis_off()
    save(figure, "occluders.png")


def temperatures() -> None:
    """One map, its P at four temperatures, and where 300 occluders fall."""
    i, j = torch.meshgrid(torch.arange(100.0), torch.arange(100.0), indexing="ij")
    eyes = sum(torch.exp(-((i - 42) ** 2 / 120 + (j - column) ** 2 / 150)) for column in (34, 64))
    mouth = 0.4 * torch.exp(-((i - 75) ** 2 / 60 + (j - 50) ** 2 / 200))
    values = 0.6 * (eyes + mouth).double()  # made up: an error rate with its peak at the eyes
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    axes = figure.subplots(2, 4)
    for top, bottom, temperature in zip(*axes, (0.05, 0.25, 0.4, 2.0), strict=True):
        p = LocationDistribution.softmax(values, temperature)
        top.imshow(p.probabilities, cmap="inferno", vmin=0)
        top.set_title(f"P, T = {temperature}", fontsize=10)
        boxes = NoisyOccluder((1, 1), p, seed=1).draw(torch.zeros(300, 1, 100, 100)).boxes
        bottom.imshow(face()[0, 0], cmap="gray", vmin=0, vmax=1)
        bottom.plot(boxes[:, 1], boxes[:, 0], ".", color="#ff7d00", markersize=4)
        bottom.set_xlim(-0.5, 99.5)
        bottom.set_ylim(99.5, -0.5)
        for ax in (top, bottom):
            ax.set_axis_off()
    save(figure, "temperatures.png")


if __name__ == "__main__":
    occluders()
    temperatures()
