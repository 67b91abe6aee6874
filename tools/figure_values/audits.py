"""Numbers of audits and of the gate, from ``bench/results``."""

from __future__ import annotations

from tools.figure_values.formats import markdown, read


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
        "audit-intervals": held,
        "audit-intervals-simulations": str(rows[0]["simulations"]),
        "gate-error": markdown(header, gate),
    }
