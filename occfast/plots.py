"""Figures. Matplotlib is imported when something is drawn."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .checks import SupportsDLPack
from .packages import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Images as tensors, arrays or nested lists.
Image = Tensor | SupportsDLPack | ArrayLike

_SIZE = (4.2, 3.6)  # inches


def extent(rows: NDArray[Any], columns: NDArray[Any]) -> tuple[float, float, float, float]:
    """Return the edges (left, right, bottom, top) of the area that a map's cells cover, in pixels."""

    def edges(centers: NDArray[Any]) -> tuple[float, float]:
        step = (centers[-1] - centers[0]) / (len(centers) - 1) if len(centers) > 1 else 1.0
        return float(centers[0] - step / 2), float(centers[-1] + step / 2)

    (top, bottom), (left, right) = edges(rows), edges(columns)
    return left, right, bottom, top


def gray(image: Image) -> NDArray[Any]:
    """Return an image [H, W], [1, H, W] or [3, H, W] in the layout of Matplotlib, stretched to [0, 1]."""
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image, dtype=np.float64)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[0] not in (1, 3)):
        raise ValueError(
            f"image: expected the pixels of an image, [H, W], [1, H, W] or [3, H, W], got shape {list(array.shape)}"
        )
    if array.ndim == 3:
        array = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    low, high = float(array.min()), float(array.max())
    return (array - low) / (high - low) if high > low else np.zeros_like(array)


def new_figure(size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    """Return a new figure outside of pyplot, for a file or a page, and its axes."""
    require("a picture", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def shown_axes() -> Axes:
    """Return the axes of a new figure of pyplot: a notebook shows it, and so does ``pyplot.show()``."""
    require("a picture", "matplotlib")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=_SIZE, layout="constrained")[1]


def draw_map(
    values: NDArray[Any],
    where: tuple[float, float, float, float],
    *,
    ax: Axes | None = None,
    image: Image | None = None,
    label: str = "",
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw a map, over an image if one is given.

    A map with values or limits below 0 gets diverging colors that are white at 0.

    Args:
        values: [rows, columns].
        where: From :func:`extent`.
        ax: Axes to draw on; None: those of a new figure of pyplot.
        image: [H, W], [1, H, W] or [3, H, W].
        label: Of the color bar.
        limits: Values at the ends of the colors, symmetric about 0 if the lower is negative; None: those of the map.

    Returns:
        The axes.
    """
    ax = shown_axes() if ax is None else ax
    picture = None if image is None else gray(image)
    if picture is not None:
        ax.imshow(picture, cmap="gray", extent=(-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5))
    low, high = limits if limits else (None, None)
    signed = limits[0] < 0 if limits else bool((values < 0).any())
    if signed and limits is None:
        high = float(np.nanmax(np.abs(values)))
        low = -high
    shown = ax.imshow(
        values,
        extent=where,
        cmap="RdBu_r" if signed else "inferno",
        vmin=low,
        vmax=high,
        alpha=0.6 if picture is not None else 1.0,
        interpolation="nearest",
    )
    if picture is not None:
        ax.set_xlim(-0.5, picture.shape[1] - 0.5)
        ax.set_ylim(picture.shape[0] - 0.5, -0.5)
    ax.set_xlabel("column of the center [pixels]")
    ax.set_ylabel("row of the center [pixels]")
    figure: Any = ax.figure
    figure.colorbar(shown, ax=ax, label=label, shrink=0.85)
    return ax


def png(figure: Figure, dpi: int = 110) -> bytes:
    """Return a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def png_data_uri(figure: Figure, dpi: int = 110) -> str:
    """Return a figure as a ``data:`` URI for a self-contained page."""
    return _png_uri(png(figure, dpi))


def image_data_uri(image: Tensor) -> str:
    """Return an image, uint8 [C, H, W], as a ``data:`` URI for a self-contained page."""
    from PIL import Image as Pillow

    array = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Pillow.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, format="PNG")
    return _png_uri(buffer.getvalue())


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def plain(text: str) -> str:
    """Return a text that Matplotlib draws as it is."""
    # Matplotlib reads text between dollar signs as a formula, and leaves labels that begin with "_" out of the legend.
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
