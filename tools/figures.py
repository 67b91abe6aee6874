"""Draw the pictures of the docs: ``python -m tools.figures [name ...]``.

The single face is scikit-image's public-domain photograph of the astronaut Eileen Collins; the other faces are ORL's.
Some pictures need a finished run in the current folder; their docstrings name it.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from bench.harness import RESULTS, environment, write
from occfast import (
    BatchTripletLoss,
    LocationDistribution,
    NoisyOccluder,
    OcclusionMap,
    TripletStats,
    explain,
    occlusion_map,
    plot_score_distributions,
)
from occfast.data import ORL, PKSampler
from occfast.losses import Mining
from occfast.occlude.noisy import Noise

NOISES: tuple[Noise, ...] = ("salt_and_pepper", "speckle", "gaussian")
IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


def face() -> torch.Tensor:
    """Return the astronaut's face, float32 [1, 1, 100, 100] in [0, 1]."""
    from skimage import color, data, transform

    crop = color.rgb2gray(data.astronaut())[20:220, 125:325]
    return torch.from_numpy(transform.resize(crop, (100, 100), anti_aliasing=True)).float()[None, None]


def save(figure: Figure, name: str) -> None:
    """Write a figure to docs/images and print its path."""
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=80)
    print(IMAGES / name)


def plot(m: OcclusionMap, ax: Axes, highest: float) -> None:
    """Draw a map with colors from 0 to the highest value of several maps."""
    m.plot(ax=ax)
    ax.images[-1].set_clim(0, highest)


def occluders() -> None:
    """Draw three kinds of noise in three sizes, as in Figure 2 of trigueros2018."""
    figure = Figure(figsize=(7.2, 7.4), layout="constrained")
    axes = figure.subplots(3, 3)
    for row, size in zip(axes, ((20, 20), (20, 40), (40, 40)), strict=True):
        for ax, noise in zip(row, NOISES, strict=True):
            occluder = NoisyOccluder(
                size, locations="normal", noise=noise, level=(0.1, 0.3), intensity=(0.2, 0.8), seed=2
            )
            ax.imshow(occluder(face(), torch.tensor([len(noise)]))[0, 0], cmap="gray", vmin=0, vmax=1)
            ax.set_title(f"{size[0]}×{size[1]} {noise.replace('_', ' ')}", fontsize=10)
            ax.set_axis_off()
    save(figure, "occluders.png")


def temperatures() -> None:
    """Draw P of one synthetic map at four temperatures, and 300 centers drawn from each."""
    i, j = torch.meshgrid(torch.arange(100.0), torch.arange(100.0), indexing="ij")
    eyes = sum(torch.exp(-((i - 42) ** 2 / 120 + (j - column) ** 2 / 150)) for column in (34, 64))
    mouth = 0.4 * torch.exp(-((i - 75) ** 2 / 60 + (j - 50) ** 2 / 200))
    values = 0.6 * (eyes + mouth).double()  # an error rate with its peak at the eyes
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    axes = figure.subplots(2, 4)
    for top, bottom, temperature in zip(*axes, (0.05, 0.25, 0.4, 2.0), strict=True):
        p = LocationDistribution.softmax(values, temperature)
        top.imshow(p.probabilities, cmap="inferno", vmin=0)
        top.set_title(f"P, T = {temperature}", fontsize=10)
        boxes = NoisyOccluder((1, 1), locations=p, seed=1).draw(torch.zeros(300, 1, 100, 100)).boxes
        bottom.imshow(face()[0, 0], cmap="gray", vmin=0, vmax=1)
        bottom.plot(boxes[:, 1], boxes[:, 0], ".", color="#ff7d00", markersize=4)
        bottom.set_xlim(-0.5, 99.5)
        bottom.set_ylim(99.5, -0.5)
        for ax in (top, bottom):
            ax.set_axis_off()
    save(figure, "temperatures.png")


def orl() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the aligned ORL faces at half size, float32 [400, 1, 50, 50] in [-1, 1], and their labels."""
    faces = ORL()
    return F.avg_pool2d(faces.images.float() / 127.5 - 1, 2), faces.labels


class Network(nn.Module):
    """Small network that gives embeddings of unit length."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute embeddings [N, 64] of images [N, 1, 50, 50]."""
        return F.normalize(self.features(x))


