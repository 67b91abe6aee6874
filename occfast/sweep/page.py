"""The self-contained HTML page of one occlusion map."""

from __future__ import annotations

import html
import platform
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import draw_map, extent, gray, png_data_uri

if TYPE_CHECKING:
    from .maps import OcclusionMap


def render(m: OcclusionMap) -> str:
    """The page as text; every picture is inside it."""
    from importlib.resources import files

    import jinja2

    template = files("occfast.sweep").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=f"Occlusion map {m.occluder[0]}×{m.occluder[1]}",
        headline=_headline(m),
        pictures=[
            {"uri": _map_picture(m), "text": "Where covering hurts: the value at each center of the occluder."},
            {"uri": _masked_picture(m), "text": "The mean image, dark where covering does no harm."},
            {"uri": _histogram(m), "text": "How the locations are distributed."},
            {"uri": _error_picture(m), "text": _error_text(m)},
        ],
        rows=_rows(m),
        version=_version(),
    )


def _version() -> str:
    import torch

    from .._version import __version__

    return f"occfast {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"


def _headline(m: OcclusionMap) -> str:
    if m.score == "error":
        mean, std = m.accuracy
        return f"Accuracy over locations: {100 * mean:.2f} ± {100 * std:.2f} % ({m.n_images} images)"
    return f"Mean over locations: {m.values.mean():.4g} ± {m.values.std():.4g} ({m.n_images} images)"


def _rows(m: OcclusionMap) -> list[tuple[str, str]]:
    rate = m.n_evaluations / m.seconds if m.seconds > 0 else float("nan")
    rows: list[tuple[str, Any]] = [
        ("occluder (height × width)", f"{m.occluder[0]} × {m.occluder[1]} pixels"),
        ("image (height × width)", f"{m.grid.image[0]} × {m.grid.image[1]} pixels"),
        ("centers", f"{m.grid.rows} × {m.grid.columns}, stride {m.grid.stride}, border {m.grid.border!r}"),
        ("score", m.score),
        ("method", m.method),
        ("precision", m.precision or "the images' own"),
        ("images", f"{m.n_images} used, {m.n_skipped} left out because they are wrong uncovered"),
        ("evaluations", f"{m.n_evaluations:,} in {m.seconds:.1f} s, {rate:,.0f} a second"),
        *([] if m.estimate is None else [("how far from the full sweep", m.estimate)]),
        *sorted(m.settings.items()),
    ]
    return [(html.unescape(str(name)), str(value)) for name, value in rows]


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    return figure, figure.subplots()


def _map_picture(m: OcclusionMap) -> str:
    figure, ax = _figure()
    m.plot(ax=ax)
    return png_data_uri(figure)


def _masked_picture(m: OcclusionMap) -> str:
    figure, ax = _figure()
    ax.imshow(gray(m.masked_mean()), cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
    return png_data_uri(figure)


def _histogram(m: OcclusionMap) -> str:
    figure, ax = _figure()
    values = 1 - m.values if m.score == "error" else m.values
    ax.hist(values.ravel(), bins=40, color="#b5367a")
    ax.set_xlabel("accuracy with the occluder there" if m.score == "error" else m.score)
    ax.set_ylabel("locations")
    return png_data_uri(figure)


def _error_text(m: OcclusionMap) -> str:
    if m.interval is None:
        return "The standard error of each location's mean over images."
    return "Half the width of the 95 % interval that holds the full sweep's value."


def _error_picture(m: OcclusionMap) -> str:
    figure, ax = _figure()
    error, label = m.standard_error, "standard error"
    if m.interval is not None:
        error, label = (m.interval[1] - m.interval[0]) / 2, "half width"
    draw_map(np.nan_to_num(error), extent(*m.centers), ax=ax, label=label)
    return png_data_uri(figure)
