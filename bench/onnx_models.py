"""``python -m bench.onnx_models``: recognizers read from ONNX files against the modules that they were exported from.

Both compute the same map of the drop of similarity, exactly, and the same features of a batch, in turns in one process;
every figure is the median over the rounds, with the ratio of each round beside it. The largest difference of the
features from onnxruntime's is over the largest feature, that of the maps from the module's over the map's range. Needs
``pip install "occfast[export]"``. The result is written to ``bench/results/onnx-models.json``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import RESULTS, environment, lively, write
from occfast import occlusion_map
from occfast.models import build, load

# network, size, images and stride of the map
WORKLOADS = {
    "mobilefacenet": ((112, 96), 4, 4),
    "iresnet18": ((112, 112), 2, 6),
    "iresnet50": ((112, 112), 1, 8),
    "iresnet100": ((112, 112), 1, 12),
}


def exported(network: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Write a network as ONNX for batches of any size."""
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, *size),),
        path,
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        external_data=False,
        verbose=False,
    )


def seconds(work: Any) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def row(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Compare one network."""
    import onnxruntime

    size, count, stride = WORKLOADS[name]
    module = lively(build(name, channels=3, size=size)).eval()
    path = folder / f"{name}.onnx"
    exported(module, size, path)
    imported = load(path).network.eval()
    images = torch.randn(32, 3, *size, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(path))

    def a_map(network: nn.Module) -> Tensor:
        found = occlusion_map(
            network,
            images[:count],
            occluder=(20, 28),
            stride=stride,
            score="similarity_drop",
            method="incremental",
            progress=False,
        )
        return torch.from_numpy(found.values)

    with torch.no_grad():
        there = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
        features = imported(images)
        maps = {kind: a_map(network) for kind, network in (("module", module), ("onnx", imported))}
        times: dict[str, list[float]] = {"map module": [], "map onnx": [], "batch module": [], "batch onnx": []}
        for k in range(rounds):
            order = [("module", module), ("onnx", imported)]
            for kind, network in order if k % 2 == 0 else order[::-1]:
                times[f"map {kind}"].append(seconds(lambda network=network: a_map(network)))
                times[f"batch {kind}"].append(seconds(lambda network=network: network(images)))
    spread = float(maps["module"].max() - maps["module"].min())
    return {
        "network": name,
        "size": list(size),
        "images": count,
        "stride": stride,
        "features_differ": float((features - there).abs().max() / there.abs().max()),
        "maps_differ": float((maps["onnx"] - maps["module"]).abs().max()) / spread,
        "seconds": {key: statistics.median(values) for key, values in times.items()},
        "speed": {
            what: sorted(a / b for a, b in zip(times[f"{what} module"], times[f"{what} onnx"], strict=True))
            for what in ("map", "batch")
        },
    }


def main() -> int:
    """Compare every network."""
    parser = argparse.ArgumentParser(prog="python -m bench.onnx_models", description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(WORKLOADS), help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=RESULTS / "onnx-models.json")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.networks:
            rows.append(row(name, arguments.rounds, Path(folder)))
            speed = {what: round(statistics.median(r), 3) for what, r in rows[-1]["speed"].items()}
            print(name, {k: round(v, 2) for k, v in rows[-1]["seconds"].items()}, "onnx as fast as module:", speed)
    write(arguments.output, {**environment("onnx", "onnxruntime"), "rounds": arguments.rounds, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