def rectangles() -> None:
    """Draw what a 20×40 occluder changes in each layer of the paper's network."""
    from matplotlib.patches import Rectangle

    from occfast.models import PaperNet

    plan = explain(PaperNet(classes=1000).eval(), size=(100, 100), occluder=(20, 40))
    shown = [("image", (100, 100), (20.0, 40.0))]
    for layer in plan.layers:
        if layer.size and layer.rectangle and not layer.label.startswith("max"):
            shown.append((layer.label, layer.size, layer.rectangle))
    figure = Figure(figsize=(11, 1.9), layout="constrained")
    axes = figure.subplots(1, len(shown))
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


def step(folder: str, name: str) -> Path:
    """Return the latest finished step of a name, such as "seed-0-train-A"."""
    found = [path.parent for path in Path(folder).glob(f"{name}-{'[0-9a-f]' * 12}/done.json")]
    if not found:
        raise FileNotFoundError(f"{folder}: no finished step {name}")
    return max(found, key=lambda path: path.stat().st_mtime)


def demo() -> None:
    """Draw maps of a finished ``make demo``: base network above, trained with placed occluders below."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 3)
    for column, size in enumerate(("20x20", "20x40", "40x40")):
        maps = [
            OcclusionMap.load(step("demo/steps", f"seed-0-table-{name}-{size}") / "map.npz")
            for name in ("A", f"A{size}")
        ]
        highest = max(float(m.values.max()) for m in maps)
        for ax, m, name in zip(axes[:, column], maps, ("base network", "trained with occluders"), strict=True):
            plot(m, ax, highest)
            mean, std = m.accuracy
            ax.set_title(
                f"{name}, {size.replace('x', '×')}\naccuracy {100 * mean:.1f} ± {100 * std:.1f} %", fontsize=10
            )
            ax.set_xlabel("")
            ax.set_ylabel("")
    save(figure, "demo-maps.png")


def triplet() -> None:
    """Draw score distributions before and after training with the batch triplet loss, as in Figure 4.

    A small network is trained on 30 people; the other 10 are shown. The triplets of each mining are counted in
    bench/results/triplet-mining.json.
    """
    torch.manual_seed(0)
    images, labels = orl()
    train, held = labels < 30, labels >= 30
    network, loss_fn = Network(), BatchTripletLoss()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def look(mining: Mining = "violating") -> TripletStats:
        network.eval()
        viewer = BatchTripletLoss(mining=mining)
        with torch.no_grad():
            viewer(network(images[held]), labels[held])
        assert viewer.stats is not None
        return viewer.stats

    before = look()
    sampler = PKSampler(labels[train], p=15, k=8)
    for _ in range(20):
        network.train()
        for batch in sampler:
            x = images[train][batch]
            loss = loss_fn(network(x + 0.02 * torch.randn_like(x)), labels[train][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    after = look()
    figure = plot_score_distributions({"before": before, "after": after})
    save(figure, "triplet.png")
    minings: tuple[Mining, ...] = ("all", "violating", "semihard", "semihard_random", "hardest")
    write(
        RESULTS / "triplet-mining.json",
        environment() | {"rows": [{"mining": mining, **look(mining).as_dict()} for mining in minings]},
    )
    s = after.as_dict()
    print({k: round(v, 3) for k, v in s.items()}, before.as_dict()["pair_decidability"])


def reproduce() -> None:
    """Draw the steps of trigueros2018 and their dependencies."""
    from occfast.reproduce.trigueros2018.settings import Settings
    from occfast.reproduce.trigueros2018.sources import Sources
    from occfast.reproduce.trigueros2018.steps import plan

    graph = plan(Settings.of("smoke"), Sources("smoke"), Path("nowhere"))
    colors = {"train": "#b5367a", "map": "#e08a2e", "table": "#2f7fb5", "verify": "#3a9a5b", "roc": "#3a9a5b"}
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    ax = figure.subplots()
    places: dict[str, tuple[float, float]] = {}
    for column, level in enumerate(graph.levels()):
        # A network's three maps of Table 1 are one box.
        names = list(dict.fromkeys(_box(step.name) for step in level))
        for row, name in enumerate(names):
            places[name] = (column, row - (len(names) - 1) / 2)
            box = {"boxstyle": "round,pad=0.3", "facecolor": colors[name.split()[0]], "edgecolor": "none"}
            ax.text(*places[name], name, ha="center", va="center", fontsize=6.5, color="white", zorder=3, bbox=box)
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
    """Draw the predicted minutes of trigueros2018 at full scale, at a fifth of an H100's TF32 peak; not measured."""
    from occfast.reproduce.cost import Rates, predict
    from occfast.reproduce.trigueros2018.settings import Settings
    from occfast.reproduce.trigueros2018.sources import Sources
    from occfast.reproduce.trigueros2018.steps import plan

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
        for part, color in parts.items():
            ax.barh(text, minutes[part], left=left, color=color, label=part if row == 0 else None)
            left += minutes[part]
    ax.set_xlabel("minutes on one H100, predicted at 10¹⁴ operations a second")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.45, 1.25))
    save(figure, "scaling.png")


