"""What the occluder costs a worker that loads JPEG faces.

``python -m bench.loading`` reads, decodes and occludes images in the 2 workers of a DataLoader; every worker counts the
CPU time of its own two parts, which other processes on the machine do not stretch.  Called for an image at a time
("array", "tensor") the occluder pays Python's price for each; called once for the worker's batch, in place, in
``collate_fn`` ("batch"), it does not.  "none" loads without it: what is left of images a second is the whole loader's
answer.  The four take turns, and each row is the median of the rounds.  The files come from the page cache, so loading
is as fast, and the share as large, as it gets.  They are crops of scikit-image's astronaut in a temporary folder;
``--folder`` takes any folder of JPEG files instead.  JSON goes to ``bench/results/loading.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bench.harness import RESULTS, environment, write
from occfast import NoisyOccluder, PerImage

HOWS = ("none", "batch", "tensor", "array")


class Faces(Dataset):
    """[k] -> image, CPU seconds of reading and decoding, CPU seconds of occluding."""

    def __init__(self, files: list[Path], how: str) -> None:
        self.files, self.how = files, how
        self.occluder = NoisyOccluder((20, 40), "normal", seed=0)
        self.each = PerImage(self.occluder)

    def __len__(self) -> int:
        return len(self.files)

    def collate(self, items: list[tuple[torch.Tensor, float, float]]) -> tuple[torch.Tensor, float, float]:
        """A batch, and both times of an image in it."""
        images, loading, last = zip(*items, strict=True)
        batch = torch.stack(images)
        occluding = sum(last)
        if self.how == "batch":
            start = time.thread_time()
            self.occluder.apply_(batch.permute(0, 3, 1, 2), torch.tensor(last))
            occluding = time.thread_time() - start
        return batch, sum(loading) / len(items), occluding / len(items)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, float, float]:
        start = time.thread_time()
        image = np.array(Image.open(self.files[k]).convert("RGB"))
        loaded = time.thread_time()
        if self.how == "none":
            return torch.from_numpy(image), loaded - start, 0
        if self.how == "batch":
            return torch.from_numpy(image), loaded - start, k
        if self.how == "array":
            out = torch.from_numpy(self.each(image, k))
        else:  # the tensor that the network gets
            out = self.each(torch.from_numpy(image).permute(2, 0, 1), k)
        return out, loaded - start, time.thread_time() - loaded


def write_faces(folder: Path, count: int, side: int) -> list[Path]:
    """Different crops of a photograph, JPEG of quality 90."""
    from skimage import data

    face = Image.fromarray(data.astronaut()[0:256, 96:352])
    random = np.random.default_rng(0)
    files = []
    for k in range(count):
        turned = face.rotate(float(random.uniform(-15, 15)), Image.Resampling.BILINEAR)
        left, top = (int(v) for v in random.integers(20, 60, 2))
        crop = turned.crop((left, top, left + 170, top + 170)).resize((side, side), Image.Resampling.BILINEAR)
        files.append(folder / f"{k}.jpg")
        crop.save(files[-1], quality=90)
    return files


def load(files: list[Path], how: str) -> tuple[float, float, float]:
    """Images a second of the whole loader, then for an image CPU seconds of loading and of occluding in a worker."""
    faces = Faces(files, how)
    loader = DataLoader(faces, batch_size=50, num_workers=2, collate_fn=faces.collate)
    start = time.perf_counter()
    parts = torch.tensor([(loading, occluding) for _, loading, occluding in loader], dtype=torch.float64)
    seconds = time.perf_counter() - start
    loading, occluding = parts[2:].mean(0).tolist()  # a worker's first batch warms it up
    return len(files) / seconds, loading, occluding


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.loading", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="of JPEG files; default: made from a photograph of scikit-image")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "loading.json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for side in (112, 250) if options.folder is None else (0,):
            if options.folder is None:
                files = write_faces(Path(temporary), options.count, side)
            else:
                files = sorted(options.folder.rglob("*.jpg"))[: options.count]
            rounds: dict[str, list[tuple[float, float, float]]] = {how: [] for how in HOWS}
            for how in HOWS * options.rounds:
                rounds[how].append(load(files, how))
            for how, runs in rounds.items():
                rate, loading, occluding = np.median(runs, 0).tolist()
                rows.append(
                    {
                        "files": len(files),
                        "pixels": side or "as they are",
                        "in and out": how,
                        "images_per_second": rate,
                        "loading_us": loading * 1e6,
                        "occluding_us": occluding * 1e6,
                        "share": occluding / loading,
                    }
                )
                print(
                    f"{side or 'as they are'} pixels, {how}: {rate:,.0f} images/s, load {loading * 1e6:.0f} us, "
                    f"occlude {occluding * 1e6:.1f} us: {occluding / loading:.1%} of the loading time",
                    flush=True,
                )
    write(options.output, {**environment("pillow"), "workers": 2, "rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
