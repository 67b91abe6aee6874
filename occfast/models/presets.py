"""Preparations of images that known families of recognizers expect."""

from __future__ import annotations

from dataclasses import dataclass

from .preprocessing import Preprocessing


@dataclass(frozen=True)
class Preset:
    """Preparation of a family of recognizers.

    Attributes:
        preprocessing: Size, colors and scaling.
        template: Alignment of the faces, a name in :data:`occfast.data.align.TEMPLATES`; None: the face's box, resized.
        about: The family, and where its preparation is documented.
    """

    preprocessing: Preprocessing
    template: str | None
    about: str


#: Presets by name. Facts were read in the named projects' own code.
PRESETS: dict[str, Preset] = {
    "insightface": Preset(
        Preprocessing((112, 112), "RGB", mean=0.5, std=0.5),
        "arcface-112",
        "insightface's packs (buffalo, antelope; w600k_r50.onnx): (x - 127.5) / 127.5",
    ),
    "arcface": Preset(
        Preprocessing((112, 112), "RGB", mean=0.0, std=1 / 255),
        "arcface-112",
        "networks converted from MXNet, which scale inside (ONNX Model Zoo's arcfaceresnet100): pixels 0 to 255",
    ),
    "adaface": Preset(
        Preprocessing((112, 112), "BGR", mean=0.5, std=0.5), "arcface-112", "AdaFace: (x / 255 - 0.5) / 0.5, BGR"
    ),
    "sface": Preset(
        Preprocessing((112, 112), "RGB", mean=0.0, std=1 / 255),
        "arcface-112",
        "OpenCV Zoo's face_recognition_sface: pixels 0 to 255",
    ),
    "facenet": Preset(
        Preprocessing((160, 160), "RGB", mean=127.5 / 255, std=128 / 255),
        None,
        "facenet-pytorch's InceptionResnetV1: (x - 127.5) / 128 of the face's box",
    ),
    "dlib": Preset(
        Preprocessing((150, 150), "RGB", mean=(122.782 / 255, 117.001 / 255, 104.298 / 255), std=256 / 255),
        None,
        "dlib's face_recognition_resnet_model_v1, converted: (x - mean) / 256 of dlib's own face chip",
    ),
    "sphereface": Preset(
        Preprocessing((112, 96), "RGB", mean=127.5 / 255, std=128 / 255),
        "sphereface-112x96",
        "SphereFace and the early MobileFaceNets: (x - 127.5) / 128",
    ),
}


def preset_named(name: str) -> Preset:
    """Return a preset; raise ValueError for a name that is not in :data:`PRESETS`."""
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
