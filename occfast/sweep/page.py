"""HTML page of one occlusion map."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import pages
from ..packages import require
from ..plots import draw_map, extent, gray, new_figure, png_data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .comparison import MapComparison
    from .maps import OcclusionMap


def render(m: OcclusionMap, comparison: MapComparison | None = None, threshold: float | None = None) -> str:
    """Return the page of a map, with its pictures inside, and with a section for a comparison if there is one."""
    require("a page", "jinja2")  # before pictures are drawn
    return pages.render(
        "occfast.sweep",
        "page.html",
        title=f"Occlusion map {m.occluder_text}".replace("x", "×"),
        headline=_headline(m),
        pictures=[{"uri": png_data_uri(figure), "text": text} for figure, text in _pictures(m, threshold)],
        comparison=None if comparison is None else _comparison(comparison),
        rows=_rows(m),
    )


def _headline(m: OcclusionMap) -> str:
    if m.binary:
        mean, std = m.accuracy
        return f"Accuracy over locations: {100 * mean:.2f} ± {100 * std:.2f} % ({m.n_images} images)"
    return f"Mean over locations: {m.values.mean():.4g} ± {m.values.std():.4g} ({m.n_images} images)"


def _rows(m: OcclusionMap) -> list[tuple[str, str]]:
    rate = m.n_evaluations / m.seconds if m.seconds > 0 else float("nan")
    rows: list[tuple[str, Any]] = [
        ("occluder (height × width)", m.occluder_text.replace("x", " × ") + " pixels"),
        ("image (height × width)", f"{m.grid.image[0]} × {m.grid.image[1]} pixels"),
        (
            "centers",
            f"{m.grid.rows} × {m.grid.columns}, stride {m.grid.stride}, border {m.grid.border!r}"
            + ("" if m.grid.region is None else f", region {m.grid.region}"),
        ),
        ("score", m.score),
        ("method", m.method),
        ("precision", m.precision or "the images' own"),
        ("images", f"{m.n_images} used, {m.n_skipped} left out (misclassified without an occluder)"),
        ("evaluations", f"{m.n_evaluations:,} in {m.seconds:.1f} s, {rate:,.0f} a second"),
        *([] if m.estimate is None else [("error relative to the full sweep", m.estimate)]),
        *sorted(m.settings.items()),
    ]
    return [(html.unescape(str(name)), str(value)) for name, value in rows]


def _pictures(m: OcclusionMap, threshold: float | None) -> list[tuple[Figure, str]]:
    """Return the figures of the page with their captions."""
    rejected = None if threshold is None else m.rejection_rate(threshold)
    found = [(_map_picture(m), _map_text(m)), (_masked_picture(m), _MASKED_TEXT), (_histogram(m), _HISTOGRAM_TEXT)]
    if rejected is not None:
        figure, ax = new_figure(_SIZE)
        limits = (0.0, max(float(rejected.max()), 1e-9))
        draw_map(rejected, extent(*m.centers), ax=ax, label="share of images rejected", limits=limits)
        found.insert(1, (figure, f"Share of images whose similarity falls below {threshold:g}: they are rejected."))
    error, label, text = _error(m)
    if not np.isnan(error).all():  # as of one image
        figure, ax = new_figure(_SIZE)
        draw_map(error, extent(*m.centers), ax=ax, label=label)
        found.append((figure, text))
    return found


def _comparison(comparison: MapComparison) -> dict[str, Any]:
    """Return the headline, the pictures and the table of the section."""
    score = comparison.difference.score
    found = []
    for draw, text in ((comparison.plot, _DIFFERENCE_TEXT), (comparison.plot_p_values, _P_TEXT)):
        figure, ax = new_figure(_SIZE)
        draw(ax=ax)
        found.append({"uri": png_data_uri(figure), "text": text})
    about = comparison.about()
    higher, lower, level = about["higher"], about["lower"], 100 * about["level"]
    sign = "signs of images" if about["groups"] == about["images"] else f"signs of {about['groups']} groups of images"
    kind = "(all)" if about["exact"] else "random"
    rows = [
        ("mean difference", f"{about['mean']:+.4g} ({score})"),
        ("images in both maps", f"{about['images']:,}"),
        ("significant positions", f"{higher + lower:,} of {about['positions']:,}: {higher:,} higher, {lower:,} lower"),
        ("smallest adjusted p", f"{about['p_value']:.2g}"),
        ("test", f"largest |t| of all positions, {about['flips']:,} {kind} flips of {sign}"),
        ("level", f"{level:g} % for all positions together"),
    ]
    headline = f"Higher at {higher:,} and lower at {lower:,} of {about['positions']:,} positions"
    if not higher + lower:
        headline = f"No significant difference at any of {about['positions']:,} positions"
    return {"headline": f"{headline} (family-wise level {level:g} %)", "pictures": found, "rows": rows}


_DIFFERENCE_TEXT = (
    "This map minus the other one: red where the occluder hurts more here, blue where it hurts less. Lines surround "
    "the positions at which the difference is significant."
)
_P_TEXT = "p-value of each position, adjusted for the number of positions; dark is small."
_SIZE = (4.6, 3.8)  # inches
_MASKED_TEXT = "Mean image, dark where the occluder does no harm."
_HISTOGRAM_TEXT = "Distribution of the values over locations."


def _map_picture(m: OcclusionMap) -> Figure:
    figure, ax = new_figure(_SIZE)
    m.plot(ax=ax)
    return figure


def _map_text(m: OcclusionMap) -> str:
    if m.score == "mismatch":
        return "Share of images that no longer match with the occluder at each location; bright is where it hurts."
    if m.score == "error":
        return "Error rate with the occluder centered at each location; bright is where it hurts."
    if (m.values < 0).any():
        return "Mean drop of the score with the occluder centered at each location: red is a drop, blue a gain."
    return "Mean drop of the score with the occluder centered at each location; bright is where it hurts."


def _masked_picture(m: OcclusionMap) -> Figure:
    figure, ax = new_figure(_SIZE)
    masked = m.masked_mean()
    if len(masked) not in (1, 3):  # images that are no colors, such as with depth
        masked = masked.mean(0)
    ax.imshow(gray(masked), cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
    return figure


def _histogram(m: OcclusionMap) -> Figure:
    figure, ax = new_figure(_SIZE)
    values = 1 - m.values if m.binary else m.values
    ax.hist(values.ravel(), bins=40, color="#b5367a")
    ax.set_xlabel("accuracy with the occluder at the location" if m.binary else m.score)
    ax.set_ylabel("locations")
    return figure


def _error(m: OcclusionMap) -> tuple[NDArray[np.float64], str, str]:
    """Return the errors of the values, their unit and the caption."""
    if m.interval is None:
        return m.standard_error, "standard error", "Standard error of the mean over images at each location."
    half = (m.interval[1] - m.interval[0]) / 2
    return half, "half width", "Half width of the 95 % interval of the full sweep's value at each location."
