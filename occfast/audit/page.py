"""The page of an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .._version import __version__
from ..evaluate.page import picture_uri, readable
from ..plots import new_figure, png_data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..sweep import OcclusionMap
    from .report import Audit

_MARKS = {"from below": "o-", "from above": "s--"}


def curve_figure(audit: Audit) -> Figure:
    """Draw the FNMR against the share covered, with its intervals."""
    from matplotlib.ticker import PercentFormatter

    figure, ax = new_figure((5.4, 3.6))
    clean = audit.uncovered.fnmr[audit.fmr]
    for place, mark in _MARKS.items():
        points = [p for p in audit.curve if p.place == place]
        share = [0.0, *(p.covered for p in points)]
        rates = [clean, *(p.fnmr for p in points)]
        value = [rate.value for rate in rates]
        low, high = ([rate.interval[k] for rate in rates] for k in (0, 1))
        (line,) = ax.plot(share, value, mark, label=place, markersize=4)
        ax.fill_between(share, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    ax.set(xlabel="share of the face covered", ylabel="genuine pairs rejected", ylim=(0, 1.01))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(alpha=0.3)
    ax.legend(title=f"at FMR {audit.fmr:g}")
    return figure


def map_figure(m: OcclusionMap) -> Figure:
    """Draw the map over the mean face."""
    figure, ax = new_figure()
    m.plot(image="mean", ax=ax)
    return figure


def page(audit: Audit) -> str:
    """Return a self-contained HTML page."""
    from importlib.resources import files

    import jinja2

    template = files("occfast.audit").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    header, rows = audit.table()
    m = audit.map
    return environment.from_string(template).render(
        title=audit.title,
        basis=audit.basis,
        sentences=audit.sentences,
        examples=[{"uri": picture_uri(image), "text": name} for name, image in audit.examples.items()],
        header=header,
        rows=rows,
        main=1 + list(audit.thresholds).index(audit.fmr),
        note=audit.note,
        curve=png_data_uri(curve_figure(audit)) if audit.curve else None,
        map=png_data_uri(map_figure(m)) if m else None,
        map_note=f"{m.n_images} images, a block of {m.occluder_text} pixels." if m else "",
        regions=[(r.name, f"{r.drop:.3f} ± {1.96 * r.standard_error:.3f}") for r in audit.regions],
        tables=[
            (title, [(g.covering, g.name, str(g.fnmr), g.images, g.people) for g in groups], about)
            for title, groups, about in audit.tables
            if groups
        ],
        worst=[(name, f"{100 * share:.0f} %") for name, share in audit.worst],
        settings=[
            (name.replace("_", " "), readable(value))
            for name, value in audit.settings.items()
            if value not in (None, "", {}, []) and name != "notes"
        ],
        seconds=f"{audit.seconds:.0f}",
        version=f"occfast {__version__}, PyTorch {torch.__version__}",
    )
