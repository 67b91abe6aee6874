"""The HTML page of a comparison, and its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import pages
from ..plots import image_data_uri, new_figure, plain, png_data_uri
from .pairs import Verification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .report import Comparison

#: Ranks of a cumulative match characteristic, at most.
_RANKS = 20
#: Settings as the page names them.
_LABELS = {
    "model_name": "Network",
    "model": "Fingerprint of its weights",
    "models": "Networks",
    "data": "Data",
    "date": "Date",
    "preprocessing": "Preprocessing",
    "alignment": "Faces aligned to",
    "flip": "Flip fusion",
    "cover": "Occluded images",
    "resamples": "Bootstrap resamples",
    "occlusions": "Occlusions",
    "images": "Images",
    "missing": "Listed pairs with missing images",
    "source": "Scores",
}


def figure(comparison: Comparison, protocol: str) -> Figure:
    """Draw one line per occlusion and network: TAR over log FAR, or match rate over rank."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    rows = [row for row in comparison.rows if row.protocol == protocol]
    named = len(comparison.models) > 1
    occlusions = list(dict.fromkeys(row.occlusion for row in rows))
    drawn, ax = new_figure((5.4, 4.2))
    for row in rows:
        label = plain(f"{row.occlusion}, {row.model}" if named else row.occlusion)
        style = ("-", "--", ":", "-.")[comparison.models.index(row.model) % 4]
        color = f"C{occlusions.index(row.occlusion) % 10}"
        if isinstance(row.result, Verification):
            far, tar, _ = row.result.roc.points(4000)
            ax.step(np.r_[far, 1.0], np.r_[tar, 1.0], style, where="post", color=color, label=label, linewidth=1.4)
        else:
            ranks = min(_RANKS, row.result.n_people)
            ax.plot(np.arange(1, ranks + 1), row.result.cmc(ranks), f".{style}", color=color, label=label)
    first = rows[0].result
    if isinstance(first, Verification):
        ax.set_xscale("log")
        ax.set_xlim(max(0.5 / first.n_different, 1e-6), 1)
        ax.set(xlabel="false acceptance rate", ylabel="true acceptance rate")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="rank", ylabel="known probes at this rank or better")
    ax.set_ylim(0, 1.01)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(alpha=0.3)
    ax.set_title(plain(protocol), fontsize=10)
    ax.legend(fontsize=8)
    return drawn


def page(comparison: Comparison) -> str:
    """Return a self-contained HTML page."""
    parts = []
    for protocol in comparison.protocols:
        header, rows = comparison.table(protocol)
        paired_header, paired = comparison.difference_table(protocol)
        parts.append(
            {
                "name": protocol,
                "header": header,
                "rows": rows,
                "paired_header": paired_header,
                "paired": paired,
                "note": comparison.note(protocol),
                "picture": png_data_uri(comparison.figure(protocol)),
            }
        )
    return pages.render(
        "occfast.evaluate",
        "report.html",
        title=comparison.title,
        date=comparison.settings.get("date", ""),
        parts=parts,
        main_columns=3 if len(comparison.models) > 1 else 2,
        examples=[{"uri": image_data_uri(image), "text": name} for name, image in comparison.examples.items()],
        settings=[
            (_LABELS.get(name, name), readable(value))
            for name, value in comparison.settings.items()
            if value not in (None, "", {}, [])
        ],
    )


def readable(value: object) -> str:
    """Format a setting for readers: ``{"size": [112, 96], "color": "gray"}`` becomes "size 112 × 96; color gray"."""
    if isinstance(value, dict):
        parts = []
        for name, inner in value.items():
            text = readable(inner)
            name = "fingerprint" if name == "model" else name
            if inner is not None:
                parts.append(f"{name} ({text.replace('; ', ', ')})" if isinstance(inner, dict) else f"{name} {text}")
        return "; ".join(parts)
    if isinstance(value, list | tuple):
        numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if numbers and len(value) == 2:
            return " × ".join(map(str, value))
        return ", ".join(f"({readable(v)})" if isinstance(v, list | tuple) else readable(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
