"""Networks for faces: plain modules, traceable by torch.fx, that return logits, or features without a classifier."""

from . import onnx
from .iresnet import IResNet, iresnet18, iresnet34, iresnet50, iresnet100
from .loading import Recognizer, load
from .mobilefacenet import MobileFaceNet
from .paper_net import PaperNet
from .preprocessing import Preprocessing
from .presets import PRESETS, Preset
from .registry import NETWORKS, build, feature_size, features
from .resnet import ResNet, resnet18, resnet34, resnet50
from .weights import load_into

__all__ = [
    "NETWORKS",
    "PRESETS",
    "IResNet",
    "MobileFaceNet",
    "PaperNet",
    "Preprocessing",
    "Preset",
    "Recognizer",
    "ResNet",
    "build",
    "feature_size",
    "features",
    "iresnet18",
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "load",
    "load_into",
    "onnx",
    "resnet18",
    "resnet34",
    "resnet50",
]
