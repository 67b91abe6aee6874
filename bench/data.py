"""Images a second from a folder and from RecordIO through decoding and aligning to the batch, against a Pillow loop.

    python -m bench.data                       # 2,000 JPEG files of one face, made for it
    python -m bench.data --data lfw            # any data set with landmarks and image files
    python -m bench.data --workers 0 1 2

"aligned before" reads what ``occfast data convert --template`` wrote: PNG files in a RecordIO, pixels in an ``.npz``.
Contenders take turns within one run, every figure is the median of the rounds; files are in the page cache.  "read" is
the random access alone: the bytes of images in a shuffled order.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.harness import RESULTS, environment, write
from occfast.data import Aligned, Face, FaceDataset, Folder, Npz, RecordIO, Subset, open_dataset, write_landmarks
from occfast.data.convert import convert

TEMPLATE = "arcface-112"
BATCH = 64


def make_faces(root: Path, count: int) -> None:
    """Jittered 150×150 cuts of scikit-image's astronaut, ten a "person", with landmarks."""
    from skimage import data

    picture = Image.fromarray(data.astronaut()[:260, 90:350])
    five = np.array([(102.25, 116.25), (105.25, 158.75), (130.75, 136.25), (140.75, 112.75), (144.25, 156.25)])
    random = np.random.default_rng(0)
    names, points = [], []
    for k in range(count):
        side = int(random.integers(150, 200))
        top, left = (int(v) for v in random.integers(0, 260 - side, 2))
        names.append(f"person_{k // 10:05d}/{k:06d}.jpg")
        points.append((five - (top, left) + 0.5) * 150 / side - 0.5)
        path = root / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.crop((left, top, left + side, top + side)).resize((150, 150)).save(path, quality=90)
    write_landmarks(root / "landmarks.csv", names, torch.tensor(np.array(points)))


class Pillow(Dataset):
    """The plain way: open, convert, transform, to a tensor."""

    def __init__(self, paths: list[str], matrices: Tensor, size: tuple[int, int]) -> None:
        self.paths, self.size = paths, size
        # Pillow wants x and y, and takes pixel centers at one half.
        a, b, c, d, e, f = matrices.flatten(1).T
        self.matrices = torch.stack([e, d, f + 0.5 - (d + e) / 2, b, a, c + 0.5 - (a + b) / 2], 1).tolist()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> Tensor:
        image = Image.open(self.paths[k]).convert("RGB")
        turned = image.transform(self.size[::-1], Image.Transform.AFFINE, self.matrices[k], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(turned)).permute(2, 0, 1)


def collate(items: list[Face | Tensor]) -> Tensor:
    return torch.stack([item.image if isinstance(item, Face) else item for item in items])


def one_thread(_: int) -> None:
    torch.set_num_threads(1)


def batches(dataset: Dataset, order: list[int], workers: int) -> Iterator[Tensor]:
    return iter(
        DataLoader(
            dataset,
            BATCH,
            sampler=order,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=one_thread,
            prefetch_factor=4 if workers else None,
        )
    )


def through(dataset: Dataset, order: list[int], workers: int) -> float:
    """Images a second; with workers from the first batch on, so that their start doesn't count."""
    loader = batches(dataset, order, workers)
    skipped = len(next(loader)) if workers else 0
    started = time.perf_counter()
    count = sum(len(batch) for batch in loader)
    assert count == len(order) - skipped
    return count / (time.perf_counter() - started)


def read(dataset: FaceDataset, order: list[int]) -> float:
    started = time.perf_counter()
    for k in order:
        dataset.encoded(k)
    return len(order) / (time.perf_counter() - started)


def check(pillow: Pillow, aligned: FaceDataset) -> None:
    """All contenders make the same picture, but for roundings."""
    for k in range(0, len(aligned), max(1, len(aligned) // 5)):
        difference = (pillow[k].int() - aligned[k].image.int()).abs().float().mean()
        assert difference < 1.5, (k, difference)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="a data set with landmarks in files; default: made for it")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "data.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if options.data is None:
            make_faces(root / "made", options.images)
            source: FaceDataset = Folder(root / "made")
        else:
            source = open_dataset(options.data)
            step = max(1, len(source) // options.images)
            source = Subset(source, range(0, len(source), step)[: options.images])
        folder = Folder(convert(source, root / "folder", progress=False))
        records = RecordIO(convert(folder, root / "train.rec", progress=False))
        order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(0)).tolist()
        aligned = Aligned(folder, TEMPLATE, gray=False, border="black")
        pillow = Pillow([str(folder.path(k)) for k in range(len(folder))], aligned.matrices, (112, 112))
        check(pillow, aligned)
        before = RecordIO(convert(aligned, root / "aligned.rec", progress=False))
        pixels = Npz(convert(aligned, root / "aligned.npz", pixels=True, progress=False))
        contenders: dict[tuple[str, str], Callable[[], float]] = {}
        for workers in options.workers:
            for who, dataset in (
                ("Pillow loop", pillow),
                ("occfast folder", aligned),
                ("occfast RecordIO", Aligned(records, TEMPLATE, gray=False, border="black")),
                ("aligned before, RecordIO", before),
                ("aligned before, npz", pixels),
            ):
                contenders[f"to the batch, {workers} workers", who] = lambda d=dataset, w=workers: through(d, order, w)
        contenders["read", "occfast folder"] = lambda: read(folder, order)
        contenders["read", "occfast RecordIO"] = lambda: read(records, order)
        rates: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
        for round_ in range(options.rounds + 1):
            for key, run in contenders.items():
                rate = run()
                if round_:  # the first warms up
                    rates[key].append(rate)
    rows = []
    for (workload, who), values in rates.items():
        base = statistics.median(rates[workload, "occfast folder" if workload == "read" else "Pillow loop"])
        rate = statistics.median(values)
        each = max(1, int(workload.split()[3])) if workload != "read" else 1
        rows.append(
            {
                "workload": workload,
                "who": who,
                "images_per_second": round(rate),
                "per_worker": round(rate / each),
                "ratio": round(rate / base, 2),
                "spread": [round(min(values)), round(max(values))],
            }
        )
        print(f"{workload:24} {who:24} {rate:10,.0f}/s {rate / each:10,.0f}/s a worker {rate / base:6.2f}x")
    result = {
        **environment("pillow"),
        "data": options.data or "astronaut, 150x150 JPEG",
        "images": len(order),
        "template": TEMPLATE,
        "batch": BATCH,
        "ratio": "to the Pillow loop; of read: to the folder",
        "rows": rows,
    }
    write(options.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
