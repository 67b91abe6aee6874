"""Numbers of ``results``: reports of experiments."""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

from tools.figure_values.benchmarks import scaling
from tools.figure_values.formats import ROOT, duration, markdown, read, span, with_paper


def pdsn() -> dict[str, str]:
    """Return the tables and the prose of pdsn-landmarks on LFW: means over seeds, the paper's values in brackets."""
    report = json.loads((ROOT / "results/pdsn-landmarks/small/report.json").read_text())
    tables = {table["name"]: table for table in report["tables"]}
    known, beyond = tables["Table 1, occlusion known"], tables["Beyond the paper"]
    rows = [
        [
            name,
            *(
                with_paper(cell, there["paper"])
                for cell, there in zip(cells, tables["Table 1"]["rows"][name], strict=True)
            ),
        ]
        for name, cells in known["rows"].items()
    ]
    more = [[name, *(with_paper(cell, None) for cell in cells)] for name, cells in beyond["rows"].items()]
    found = {"pdsn-lfw": markdown(known["header"], rows), "pdsn-lfw-extensions": markdown(beyond["header"], more)}

    def cell(table: str, row: str, column: str) -> dict[str, Any]:
        return dict(tables[table]["rows"][row][tables[table]["header"].index(column) - 1])

    def gains(above: str, below: str) -> dict[str, float]:
        return {
            name: cell("Beyond the paper", above, name)["mean"] - cell("Beyond the paper", below, name)["mean"]
            for name in beyond["header"][1:]
        }

    clean = tables["Base and segmentation"]["rows"]["rank-1, clean"][0]
    own, grid = (cell("Table 1, occlusion known", "nose", column) for column in ("LM2", "3x3"))
    better = sum(a > b for a, b in zip(own["values"], grid["values"], strict=True))
    with_occluders = gains("none, base with occluders", "none")
    with_masks = gains("LM2, base with occluders", "none, base with occluders")
    lost = -with_occluders.pop("clean")
    helped = [with_masks[name] for name in with_masks if name not in ("clean", "mouth", "face mask")]
    return found | {
        "pdsn-clean": f"{clean['mean']:.1f} ({clean['paper']:.1f})",
        "pdsn-nose": f"{own['mean'] - grid['mean']:.2f}".replace("-", "−"),
        "pdsn-nose-seeds": f"{better} of {len(own['values'])}",
        "pdsn-nose-grid-discards": f"{100 - cell('What the masks keep', 'nose', '3x3')['mean']:.0f} %",
        "pdsn-nose-lm2-discards": f"{100 - cell('What the masks keep', 'nose', 'LM2')['mean']:.0f} %",
        "pdsn-lm2-at-50": f"{cell('Percentiles', 'LM2', '50')['mean']:.1f}",
        "pdsn-lm2-at-30": f"{cell('Percentiles', 'LM2', '30')['mean']:.1f}",
        "pdsn-grid-at-25": f"{cell('Percentiles', '3x3', '25')['mean']:.1f}",
        "pdsn-occluders-gain": f"{min(with_occluders.values()):.0f} to {max(with_occluders.values()):.0f}",
        "pdsn-occluders-clean": f"{lost:.0f}",
        "pdsn-occluders-masks": f"{min(helped):.0f} to {max(helped):.0f}",
        **pdsn_orl(),
    }


def pdsn_orl() -> dict[str, str]:
    """Return the tables of pdsn-landmarks on ORL: one seed, few probes."""
    report = json.loads((ROOT / "results/pdsn-landmarks/smoke/report.json").read_text())
    tables = {table["name"]: table for table in report["tables"]}
    known, kept, percentiles = (tables[name] for name in ("Table 1", "What the masks keep", "Percentiles"))

    def rows(table: dict[str, Any]) -> str:
        cells = [[name, *(f"{cell['mean']:.1f}" for cell in row)] for name, row in table["rows"].items()]
        return markdown(table["header"], cells)

    nose = dict(zip(kept["header"][1:], (cell["mean"] for cell in kept["rows"]["nose"]), strict=True))
    probes = report["data"]["test"]
    return {
        "pdsn-orl": rows(known),
        "pdsn-orl-percentiles": rows(percentiles),
        "pdsn-orl-probes": str(probes),
        "pdsn-orl-probe": f"{100 / probes:.1f} %",
        "pdsn-orl-grid-discards": f"{100 - nose['3x3']:.0f} %",
        "pdsn-orl-lm2-discards": f"{100 - nose['LM2']:.0f} %",
    }


