"""Draws the pictures of the docs with the package itself: ``python docs/figures.py [name ...]``.

The face is scikit-image's public-domain photograph of the astronaut Eileen Collins; the score
distributions are those of the ORL faces.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from occfast import BatchTripletLoss, LocationDistribution, NoisyOccluder, OcclusionMap, plot_score_distributions
from occfast.data import PKSampler
from occfast.plots import draw_map, extent

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


def orl() -> tuple[torch.Tensor, torch.Tensor]:
    """The aligned ORL faces at half size, float32 [400, 1, 50, 50] about 0, and labels."""
    from occfast.data import ORL

    faces = ORL()
    return F.avg_pool2d(faces.images.float() / 127.5 - 1, 2), faces.labels


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.features(x))


def rectangles() -> None:
    """What a 20×40 occluder changes in the maps of the paper's network."""
    from matplotlib.patches import Rectangle

    from occfast.models import PaperNet
    from occfast.sweep import explain

    plan = explain(PaperNet(classes=1000).eval(), (100, 100), (20, 40))
    maps = [layer for layer in plan.layers if layer.size and layer.rectangle and not layer.label.startswith("max")]
    figure = Figure(figsize=(11, 1.9), layout="constrained")
    axes = figure.subplots(1, len(maps) + 1)
    shown = [("image", (100, 100), (20.0, 40.0)), *((m.label, m.size, m.rectangle) for m in maps)]
    for ax, (label, size, box) in zip(axes, shown, strict=True):
        ax.add_patch(Rectangle((0, 0), 1, 1, facecolor="#ece9f2"))
        height, width = box[0] / size[0], box[1] / size[1]
        ax.add_patch(Rectangle(((1 - width) / 2, (1 - height) / 2), width, height, facecolor="#b5367a"))
        ax.set_title(f"{label}\n{size[0]}×{size[1]}", fontsize=8)
        ax.set_xlim(0, 1)
        ax.set_ylim(1, 0)
        ax.set_aspect("equal")
        ax.set_axis_off()
    save(figure, "rectangles.png")


def demo() -> None:
    """The maps of a finished ``make demo``: base network above, trained with placed occluders below."""
    steps = max(Path("demo").glob("steps-*"), key=lambda path: path.stat().st_mtime)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 3)
    for column, size in enumerate(("20x20", "20x40", "40x40")):
        maps = [OcclusionMap.load(steps / f"map {name}, {size}, for the table.npz") for name in ("A", f"A{size}")]
        limits = (0.0, max(float(m.values.max()) for m in maps))
        for ax, m, name in zip(axes[:, column], maps, ("base network", "trained with occluders"), strict=True):
            draw_map(m.values, extent(*m.centers), ax=ax, label="error rate", limits=limits)
            mean, std = m.accuracy
            ax.set_title(
                f"{name}, {size.replace('x', '×')}\naccuracy {100 * mean:.1f} ± {100 * std:.1f} %", fontsize=10
            )
            ax.set_xlabel("")
            ax.set_ylabel("")
    save(figure, "demo-maps.png")


def triplet() -> None:
    """Score distributions before and after training with the batch triplet loss, as in Figure 4; prints the
    table of docs/triplet-loss.md.  30 people train a small network, the other 10 are looked at."""
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
    save(figure, "triplet.png")
    print("| mining | mined triplets | mean d_ap | mean d_an | var d_ap | var d_an |")
    print("| --- | --- | --- | --- | --- | --- |")
    for mining in ("all", "violating", "semihard", "semihard_random", "hardest"):
        s = look(mining).as_dict()
        print(f"| `{mining}` | {s['n_triplets']:,.0f} | {s['mean_ap']:.3f} | {s['mean_an']:.3f} | {s['var_ap']:.4f} | "
              f"{s['var_an']:.4f} |")  # fmt: skip
    s = after.as_dict()
    print({k: round(v, 3) for k, v in s.items()}, before.as_dict()["pair_decidability"])


def reproduce() -> None:
    """The steps of trigueros2018 and what needs what."""
    from occfast.reproduce.sources import Sources
    from occfast.reproduce.trigueros2018 import Settings, plan

    graph = plan(Settings.of("smoke"), Sources("smoke"), Path("nowhere"))
    colours = {"train": "#b5367a", "map": "#e08a2e", "table": "#2f7fb5", "verify": "#3a9a5b", "roc": "#3a9a5b"}
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    ax = figure.subplots()
    places: dict[str, tuple[float, float]] = {}
    for column, level in enumerate(graph.levels()):
        # A network's three maps of Table 1 are one box.
        names = list(dict.fromkeys(_box(step.name) for step in level))
        for row, name in enumerate(names):
            places[name] = (column, row - (len(names) - 1) / 2)
            ax.text(*places[name], name, ha="center", va="center", fontsize=6.5, color="white", zorder=3,
                    bbox={"boxstyle": "round,pad=0.3", "facecolor": colours[name.split()[0]], "edgecolor": "none"})  # fmt: skip
    for step in graph.steps.values():
        for other in step.needs:
            (x0, y0), (x1, y1) = places[_box(other)], places[_box(step.name)]
            ax.plot((x0, x1), (y0, y1), color="#cfcad9", linewidth=0.7, zorder=1)
    ax.set_xlim(-0.4, len(graph.levels()) - 0.6)
    ax.invert_yaxis()
    ax.set_axis_off()
    save(figure, "reproduce.png")


def _box(name: str) -> str:
    text = name.partition(": ")[2]
    return text.rpartition(" ")[0] + ", O" if text.startswith("table") else text


def scaling() -> None:
    """Predicted hours of trigueros2018 at full scale, by part, at a fifth of an H100's TF32 peak; none was measured."""
    from occfast.reproduce.sources import Sources
    from occfast.reproduce.steps import Rates, predict
    from occfast.reproduce.trigueros2018 import Settings, plan

    graph = plan(Settings.of("paper"), Sources("paper"), Path("nowhere"))
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    ax = figure.subplots()
    rates = Rates(1e14, 1e14, "given")
    parts = {"train A": "#575463", "14 fine-tunings": "#b5367a", "maps for P": "#e08a2e", "Table 1": "#2f7fb5"}
    for row, (speedup, text) in enumerate(((True, "incremental sweep"), (False, "dense sweep"))):
        left, minutes = 0.0, dict.fromkeys(parts, 0.0)
        for found in predict(graph, rates, known=False)["steps"]:
            kind = found["name"].partition(": ")[2]
            part = {"map": "maps for P", "tab": "Table 1", "tra": "14 fine-tunings"}.get(kind[:3])
            if part is not None:
                seconds = found["seconds"] if speedup or found["kind"] == "train" else found["flops"] / 1e14
                minutes["train A" if kind == "train A" else part] += seconds / 60
        for part, colour in parts.items():
            ax.barh(text, minutes[part], left=left, color=colour, label=part if row == 0 else None)
            left += minutes[part]
    ax.set_xlabel("minutes on one H100, predicted at 10¹⁴ operations a second")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.45, 1.25))
    save(figure, "scaling.png")


if __name__ == "__main__":
    figures = {
        "occluders": occluders,
        "temperatures": temperatures,
        "rectangles": rectangles,
        "demo": demo,
        "triplet": triplet,
        "reproduce": reproduce,
        "scaling": scaling,
    }
    for name in sys.argv[1:] or figures:
        figures[name]()
