"""Networks for faces: plain modules, traceable by torch.fx, each with ``features`` and logits."""

from .paper_net import PaperNet
from .resnet import ResNet, resnet18, resnet34, resnet50

__all__ = ["PaperNet", "ResNet", "resnet18", "resnet34", "resnet50"]
