"""Drawing of maps; Matplotlib is imported when something is drawn."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray


def extent(rows: NDArray[Any], columns: NDArray[Any]) -> tuple[float, float, float, float]:
    """Left, right, bottom, top in pixels of the area that a map's cells stand for."""

    def edges(centers: NDArray[Any]) -> tuple[float, float]:
        step = (centers[-1] - centers[0]) / (len(centers) - 1) if len(centers) > 1 else 1.0
        return float(centers[0] - step / 2), float(centers[-1] + step / 2)

    (top, bottom), (left, right) = edges(rows), edges(columns)
    return left, right, bottom, top


def gray(image: Any) -> NDArray[Any]:
    """An image [H, W], [1, H, W] or [3, H, W] as something Matplotlib shows, stretched to [0, 1]."""
    array = np.asarray(image, dtype=np.float64)
    if array.ndim == 3:
        array = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    low, high = float(array.min()), float(array.max())
    return (array - low) / (high - low) if high > low else np.zeros_like(array)


def draw_map(
    values: NDArray[Any],
    where: tuple[float, float, float, float],
    *,
    ax: Any = None,
    image: Any = None,
    label: str = "",
    limits: tuple[float, float] | None = None,
) -> Any:
    """Draw a map, over an image if one is given; returns the axes."""
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(4.2, 3.6), layout="constrained").subplots()
    if image is not None:
        picture = gray(image)
        ax.imshow(picture, cmap="gray", extent=(-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5))
    low, high = limits if limits else (None, None)
    shown = ax.imshow(
        values,
        extent=where,
        cmap="inferno",
        vmin=low,
        vmax=high,
        alpha=0.6 if image is not None else 1.0,
        interpolation="nearest",
    )
    if image is not None:
        ax.set_xlim(-0.5, picture.shape[1] - 0.5)
        ax.set_ylim(picture.shape[0] - 0.5, -0.5)
    ax.set_xlabel("column of the center [pixels]")
    ax.set_ylabel("row of the center [pixels]")
    ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.85)
    return ax


def png_data_uri(figure: Any, dpi: int = 110) -> str:
    """A figure as a ``data:`` address for a self-contained page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
