"""Numbers of audits and of the gate, from ``bench/results``."""

from __future__ import annotations

from statistics import median
from typing import Any

from tools.figure_values.formats import duration, markdown, read, signed


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
        **_drawn_real(),
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


def _drawn_real() -> dict[str, str]:
    """Return what drawn sunglasses and scarves cost beside real ones, on people whom the drawing was not chosen on."""
    result = read("drawn-real")
    names = {"drawn": "drawn", "wayfarer alone": "drawn, one style", "flat": "flat", "bands": "white bands"}
    shown = ("TAR at FAR 0.01", "TAR at FAR 0.001", "TAR at the uncovered FAR 0.01", "rank-1", "genuine", "impostor")

    def difference(found: dict[str, Any], figure: str) -> str:
        scale, digits = (1, 3) if figure in ("genuine", "impostor") else (100, 0)
        low, high = found["interval"]
        numbers = [signed(scale * value, digits) for value in (found["value"], low, high)]
        return f"{numbers[0]} ({numbers[1]} to {numbers[2]})"

    def own(found: dict[str, Any], figure: str) -> str:
        return f"{found['value']:.3f}" if figure in ("genuine", "impostor") else f"{100 * found['value']:.0f} %"

    tables = {}
    for part, name in (("chosen on", "chosen"), ("reported on", "reported")):
        rows = [row for row in result["rows"] if row["people"] == part]
        cells = []
        for row in rows:
            about = [row["network"], row["occlusion"]]
            if row["condition"] == "real":
                values = [own(row["figures"][figure], figure) for figure in shown]
                cells.append([*about, "real", *values])
            elif row["condition"] in names:
                values = [difference(row["minus real"][figure], figure) for figure in shown]
                cells.append([*about, names[row["condition"]], *values])
        order = {"real": 0, **{name: k for k, name in enumerate(names.values(), 1)}}
        cells.sort(key=lambda c: (c[0], c[1] != "sunglasses", order[c[2]]))
        header = ["network", "occlusion", "", "TAR, FAR 0.01", "TAR, FAR 0.001", "TAR, kept threshold", "rank-1"]
        tables[f"drawn-real-{name}"] = markdown([*header, "genuine cosine", "impostor cosine"], cells)
    about = result["second"]
    uncovered = [
        row["figures"]["TAR at FAR 0.01"]["value"]
        for row in result["rows"]
        if row["condition"] == "uncovered" and row["people"] == "reported on" and row["occlusion"] == "scarf"
    ]
    first = {
        name: next(
            difference(row["minus real"]["TAR at FAR 0.01"], "TAR at FAR 0.01")
            for row in result["rows"]
            if row["people"] == "reported on" and row["condition"] == condition and row["occlusion"] == occlusion
        )
        for name, condition, occlusion in (
            ("sunglasses", "drawn", "sunglasses"),
            ("flat", "flat", "sunglasses"),
            ("scarf", "drawn", "scarf"),
            ("bands", "bands", "scarf"),
        )
    }
    return {
        **tables,
        **{f"drawn-real-{name}": value for name, value in first.items()},
        "drawn-real-people": str(next(row["number"] for row in result["rows"] if row["people"] == "reported on")),
        "drawn-real-second-people": f"{about['people']:,}",
        "drawn-real-second-images": f"{about['images']:,}",
        "drawn-real-uncovered-first": f"{100 * uncovered[0]:.0f} %",
        "drawn-real-uncovered-second": f"{100 * uncovered[1]:.0f} %",
    }
