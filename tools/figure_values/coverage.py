"""Numbers of ``occfast covered``, from ``results/covered/report.json``."""

from __future__ import annotations

import json
from typing import Any

from tools.figure_values.formats import ROOT, markdown

_KINDS = {
    "none": "nothing",
    "sunglasses": "sunglasses",
    "mask": "mask",
    "scarf": "scarf",
    "hand": "hand",
    "shape": "other shapes",
    "two": "sunglasses and one more",
}
_SHOTS = {
    "neutral": "neutral",
    "expressions": "expressions",
    "lights": "lights",
    "sunglasses": "real sunglasses",
    "scarf": "real scarf",
}


def _percent(values: list[float]) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:.1f} % ({low:.1f}-{high:.1f})"


def coverage() -> dict[str, str]:
    """Return how well the network and its model of rejection do."""
    report: dict[str, Any] = json.loads((ROOT / "results/covered/report.json").read_text())
    drawn = [
        [
            _KINDS[kind],
            "" if kind == "none" else f"{row['iou']:.2f}",
            f"{100 * row['true_share']:.0f} %",
            f"{100 * row['bias']:+.1f}".replace("-", "−"),
            f"{100 * row['mean_error']:.1f}",
        ]
        for kind, row in report["drawn"].items()
    ]
    found = [
        [
            _KINDS.get(row["covering"], row["covering"]),
            f"{100 * row['found']:.0f} %",
            f"{100 * row['bias']:+.1f}".replace("-", "−"),
            f"{100 * row['mean_error']:.1f}",
        ]
        for row in report["found"]
    ]
    real = report["real"]
    shots = [
        [_SHOTS[name], *(_percent(row[key]) for key in ("share", "eyes", "mouth_and_chin", "covered_by_a_fifth"))]
        for name, row in real["shots"].items()
    ]
    rejection = [
        [_SHOTS.get(name, name), _percent(row["predicted"]), _percent(row["rejected"])]
        for name, row in report["rejection_real"].items()
    ]
    bins = [
        [f"{row['faces']:,}", f"{100 * row['predicted']:.0f} %", f"{100 * row['rejected']:.0f} %"]
        for row in report["rejection_drawn"]["bins"]
    ]
    against = real["against_uncovered"]
    return {
        "covered-drawn": markdown(["covering", "IoU", "truly covered", "bias, points", "mean error, points"], drawn),
        "covered-found": markdown(["covering", "faces found", "bias, points", "mean error, points"], found),
        "covered-real": markdown(["AR's shots", "face", "eyes", "mouth and chin", "a fifth or more"], shots),
        "covered-rejection-real": markdown(["AR's shots", "predicted", "rejected"], rejection),
        "covered-rejection-drawn": markdown(["faces", "predicted", "rejected"], bins),
        "covered-rejection-gap": f"{100 * report['rejection_drawn']['gap']:.1f}",
        "covered-auc-sunglasses": f"{against['sunglasses']['auc']:.4f}",
        "covered-auc-scarf": f"{against['scarf']['auc']:.4f}",
        "covered-found-sunglasses": f"{100 * against['sunglasses']['found_at_1_percent_false']:.1f} %",
        "covered-found-scarf": f"{100 * against['scarf']['found_at_1_percent_false']:.1f} %",
        "covered-photographs": f"{report['photographs']['trained on']:,}",
        "covered-photographs-read": f"{report['photographs']['read']:,}",
        "covered-megabytes": f"{report['megabytes']:.1f}",
        "covered-parameters": f"{report['parameters'] / 1e6:.2f}",
        "covered-milliseconds": f"{report['milliseconds']['estimate']:.0f}",
        "covered-milliseconds-found": f"{report['milliseconds']['with detection']:.0f}",
    }
