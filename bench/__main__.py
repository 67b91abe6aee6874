"""``python -m bench``: run the comparisons, write JSON and print a table.

    python -m bench                       # all comparisons in this folder; takes minutes
    python -m bench -k occluder           # the comparisons that pytest's -k selects
    python -m bench --output my.json

Each row is one implementation on one workload. ``ratio`` is the speed of occfast relative to that row, from medians of
the same run. Peers run at the best of the settings tried.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from bench.harness import RESULTS, caption, environment, write

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("captum", "monai", "kornia", "scikit-image")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", help="select workloads, as in pytest")
    parser.add_argument("--output", type=Path, default=RESULTS / "bench-cpu.json")
    options = parser.parse_args()
    raw = options.output.with_suffix(".raw.json")
    raw.parent.mkdir(parents=True, exist_ok=True)
    arguments = [
        str(FOLDER),
        "-q",
        "-o",
        "addopts=",
        "-o",
        "python_files=compare_*.py",
        "-p",
        "no:cacheprovider",
        "--benchmark-enable",
        "--benchmark-quiet",
        f"--benchmark-json={raw}",
    ]
    status = pytest.main([*arguments, "-k", options.k] if options.k else arguments)
    if status != 0:
        return int(status)
    result = summary(json.loads(raw.read_text()))
    raw.unlink()
    text = table(result)
    write(options.output, result, text)
    print(text)
    return 0


def summary(raw: dict) -> dict:
    """Return the environment and one row for the best setting of each implementation, with its ratio to occfast."""
    best: dict[tuple[str, str], dict] = {}
    for bench in raw["benchmarks"]:
        info, seconds = bench["extra_info"], bench["stats"]["median"]
        row = {
            "workload": info["workload"],
            "who": info["who"],
            "setting": info.get("setting", ""),
            "unit": info["unit"],
            "rate": info["items"] / seconds,
            "seconds": seconds,
            "iqr": bench["stats"]["iqr"],
            "rounds": bench["stats"]["rounds"],
        }
        if info.get("moved"):
            row["gigabytes_per_second"] = info["moved"] / seconds / 1e9
        key = (info["workload"], info["who"])
        if key not in best or row["rate"] > best[key]["rate"]:
            best[key] = row
    ours = {workload: row["rate"] for (workload, who), row in best.items() if who == "occfast"}
    rows = [{**row, "ratio": ours[row["workload"]] / row["rate"]} for row in best.values() if row["workload"] in ours]
    return {**environment(*PACKAGES), "rows": rows}


def table(result: dict) -> str:
    lines = [
        caption(result),
        "",
        "| workload | who | setting | per second | GB/s | of `clone()` | occfast is |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    copies = {row["workload"]: row["rate"] for row in result["rows"] if row["who"] == "clone()"}
    for row in result["rows"]:
        ratio = "" if row["who"] == "occfast" else f"{row['ratio']:.1f}×"
        bandwidth = f"{row['gigabytes_per_second']:.2f}" if "gigabytes_per_second" in row else ""
        share = f"{row['rate'] / copies[row['workload']]:.0%}" if row["workload"] in copies else ""
        lines.append(
            f"| {row['workload']} | {row['who']} | {row['setting']} | {row['rate']:,.0f} {row['unit']} "
            f"| {bandwidth} | {share} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