def covers() -> None:
    """Draw the occlusions of docs/guides/evaluation.md on the astronaut; MTCNN found the five landmarks."""
    from skimage import data

    from occfast.occlude import named_occlusion

    image = torch.from_numpy(data.astronaut()[20:220, 127:327].copy()).permute(2, 0, 1)[None]
    points = torch.tensor([[82.0, 79], [85, 122], [111, 100], [121, 77], [123, 120]], dtype=torch.float64)[None]
    names = (
        "forehead",
        "eyes",
        "nose",
        "mouth",
        "chin",
        "block:60x60@left_eye",
        "sunglasses:round",
        "sunglasses:square",
        "sunglasses:aviator",
        "sunglasses:wayfarer",
        "mask:surgical",
        "mask:cloth",
        "mask:respirator",
        "scarf:plain",
        "scarf:striped",
        "scarf:checked",
        "hand:mouth",
        "hand:eye",
        "hand:cheek",
        "noisy:40x80@84,100",
        "sunglasses+mask:surgical",
    )
    figure = Figure(figsize=(9.4, 4.4), layout="constrained")
    axes = figure.subplots(3, 7)
    for ax, name in zip(axes.flat, names, strict=False):
        ax.imshow(named_occlusion(name, seed=4)(image, points).images[0].permute(1, 2, 0))
        ax.set_title(name, fontsize=7)
    for ax in axes.flat:
        ax.set_axis_off()
    save(figure, "covers.png")


def intervals() -> None:
    """Draw how often intervals of TAR@FAR contain the population's value, in 400 simulated tests."""
    import numpy as np
    from scipy.stats import norm

    from occfast.evaluate import binomial_interval, roc

    random, n, apart = np.random.default_rng(0), 1000, 2.0
    same = np.arange(2 * n) < n
    fars = (0.001, 0.003, 0.01, 0.03, 0.1)
    covered = np.zeros((2, len(fars)))
    for _ in range(400):
        curve = roc(random.normal(size=2 * n) + apart * same, same)
        for k, far in enumerate(fars):
            truth, entry = norm.sf(norm.isf(far) - apart), curve.tar_at_far(far)
            fixed = binomial_interval(round(entry.tar * n), n)
            covered[:, k] += [i.low <= truth <= i.high for i in (entry.interval, fixed)]
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    ax = figure.subplots()
    for share, label in zip(covered / 400, ("Roc.tar_interval", "threshold taken as known"), strict=True):
        ax.semilogx(fars, share, "o-", label=label)
        print(label, [f"{v:.3f}" for v in share])
    ax.axhline(0.95, color="gray", linewidth=0.8)
    ax.set(xlabel="false acceptance rate", ylabel="intervals that hold the truth", ylim=(0, 1.02))
    ax.legend(fontsize=8)
    save(figure, "intervals.png")


