"""What the occluder costs a worker that loads JPEG faces.

``python -m bench.loading`` reads, decodes and occludes images in the 2 workers of a DataLoader; every worker times
its own two parts.  Called for an image at a time ("array", "tensor") the occluder pays Python's price for each; called
once for the worker's batch, in place, in ``collate_fn`` ("batch"), it does not.  The images are crops of scikit-image's
astronaut, written into a temporary folder; ``--folder`` takes any folder of JPEG files instead.  JSON goes to
``bench/results/loading.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from occfast import NoisyOccluder, PerImage

RESULTS = Path(__file__).resolve().parent / "results"


class Faces(Dataset):
    """[k] -> seconds of reading and decoding, seconds of occluding."""

    def __init__(self, files: list[Path], how: str) -> None:
        self.files, self.how = files, how
        self.occluder = NoisyOccluder((20, 40), "normal", seed=0)
        self.each = PerImage(self.occluder)

    def __len__(self) -> int:
        return len(self.files)

    def collate(self, items: list[tuple[torch.Tensor, float, float]]) -> tuple[torch.Tensor, float, float]:
        """A batch, and the sums of both times."""
        images, loading, last = zip(*items, strict=True)
        batch = torch.stack(images)
        if self.how != "batch":
            return batch, sum(loading), sum(last)
        start = time.perf_counter()
        self.occluder.apply_(batch.permute(0, 3, 1, 2), torch.tensor(last))
        return batch, sum(loading), time.perf_counter() - start

    def __getitem__(self, k: int) -> tuple[torch.Tensor, float, float]:
        start = time.perf_counter()
        image = np.array(Image.open(self.files[k]).convert("RGB"))
        loaded = time.perf_counter()
        if self.how == "array":
            out = torch.from_numpy(self.each(image, k))
        elif self.how == "batch":
            return torch.from_numpy(image), loaded - start, k
        else:  # the tensor that the network gets
            planes = torch.from_numpy(image).permute(2, 0, 1)
            loaded = time.perf_counter()
            out = self.each(planes, k)
        return out, loaded - start, time.perf_counter() - loaded


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.loading", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="of JPEG files; default: made from a photograph of scikit-image")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=RESULTS / "loading.json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for side in (112, 250) if options.folder is None else (0,):
            if options.folder is None:
                files = write_faces(Path(temporary), options.count, side)
            else:
                files = sorted(options.folder.rglob("*.jpg"))[: options.count]
            for how in ("array", "tensor", "batch"):
                best = None
                for _ in range(3):
                    faces = Faces(files, how)
                    loader = DataLoader(faces, batch_size=50, num_workers=2, collate_fn=faces.collate)
                    start = time.perf_counter()
                    parts = torch.tensor([(a, b) for _, a, b in loader])
                    seconds = time.perf_counter() - start
                    loading, occluding = parts[2:].sum(0).tolist()  # a worker's first batch warms it up
                    row = {
                        "files": len(files), "pixels": side or "as they are", "in and out": how,
                        "images_per_second": len(files) / seconds, "loading_us": loading / len(files) * 1e6,
                        "occluding_us": occluding / len(files) * 1e6, "share": occluding / loading,
                    }  # fmt: skip
                    best = row if best is None or row["share"] < best["share"] else best
                assert best is not None
                rows.append(best)
                print(f"{best['pixels']} pixels, {how}: {best['images_per_second']:,.0f} images/s, "
                      f"load {best['loading_us']:.0f} us, occlude {best['occluding_us']:.1f} us: "
                      f"{best['share']:.1%} of the loading time", flush=True)  # fmt: skip
    environment = {
        "date": str(date.today()), "workers": 2, "cpu_count": os.cpu_count(), "torch": torch.__version__,
        "pillow": version("pillow"),
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
