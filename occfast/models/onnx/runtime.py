"""Networks in ONNX files, for their output alone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import DataError
from ...packages import require
from ..preprocessing import Preprocessing
from .file import channels_last


class OnnxNetwork(nn.Module):
    """A network in an ONNX file, run by ONNX Runtime on the CPU without gradients.

    Args:
        path: The file. It has one input, [N, C, H, W] or [N, H, W, C], and its first output is [N, D].

    Attributes:
        size: (height, width) of the input; None if the file leaves it open.
        channels: Number of input channels; None if the file leaves it open.
        preprocessing: How images become the input, as ``occfast export`` records it; None for files of other programs.
        digest: SHA-256 digest of the file, uint8 [32]: a buffer, so that it stands for the weights.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file is damaged or not an ONNX file.
        MissingPackage: ONNX Runtime is not installed.
        ValueError: The network doesn't have one input of four dimensions.
    """

    digest: Tensor

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        require("an ONNX network", "onnxruntime", extra="export")
        import onnxruntime

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common class of their own
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: not a readable ONNX file ({reason:.200})") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            found = [entry.shape for entry in inputs]
            raise ValueError(f"{path}: expected one input [N, C, H, W], got {found}")
        self._name = inputs[0].name
        batch, *rest = (dim if isinstance(dim, int) and dim > 0 else None for dim in inputs[0].shape)
        self._batch, self._channels_last = batch, channels_last(rest)
        channels, height, width = [rest[2], *rest[:2]] if self._channels_last else rest
        self.channels = channels
        self.size = None if height is None or width is None else (height, width)
        described = self._session.get_modelmeta().custom_metadata_map.get("preprocessing")
        self.preprocessing = None if described is None else Preprocessing.from_json(described, str(path))
        digest = hashlib.sha256(path.read_bytes()).digest()
        self.register_buffer("digest", torch.from_numpy(np.frombuffer(digest, np.uint8).copy()))
        self.eval()  # a file has no other mode

    def forward(self, images: Tensor) -> Tensor:
        """Return the first output for float32 images [N, C, H, W].

        Raises:
            ValueError: The network doesn't take images of this shape.
        """
        if self._batch is not None and self._batch != len(images):
            # The batch size is fixed: repeat the last image to fill it.
            filled = torch.cat([images, images[-1:].expand(-len(images) % self._batch, -1, -1, -1)])
            return torch.cat([self(part) for part in filled.split(self._batch)])[: len(images)]
        given = images.permute(0, 2, 3, 1) if self._channels_last else images
        try:
            found = self._session.run(None, {self._name: given.detach().cpu().contiguous().numpy()})[0]
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"images: the ONNX network failed on {list(images.shape)} ({reason:.200})") from error
        return torch.from_numpy(np.asarray(found))