def training() -> None:
    """Draw the curves of finished runs (docs/guides/training.md) and the score distributions before and after C."""
    import json

    def read_rows(path: Path) -> list[dict[str, float]]:
        with path.open(newline="") as file:
            return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]

    runs = Path("runs")
    names = {"A": "#444444", "A20x40": "#ff7d00", "C": "#b5367a"}
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for ax, (name, color) in zip(axes[0], names.items(), strict=True):
        steps, validations = read_rows(runs / name / "steps.csv"), read_rows(runs / name / "validations.csv")
        ax.plot([r["step"] for r in steps], [r["loss"] for r in steps], color=color)
        ax.set(title=f"{name}: loss" + (", batch triplet" if name == "C" else ", cross-entropy"), xlabel="step")
        axes[1, 0].plot(
            [r["step"] / validations[-1]["step"] for r in validations],
            [100 * r["verification"] for r in validations],
            ".-",
            color=color,
            label=name,
        )
    axes[1, 0].set(title="unseen people: accuracy over pairs, %", xlabel="share of the stage's steps")
    axes[1, 0].legend(frameon=False)
    scores = [json.loads(line) for line in (runs / "C" / "scores.jsonl").read_text().splitlines()]
    for ax, one, title in ((axes[1, 1], scores[0], "before C"), (axes[1, 2], scores[-1], "after C")):
        for kind, color in (("positive", "tab:green"), ("negative", "tab:red")):
            share = torch.tensor(one[kind], dtype=torch.float64)
            label = {"positive": "one person", "negative": "two people"}[kind]
            ax.stairs(share / share.sum(), one["edges"], fill=True, alpha=0.4, color=color, label=label)
        ax.set(title=f"{title}: d′ = {one['decidability']:.2f}", xlabel="squared distance", yticks=[])
    axes[1, 2].legend(frameon=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    save(figure, "training.png")


def pdsn() -> None:
    """Draw regions over the mean face of ORL, what LM2's masks keep, and the saliency under a face mask.

    Needs a finished ``occfast reproduce pdsn-landmarks``.
    """
    from occfast.pdsn import MaskDictionary, as_base, grid, landmark_bands, landmark_boxes, saliency
    from occfast.pdsn.faces import occlude, open_faces, read_faces
    from occfast.train import load_network

    steps = "reproduction/pdsn-landmarks/steps"
    dictionary = MaskDictionary.load(step(steps, "seed-0-dictionary-plain-lm2") / "dictionary plain lm2.npz")
    trained = load_network(step(steps, "seed-0-base-plain") / "base plain.safetensors")
    how = trained.preprocessing
    base = as_base(trained.network, trained.head, mean=how.mean, std=how.std).eval()
    size = dictionary.regions.size
    faces = read_faces(open_faces("orl", size=size), 0, progress=False)
    landmarks = faces.landmarks[faces.train]
    mean = faces.images[faces.train].float().mean(0).numpy()
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    top, rest = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.75, 1)).flat
    kinds = {
        "3x3": grid(3, 3, size),
        "lm1": landmark_boxes(landmarks, size),
        "lm2": landmark_bands(landmarks, size),
        "lm2-split": landmark_bands(landmarks, size, split=True),
    }
    for ax, (kind, regions) in zip(top.subplots(1, 4), kinds.items(), strict=True):
        regions.draw(mean, ax=ax, landmarks=landmarks)
        ax.set_title(kind, fontsize=10)
    masks, looks = rest.subfigures(1, 2, width_ratios=(1.6, 1))
    masks.suptitle("LM2: share of the features kept at each position", fontsize=10)
    dictionary.plot(masks.subplots(1, 5))
    looks.suptitle("saliency without and with the mask", fontsize=10)
    one = faces.test[:1]
    bands = landmark_bands(landmarks, size)
    image, covered = occlude("face mask", faces.images[one], faces.landmarks[one], bands, one, 0)
    axes = looks.subplots(1, 3)
    axes[0].imshow(image[0].float().mean(0).numpy(), cmap="gray")
    for ax, mask in zip(axes[1:], (None, dictionary.discard_mask(covered)), strict=True):
        ax.imshow(saliency(base, image, mask=mask)[0].numpy(), cmap="inferno")
    for ax in axes:
        ax.set_axis_off()
    save(figure, "pdsn.png")


def alignment() -> None:
    """Draw a photograph, upright and turned, and both aligned to each template."""
    from PIL import Image
    from skimage import data

    from occfast.data import TEMPLATES, align_faces
    from occfast.data.warp import warp

    photograph = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)
    # Found by MTCNN.
    landmarks = torch.tensor(
        [(102.25, 206.25), (105.25, 248.75), (130.75, 226.25), (140.75, 202.75), (144.25, 246.25)]
    ).double()
    figure = Figure(figsize=(9.6, 4.3), layout="constrained")
    rows = figure.subplots(2, 1 + len(TEMPLATES))
    for axes, (angle, scale) in zip(rows, ((0.0, 1.0), (0.4, 0.8)), strict=True):
        sine, cosine = (float(f(torch.tensor(angle))) * scale for f in (torch.sin, torch.cos))
        turn = torch.tensor([[cosine, sine], [-sine, cosine]]).double()
        shift = torch.tensor([130.0, 226.0]).double() - turn @ torch.tensor([110.0, 110.0]).double()
        image = warp(photograph, torch.cat([turn, shift[:, None]], 1), (220, 220))
        points = torch.linalg.solve(turn, (landmarks - shift).T).T
        shown = [("photograph", image, points)]
        for name in TEMPLATES:
            aligned = align_faces(image[None], points[None], name, gray=name == "paper-100")
            shown.append((name, aligned.images[0], aligned.landmarks[0]))
        for ax, (name, picture, five) in zip(axes, shown, strict=True):
            ax.imshow(picture.permute(1, 2, 0), cmap="gray", vmin=0, vmax=255)
            ax.plot(five[:, 1], five[:, 0], "o", color="#ff7d00", markersize=3)
            ax.set_title(name, fontsize=10)
            ax.set_axis_off()
    save(figure, "alignment.png")
    Image.open(IMAGES / "alignment.png").convert("RGB").quantize(128).save(IMAGES / "alignment.png", optimize=True)


