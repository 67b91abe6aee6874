"""Export of trained networks as ONNX, compared with PyTorch before a file is written."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import checks
from ..files import write_atomically
from ..models import features
from ..models.weights import Trained
from ..packages import require

#: Outputs that an exported network can have.
OUTPUTS = ("features", "logits")


@dataclass(frozen=True)
class Exported:
    """Exported network.

    Attributes:
        path: Path of the ONNX file.
        output: "features" or "logits".
        size: Size of the output for one image.
        batches: Batch sizes of the comparison with PyTorch.
        largest_difference: Largest difference between onnxruntime and PyTorch, over the largest absolute output.
    """

    path: str
    output: str
    size: int
    batches: list[int]
    largest_difference: float


def export_onnx(
    trained: Trained,
    path: str | os.PathLike[str],
    *,
    output: Literal["features", "logits"] = "features",
    opset: int = 18,
    tolerance: float = 1e-4,
    batches: Sequence[int] = (1, 3, 8),
) -> Exported:
    """Write a network as ONNX for batches of any size, and compare onnxruntime with PyTorch.

    The input is named "images": float32 [N, C, H, W], prepared as the metadata entry "preprocessing" of the file says
    (:meth:`occfast.models.Preprocessing.from_json` reads it). The output has the name ``output``.

    Args:
        trained: Network, from :func:`occfast.train.load_network`.
        path: File to write, if the outputs agree.
        output: "features" (not normalized) or "logits".
        opset: Version of the ONNX operator set, at least 18.
        tolerance: Largest difference allowed, over the largest absolute output.
        batches: Batch sizes to compare with.

    Raises:
        ValueError: If the network has no logits, or the outputs differ by more than ``tolerance``.
        MissingPackage: onnx, onnxscript or onnxruntime is not installed.
    """
    checks.choice(output, "output", OUTPUTS)
    checks.integer(opset, "opset", 18)
    checks.number(tolerance, "tolerance", 0.0)
    require("export", "onnx", "onnxruntime", "onnxscript", extra="export")
    import onnx

    network = (_Features(trained.network) if output == "features" else trained.classifier()).eval().cpu()
    preprocessing = trained.preprocessing
    shape = (preprocessing.channels, *preprocessing.size)
    # Two images: the exporter would turn a batch of one into a constant.
    example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["images"],
            output_names=[output],
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    described = {
        "kind": "occfast.network",
        "preprocessing": preprocessing.to_json(),
        "network": json.dumps(trained.spec),
        "people": json.dumps(trained.people if output == "logits" else []),
        "about": json.dumps(trained.about),
    }
    for part in (*model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # source code and paths of this machine
    onnx.helper.set_model_props(model, described)
    content: bytes = model.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "candidate.onnx"
        candidate.write_bytes(content)
        size, difference = _compare(network, candidate, shape, batches)
    if not difference <= tolerance:
        raise ValueError(
            f"export: expected onnxruntime to agree with PyTorch within {tolerance:g} of the largest answer, "
            f"got {difference:g}; nothing was written"
        )
    write_atomically(path, content)
    return Exported(os.fspath(path), output, size, list(batches), difference)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Features(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return features(self.network)(images)


@torch.no_grad()
def _compare(network: nn.Module, path: Path, shape: Sequence[int], batches: Sequence[int]) -> tuple[int, float]:
    """Return the size of the output for one image, and the largest difference over the largest output."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random, worst, largest, size = torch.Generator().manual_seed(1), 0.0, 0.0, 0
    for batch in batches:
        images = 4 * torch.rand(batch, *shape, generator=random) - 2
        expected = network(images)
        got = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        if got.shape != expected.shape:
            raise ValueError(f"export: expected onnxruntime to give {list(expected.shape)}, got {list(got.shape)}")
        worst = max(worst, float((got - expected).abs().max()))
        largest, size = max(largest, float(expected.abs().max())), expected.shape[1]
    return size, worst / max(largest, 1e-30)
