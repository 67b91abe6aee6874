"""The pages of an audit and of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import pages
from ..evaluate.page import readable
from ..plots import image_data_uri, new_figure, plain, png_data_uri
from .figures import RANK_1, fnmr_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..sweep import OcclusionMap
    from .comparison import AuditComparison
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
    header, rows = audit.table()
    m = audit.map
    return pages.render(
        "occfast.audit",
        "page.html",
        title=audit.title,
        basis=audit.basis,
        sentences=audit.sentences,
        examples=[{"uri": image_data_uri(image), "text": name} for name, image in audit.examples.items()],
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
        footer=f"{pages.versions()}; {audit.seconds:.0f} s.",
    )


def comparison_page(comparison: AuditComparison) -> str:
    """Return a self-contained HTML page."""
    header, rows = comparison.table()
    pair = comparison.first, comparison.second
    values = [
        {k.replace("_", " "): readable(v) for k, v in audit.settings.items() if v not in (None, "", {}, [])}
        for audit in pair
    ]
    maps = comparison.maps
    return pages.render(
        "occfast.audit",
        "comparison.html",
        title=comparison.title,
        basis=comparison.basis,
        names=comparison.names,
        sentences=comparison.sentences,
        chart=png_data_uri(difference_figure(comparison)),
        map=png_data_uri(_difference_map_figure(comparison)) if maps else None,
        map_note=f"{len(maps.image_indices)} images." if maps else "",
        no_maps=comparison.no_maps,
        header=header,
        rows=rows,
        note=comparison.note,
        settings=[(name, *(v.get(name, "") for v in values)) for name in dict.fromkeys([*values[0], *values[1]])],
    )


def difference_figure(comparison: AuditComparison) -> Figure:
    """Draw the differences in FNMR at the main FMR and in rank-1 by covering, with their intervals."""
    coverings = [c.name for c in comparison.first.conditions]
    figure, ax = new_figure((6.4, 1.4 + 0.42 * len(coverings)))
    parts = ((fnmr_at(comparison.first.fmr), "o", "C0"), (RANK_1, "s", "C1"))
    for shift, (name, mark, color) in zip((-0.14, 0.14), parts, strict=True):
        label = "rank-1, fewer identified" if name == RANK_1 else f"{name}, more rejected"
        for d in comparison.differences:
            if d.figure.name != name or d.figure.covering not in coverings:
                continue
            sign = -100 if d.figure.higher_is_better else 100
            ends = sorted(sign * end for end in d.interval)
            row = coverings.index(d.figure.covering) + shift
            fill = color if d.significant else "white"
            ax.plot(ends, [row, row], color=color, linewidth=1.4)
            ax.plot(sign * d.value, row, mark, color=color, markerfacecolor=fill, markersize=5, label=label)
            label = ""
    ax.axvline(0, color="0.5", linewidth=0.8)
    ax.set_yticks(range(len(coverings)), [plain(name) for name in coverings])
    ax.invert_yaxis()
    ax.set_xlabel("percentage points")
    ax.grid(axis="x", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def _difference_map_figure(comparison: AuditComparison) -> Figure:
    assert comparison.maps is not None
    figure, ax = new_figure()
    comparison.maps.plot(ax=ax)
    return figure