class Watched:
    """Function of a network that records the centers of the black occluders on its images."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.centers: list[tuple[float, float]] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Record the centers, and return the network's outputs."""
        for image in images[:, 0] == 0:  # no pixel of a photograph is exactly 0 after the scaling
            rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
            if len(rows):
                self.centers.append((float(rows.double().mean()), float(columns.double().mean())))
        outputs: torch.Tensor = self.network(images)
        return outputs


def estimates() -> None:
    """Draw what the estimating methods visit and give, with network A of a finished ``make demo``; a few minutes."""
    import numpy as np

    from occfast.train import load_network

    trained = load_network(step("demo/steps", "seed-0-train-A") / "A" / "last.safetensors")
    network = trained.network.eval()
    faces, size = ORL(), (40, 40)
    part = torch.cat(faces.split((6, 2, 2))[1:])[::2]
    images, labels = trained.preprocessing(faces.images[part]), faces.labels[part]
    with torch.inference_mode():
        right = network(images).argmax(1) == labels
    images, labels = images[right], labels[right]
    full = occlusion_map(network, images, labels, size, stride=2)
    sampled = occlusion_map(network, images, labels, size, stride=2, method="sampled")
    assert full.per_image is not None and sampled.interval is not None
    chosen = int(np.abs(full.per_image.mean((1, 2)) - 0.25).argmin())
    one = full.per_image[chosen].astype(float)
    face, label = images[chosen : chosen + 1], labels[chosen : chosen + 1]
    methods: tuple[Literal["adaptive", "sampled"], ...] = ("adaptive", "sampled")
    watched = {method: Watched(network) for method in methods}
    found = {m: occlusion_map(f, face, label, size, stride=2, method=m) for m, f in watched.items()}
    adaptive = found["adaptive"]
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots(2, 3)
    extent = (-1, 2 * one.shape[1] - 1, 2 * one.shape[0] - 1, -1)
    axes[0, 0].imshow(one, cmap="gray_r", vmin=0, vmax=1.5, extent=extent)
    axes[0, 0].set_title("one face: where covering it\nmakes the network wrong", fontsize=10)
    titles = {
        "adaptive": f"adaptive: {adaptive.n_evaluations / one.size:.0%} of the positions,\n"
        f"{(adaptive.values == one).mean():.2%} right",
        "sampled": "sampled: one image's lattice",
    }
    for ax, method in zip(axes[0, 1:], methods, strict=True):
        ax.imshow(one, cmap="gray_r", vmin=0, vmax=3, extent=extent)
        ax.plot(*np.array(watched[method].centers).T[::-1], ".", color="#b5367a", markersize=3)
        ax.set_title(titles[method], fontsize=10)
    highest = float(full.values.max())
    for ax, m, name in ((axes[1, 0], full, "full sweep"), (axes[1, 1], sampled, "sampled")):
        plot(m, ax, highest)
        ax.set_title(f"{name}, mean of {m.n_images} faces\n{m.n_evaluations:,} evaluations", fontsize=10)
    half = (sampled.interval[1] - sampled.interval[0]) / 2
    figure.colorbar(axes[1, 2].imshow(half, cmap="inferno", vmin=0, extent=extent), label="half width")
    inside = ((sampled.interval[0] <= full.values) & (full.values <= sampled.interval[1])).mean()
    axes[1, 2].set_title(f"95 % intervals: the full sweep is inside\nat {inside:.0%} of the locations", fontsize=10)
    for ax in axes.flat:
        ax.set_axis_off()
    save(figure, "estimates.png")


if __name__ == "__main__":
    figures = {
        "covers": covers,
        "intervals": intervals,
        "occluders": occluders,
        "temperatures": temperatures,
        "rectangles": rectangles,
        "demo": demo,
        "estimates": estimates,
        "triplet": triplet,
        "reproduce": reproduce,
        "scaling": scaling,
        "training": training,
        "pdsn": pdsn,
        "alignment": alignment,
    }
    for name in sys.argv[1:] or figures:
        figures[name]()