def demo() -> dict[str, str]:
    """Return the demo's table: networks by occluder, and what training with occluders gained."""
    report = json.loads((ROOT / "results/demo/report.json").read_text())
    table = next(table for table in report["tables"] if table["name"] == "Table 1")
    findings = {finding["name"]: finding for finding in report["findings"]}
    sizes = ("20×20", "20×40", "40×40")

    def cell(network: str, size: str) -> str:
        found = table["rows"][network][table["header"].index(f"O {size}") - 1]
        return f"{found['mean']:.2f} ± {found['spreads'][0]:.2f}"

    def gain(size: str) -> str:
        found = findings[f"A{size} above A, trained as long under {size}"]
        low, high = found["interval"]
        text = f"{found['differences'][0]:+.1f} [{low:+.1f}, {high:+.1f}]"
        return f"**{text}**" if found["clear"] else text

    rows = [
        ["A, base network", *(cell("A", size) for size in sizes)],
        ["A, trained as long without occluders", *(cell("A, trained as long", size) for size in sizes)],
        ["trained with placed occluders of that size", *(cell(f"A{size}", size) for size in sizes)],
        ["gain over A, trained as long, in points [95 % interval]", *map(gain, sizes)],
    ]
    environment, cost = report["environment"], report["cost"]
    simulated = read("intervals")["coverage"]
    machine = f"{environment['processor']}, {environment['threads']} threads, PyTorch {environment['torch']}"
    return {
        "demo-default": markdown(["occluder", *sizes], rows),
        "demo-machine": f"seed {', '.join(map(str, report['seeds']))}, {machine}, {cost['seconds'] / 60:.1f} minutes",
        "demo-interval-mean": f"{100 * simulated['mean']:.1f} %",
        "demo-interval-std": f"{100 * simulated['standard deviation']:.1f} %",
        **demo_seeds(sizes),
    }


def demo_seeds(sizes: tuple[str, ...]) -> dict[str, str]:
    """Return the demo's table for each of several seeds, and the gains with intervals over the seeds."""
    report = json.loads((ROOT / "results/demo/seeds.json").read_text())
    table = next(table for table in report["tables"] if table["name"] == "Table 1")
    findings = {finding["name"]: finding for finding in report["findings"]}

    def cell(network: str, size: str, k: int) -> str:
        found = table["rows"][network][table["header"].index(f"O {size}") - 1]
        return f"{found['values'][k]:.2f} ± {found['spreads'][k]:.2f}"

    rows = [
        [str(seed), size, *(cell(network, size, k) for network in ("A", "A, trained as long", f"A{size}"))]
        for size in sizes
        for k, seed in enumerate(report["seeds"])
    ]
    header = ["seed", "occluder", "A", "A, trained as long", "trained with placed occluders"]
    gains = []
    for size in sizes:
        row = [size]
        for how in ("above", "varies less than"):
            found = findings[f"A{size} {how} A, trained as long under {size}"]
            low, high = found["interval"]
            text = f"{mean(found['differences']):+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
            row.append(f"**{text}**" if found["clear"] else text)
        gains.append(row)
    gained = ["occluder", "mean accuracy, in points", "standard deviation over locations, lower by"]
    return {
        "demo-seeds": markdown(header, rows),
        "demo-gains": markdown(gained, gains),
        "demo-clean": span([v for row in table["rows"].values() for v in row[0]["values"]]),
    }


def costs() -> dict[str, str]:
    """Return the time that reproductions took, and what full scale is predicted to take."""
    found: dict[str, str] = {}
    for paper in ("trigueros2018", "pdsn-landmarks"):
        for scale in ("smoke", "small"):
            report = json.loads((ROOT / "results" / paper / scale / "report.json").read_text())
            seconds = report["cost"]["seconds"] / len(report["seeds"])
            found[f"reproduce-{paper}-{scale}"] = duration(seconds)
    return found | scaling()


def torture() -> dict[str, str]:
    """Return what kills, full disks, writers and mutated files led to."""
    report = json.loads((ROOT / "results/torture/report.json").read_text())
    about, totals = report["about"], report["totals"]
    counts = ("kills", "at_operations", "runs", "differences", "losses", "half_written", "litter")
    header = ["command", "kills", "at a file operation", "runs", "differences", "losses", "half files", "litter"]
    kills = [[row["command"], *(f"{row[name]:,}" for name in counts)] for row in report["kills"]]
    kills.append(["all", *(f"{sum(row[name] for row in report['kills']):,}" for name in counts)])
    disks = [
        [
            row["command"],
            f"{row['disks']}, {row['refused']}",
            f"{row['read_only']['folders']}",
            f"{pair['pairs']}, {pair['refused']}",
            f"{len(row['findings']) + len(row['read_only']['findings']) + len(pair['findings'])}",
        ]
        for row, pair in zip(report["disks"], report["writers"], strict=True)
    ]
    parsers = [
        [
            row["parser"],
            f"{row['inputs']:,}",
            f"{row['inputs_per_cpu_second']:,}",
            f"{row['slowest_cpu_seconds']:.2f} s",
            f"{row['peak_mib']} MiB",
            f"{len(row['findings'])}",
        ]
        for row in report["fuzz"]
    ]
    last = about[-1]
    machine = f"{last['processor']}, {last['cores']} cores, PyTorch {last['torch']}, Python {last['python']}"
    runs = [["command", "date", "minutes"]]
    runs += [[f"`{one['command']}`", one["date"], f"{one['minutes']:.0f}"] for one in about]
    return {
        "torture-about": markdown(runs[0], runs[1:]),
        "torture-machine": machine,
        "torture-kills": f"{totals['kills']:,}",
        "torture-inputs": f"{totals['fuzz_inputs']:,}",
        "torture-findings": f"{totals['findings']:,}",
        "torture-full": f"{sum(row['inputs'] >= 1_000_000 for row in report['fuzz'])} of {len(report['fuzz'])}",
        "torture-commands": markdown(header, kills),
        "torture-disks": markdown(
            ["command", "full disks, refused", "read-only", "two writers, refused", "findings"], disks
        ),
        "torture-parsers": markdown(["file", "inputs", "a CPU second", "slowest", "memory", "findings"], parsers),
    }
