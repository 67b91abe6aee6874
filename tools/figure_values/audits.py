"""Numbers of audits and of the gate, from ``bench/results``."""

from __future__ import annotations

from statistics import median
from typing import Any

from tools.figure_values.formats import duration, markdown, read


def audits() -> dict[str, str]:
    """Return how often the intervals of audits hold, and how often the gate fails a recognizer."""
    rows = read("audit-intervals")["rows"]
    intervals = []
    for row in rows:
        about = [f"{row['fmr']:g}", str(row["people"]), str(row["rate"]), f"{100 * row['truth']:.2g} %"]
        intervals.append([*about, f"{100 * row['held']:.1f} %"])
    held = markdown(["FMR", "people", "rate", "truth", "held"], intervals)
    gate = []
    for row in read("gate-error")["rows"]:
        loss = {
            "none": "none",
            "everywhere": "five points uncovered, more when covered",
            "covering": "five points under one covering",
        }[row["loss"]]
        where = row.get("failed_where_planted")
        cells = [f"{row['correlation']:g}", f"{row['faces']:,}", loss, f"{row['repetitions']:,}"]
        cells += [f"{100 * row['failed']:.1f} %", "" if where is None else f"{100 * where:.1f} %"]
        gate.append([*cells, f"{100 * row['holm']:.1f} %"])
    header = ["correlation", "faces", "loss", "repetitions", "failed", "failed by a figure there", "Holm"]
    return {
        **lfw(),
        **onnx(),
        "audit-intervals": held,
        "audit-intervals-simulations": str(rows[0]["simulations"]),
        "gate-error": markdown(header, gate),
    }


def lfw() -> dict[str, str]:
    """Return the audit of a MobileFaceNet on LFW: rates by covering, and what it took."""
    found = read("audit-lfw")
    audit: dict[str, Any] = found["audit"]
    main = f"{audit['fmr']:g}"

    def rate(value: dict[str, Any]) -> str:
        low, high = value["interval"]
        return f"{100 * value['value']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"

    rows = [
        [row["name"], rate(row["fnmr"][main]), rate(row["rank1"]), f"{row['threshold']:.3f}"]
        for row in audit["conditions"]
    ]
    settings = audit["settings"]
    return {
        "audit-lfw": markdown(
            [f"on LFW, FMR {main}", "genuine pairs rejected", "rank-1", "threshold for this FMR"], rows
        ),
        "audit-lfw-images": f"{settings['images']:,}",
        "audit-lfw-people": f"{settings['people']:,}",
        "audit-lfw-time": duration(found["audit_seconds"]),
        "audit-lfw-threads": str(found["threads"]),
    }


def onnx() -> dict[str, str]:
    """Return how fast recognizers read from ONNX are, relative to their modules."""
    rows = [
        [
            row["network"],
            f"{median(row['speed']['map']):.2f}",
            f"{median(row['speed']['batch']):.2f}",
            f"{row['features_differ']:.0e}",
        ]
        for row in read("onnx-models")["rows"]
    ]
    header = ["network", "speed of a map", "speed of a batch of 32", "features differ from ONNX Runtime"]
    return {"onnx-models": markdown(header, rows)}
