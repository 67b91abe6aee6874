"""Networks for faces: plain modules, traceable by torch.fx, that return logits, or features without a classifier."""

from . import onnx
from .iresnet import IResNet, iresnet18, iresnet34, iresnet50, iresnet100
from .mobilefacenet import MobileFaceNet
from .paper_net import PaperNet
from .preprocessing import Preprocessing
from .registry import NETWORKS, build, feature_size, features
from .resnet import ResNet, resnet18, resnet34, resnet50

__all__ = [
    "NETWORKS",
    "IResNet",
    "MobileFaceNet",
    "PaperNet",
    "Preprocessing",
    "ResNet",
    "build",
    "feature_size",
    "features",
    "iresnet18",
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "onnx",
    "resnet18",
    "resnet34",
    "resnet50",
]
