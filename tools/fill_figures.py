"""``python -m tools.fill_figures``: write the measured numbers into README and docs, from the files that hold them.

    <!-- figure: adaptive-captum -->96×<!-- end -->

A figure has a name and stands between two comments, which neither GitHub nor the site shows. ``figures`` computes all
values from the JSON files under ``bench/results`` and ``results``. ``--check`` writes nothing and exits with 1 if a
page differs; a test does the same. ``--list`` prints names and values.
"""

from __future__ import annotations

import argparse
import json
import re
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from occfast.reproduce.values import interval as student

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"(<!-- figure: ([\w-]+) -->)(.*?)(<!-- end -->)", re.DOTALL)
BENCH = ROOT / "bench" / "results"
_PAPER_POSITIONS = 240e6  # of trigueros2018 at full scale, a third with each occluder: docs/guides/scaling.md


@cache
def figures() -> dict[str, str]:
    """Return every figure by its name."""
    found: dict[str, str] = {}
    parts = (
        _sweeps(),
        _predictions(),
        _plan(),
        _estimates(),
        _comparisons(),
        _captum(),
        _calibration(),
        _noise(),
        _losses(),
        _stages(),
        _evaluation(),
        _pdsn(),
        _demo(),
        _costs(),
        _torture(),
    )
    for part in parts:
        if twice := found.keys() & part.keys():
            raise SystemExit(f"two figures have the name {', '.join(sorted(twice))}")
        found |= part
    return found


def fill(text: str, page: str) -> str:
    """Return the text of a page with every figure at its present value."""
    known = figures()

    def value(match: re.Match[str]) -> str:
        if match[2] not in known:
            raise SystemExit(f"{page}: no figure {match[2]!r} in tools/fill_figures.py")
        return match[1] + known[match[2]] + match[4]

    return MARK.sub(value, text)


def pages() -> list[Path]:
    """Return the pages whose figures are filled in."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _read(name: str) -> Any:
    return json.loads((BENCH / f"{name}.json").read_text())


def _row(name: str, **wanted: object) -> dict[str, Any]:
    """Return the one row of a file whose fields have the values wanted."""
    found = [row for row in _read(name)["rows"] if all(row.get(key) == value for key, value in wanted.items())]
    if len(found) != 1:
        raise SystemExit(f"{name}.json: expected one row with {wanted}, got {len(found)}")
    return dict(found[0])


def _times(value: float) -> str:
    return f"{value:.1f}×" if value < 9.95 else f"{value:.0f}×"


def _percent(shares: list[float]) -> str:
    """Return the range of some shares, in whole per cent."""
    low, high = (f"{round(100 * share)}".replace("-", "−") for share in (min(shares), max(shares)))
    return f"{low} to {high} %"


def _sweeps() -> dict[str, str]:
    found: dict[str, str] = {}
    peers = {"plain": "plain PyTorch", "compile": "torch.compile", "captum": "Captum", "monai": "MONAI"}
    hours = {"occfast": 0.0, "captum": 0.0}
    for occluder in ("20x20", "20x40", "40x40"):
        rates = {
            name: _row("sweep-cpu", workload="paper", occluder=occluder, who=who)["positions_per_second"]
            for name, who in {**peers, "occfast": "+ early sharing"}.items()
        }
        for name in peers:
            found[f"sweep-{occluder}-{name}"] = _times(rates["occfast"] / rates[name])
        for name in ("occfast", "captum"):
            found[f"rate-{occluder}-{name}"] = f"{rates[name]:,.0f}"
            hours[name] += _PAPER_POSITIONS / 3 / rates[name] / 3600
    found["scaling-sweep"] = f"{hours['occfast']:.0f} hours"
    found["scaling-captum"] = f"{hours['captum'] / 24:.0f} days"
    check = _row("sweep-cpu", who="self-check")
    found["self-check"] = f"{check['share']:.1%}"
    for key, name in {"memory-occfast": "+ early sharing", "memory-plain": "plain PyTorch"}.items():
        used = [r["mib"] for r in _read("sweep-memory-cpu")["rows"] if r["workload"] == "paper" and r["name"] == name]
        found[key] = f"{min(used)} to {max(used)} MiB"
    without, shared = (
        {r["occluder"]: r["mib"] for r in _read("sweep-memory-cpu")["rows"] if (r["workload"], r["name"]) == case}
        for case in (("paper", "+ folded tail"), ("paper", "+ early sharing"))
    )
    found["memory-sharing"] = _percent([1 - without[occluder] / shared[occluder] for occluder in shared])
    for mib in (1, 8, 32):
        changes = [
            _row("sweep-batch-cpu", occluder=row["occluder"], mib=mib)["positions_per_second"]
            / row["positions_per_second"]
            - 1
            for row in _read("sweep-batch-cpu")["rows"]
            if row["used"]
        ]
        found[f"batch-{mib}"] = _percent(changes if mib == 32 else [-change for change in changes])
    for network in ("resnet34", "iresnet18"):
        own, plain = (
            _row("sweep-w2-cpu", workload=network, who=who)["positions_per_second"]
            for who in ("+ early sharing", "plain PyTorch")
        )
        found[f"sweep-{network}"] = _times(own / plain)
    for name, who in {"plain": "plain PyTorch", "captum": "Captum Occlusion"}.items():
        ratio = _row("bench-cpu", workload="occlusion map, W1, 20×40, one image", who=who)["ratio"]
        found[f"one-image-{name}"] = _times(ratio)
    return found


def _predictions() -> dict[str, str]:
    found: dict[str, str] = {}
    for row in _read("predictions")["rows"]:
        name = f"predicted-{row['network']}-{row['occluder']}"
        found[name + (f"-stride-{row['stride']}" if row["stride"] > 1 else "")] = _times(row["speedup"])
    return found


def _plan() -> dict[str, str]:
    """Return what ``python -m bench.plan`` found; nothing before it was run."""
    if not (BENCH / "plan-cpu.json").is_file():
        return {}
    content = _read("plan-cpu")
    found = content["summary"]
    strides = sorted({row["stride"] for row in content["rows"]})
    table = [
        [
            kind.replace("_", " "),
            *(
                f"{_times(row['predicted'])} / {_times(row['measured'])}"
                for row in content["rows"]
                if row["kind"] == kind
            ),
        ]
        for kind in dict.fromkeys(row["kind"] for row in content["rows"])
    ]
    return {
        "plan-kinds": str(found["kinds"]),
        "plan-cases": str(found["cases"]),
        "plan-within": f"{found['within_1.3']:.0%}".replace("%", " %"),
        "plan-largest": _times(found["largest_factor"]),
        "plan-auto-slowest": f"{found['auto_slowest']:.2f}×",
        "plan-table": _table(["predicted / measured", *(f"stride {stride}" for stride in strides)], table),
    }


def _estimates() -> dict[str, str]:
    found: dict[str, str] = {}
    files = {"": "estimate-cpu", "-40x40": "estimate-40x40-cpu"}
    files |= {"-occluded": "estimate-occluded-cpu", "-weak": "estimate-weak-cpu"}
    costs = [1 / _read(file)["adaptive"]["adaptive"]["fewer_evaluations"] for file in files.values()]
    for name, file in files.items():
        part = _read(file)["adaptive"]
        adaptive = part["adaptive"]
        found |= {
            f"full-captum{name}": _times(part["full"]["times_captum"]),
            f"adaptive-captum{name}": _times(adaptive["times_captum"]),
            f"adaptive-single{name}": _times(adaptive["one_image_at_a_time_times_captum"]),
            f"adaptive-fewer{name}": f"{adaptive['fewer_evaluations']:.1f}×",
            f"adaptive-agreement{name}": f"{adaptive['agreement']:.2%}",
            f"adaptive-worst{name}": f"{adaptive['agreement_of_the_worst_image']:.1%}",
        }
    own = _read("estimate-cpu")
    sampled, truth = own["sampled"], _read("estimate-truth-cpu")["truth"]
    stated = re.search(r"standard error ([\d.]+) .*smoothing bias ([\d.]+)", sampled["stated"])
    if stated is None:
        raise SystemExit(f"estimate-cpu.json: no standard error and bias in {sampled['stated']!r}")
    return found | {
        "adaptive-cost": _percent(costs),
        "sampled-cost": f"{1 / sampled['fewer_evaluations']:.0%}".replace("%", " %"),
        "sampled-captum": _times(sampled["times_captum"]),
        "sampled-fewer": f"{sampled['fewer_evaluations']:.0f}×",
        "sampled-error": f"{float(stated[1]):.4f}",
        "sampled-bias": f"{float(stated[2]):.3f}",
        "truth-rms": f"{truth['rms_error']:.3f}",
        "truth-stated": f"{truth['rms_stated']:.3f}",
        "truth-covered": f"{truth['covered_by_95_percent_intervals']:.1%}",
        "truth-variation": f"{truth['total_variation_of_P']:.3f}",
        "two-processes": f"{own['processes']['ratio']:.2f}×",
    }


def _captum() -> dict[str, str]:
    rows = [row for row in _read("captum-occlusion-cpu")["rows"] if row["workload"] == "paper, stride 5"]
    best = next(row["seconds"] for row in rows if row["best"])
    seconds = {row["who"]: row["seconds"] for row in rows}
    names = {"captum-first": "occfast", "captum-kept": "occfast, kept plan"}
    return {name: _times(best / seconds[who]) for name, who in names.items()}


def _comparisons() -> dict[str, str]:
    rows = _read("false-alarms")["rows"]
    shares = {row["case"]: row["false_alarms"] for row in rows}
    exact = [share for case, share in shares.items() if case != "skewed"]
    return {
        "false-alarms": f"{100 * min(exact):.1f} to {100 * max(exact):.1f} %",
        "false-alarms-skewed": f"{100 * shares['skewed']:.1f} %",
        "false-alarms-repetitions": f"{rows[0]['repetitions']:,}",
    }


def _noise() -> dict[str, str]:
    found: dict[str, str] = {}
    peers = {"plain": "plain PyTorch", "skimage": "scikit-image", "kornia": "kornia RandomErasing"}
    for dtype in ("float32", "uint8"):
        for name, who in peers.items():
            if (dtype, name) != ("uint8", "kornia"):  # kornia takes floating-point images only
                row = _row("bench-cpu", workload=f"noisy occluder 20×40, grey 100×100 {dtype}", who=who)
                found[f"noise-{dtype}-{name}"] = _times(row["ratio"])
    rows = _read("occluder-pixels")["rows"]
    names = list(rows[0]["nanoseconds"])
    cells = [[row["instruction_set"], *(f"{row['nanoseconds'][name]:.2f}" for name in names)] for row in rows]
    return found | {"occluder-pixels": _table(["instruction set", *names], cells)}


def _losses() -> dict[str, str]:
    found: dict[str, str] = {}
    size = {"batch": 2048, "per_class": 8, "dim": 320}
    for mining in ("all", "violating"):
        peer = _row("triplet", provider="pytorch-metric-learning", mining=mining, **size)
        found[f"triplet-{mining}"] = _times(peer["ratio"])
        found[f"triplet-{mining}-time"] = (
            f"{1000 * _row('triplet', provider='occfast', mining=mining, **size)['seconds']:.0f} ms"
        )
    large = next(row for row in _read("triplet")["memory"] if row["batch"] == 16384)
    columns = {"mean_ap": "mean d_ap", "mean_an": "mean d_an", "var_ap": "var d_ap", "var_an": "var d_an"}
    mined = [
        [f"`{row['mining']}`", f"{row['n_triplets']:,.0f}", *(f"{row[name]:.3f}" for name in columns)]
        for row in _read("triplet-mining")["rows"]
    ]
    return found | {
        "triplet-mining": _table(["mining", "mined triplets", *columns.values()], mined),
        "triplet-large-time": f"{large['seconds']:.0f} s",
        "triplet-large-memory": f"{large['peak_bytes'] / 1e9:.1f} GB",
    }


def _evaluation() -> dict[str, str]:
    roc = _row(
        "evaluation",
        workload="ROC and AUC of 10,000,000 float64 scores, half of one person",
        who="scikit-learn roc_curve + auc",
    )
    search = _row(
        "evaluation",
        workload="rank-1 and rank-5 of 2,000 probes among 13,000 images, D = 512",
        who="scikit-learn NearestNeighbors",
    )
    own = [
        row["seconds"]
        for row in _read("evaluation")["rows"]
        if row["workload"].startswith("ROC and AUC of 10,000,000") and row["who"] == "occfast"
    ]
    return {
        "roc-sklearn": _times(roc["occfast_is"]),
        "roc-time": f"{min(own):.2f} to {max(own):.2f} seconds",
        "search-sklearn": _times(search["occfast_is"]),
    }


def _pdsn() -> dict[str, str]:
    """Return the tables and the prose of pdsn-landmarks on LFW: means over seeds, the paper's values in brackets."""
    report = json.loads((ROOT / "results/pdsn-landmarks/small/report.json").read_text())
    tables = {table["name"]: table for table in report["tables"]}
    known, beyond = tables["Table 1, occlusion known"], tables["Beyond the paper"]
    rows = [
        [
            name,
            *(
                _with_paper(cell, there["paper"])
                for cell, there in zip(cells, tables["Table 1"]["rows"][name], strict=True)
            ),
        ]
        for name, cells in known["rows"].items()
    ]
    more = [[name, *(_with_paper(cell, None) for cell in cells)] for name, cells in beyond["rows"].items()]
    found = {"pdsn-lfw": _table(known["header"], rows), "pdsn-lfw-extensions": _table(beyond["header"], more)}

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
        **_pdsn_orl(),
    }


def _pdsn_orl() -> dict[str, str]:
    """Return the tables of pdsn-landmarks on ORL: one seed, few probes."""
    report = json.loads((ROOT / "results/pdsn-landmarks/smoke/report.json").read_text())
    tables = {table["name"]: table for table in report["tables"]}
    known, kept, percentiles = (tables[name] for name in ("Table 1", "What the masks keep", "Percentiles"))

    def rows(table: dict[str, Any]) -> str:
        cells = [[name, *(f"{cell['mean']:.1f}" for cell in row)] for name, row in table["rows"].items()]
        return _table(table["header"], cells)

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


def _with_paper(cell: dict[str, Any], paper: float | None) -> str:
    return f"{cell['mean']:.1f}" + ("" if paper is None else f" ({paper:g})")


def _demo() -> dict[str, str]:
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
    simulated = _read("intervals")["coverage"]
    machine = f"{environment['processor']}, {environment['threads']} threads, PyTorch {environment['torch']}"
    return {
        "demo-default": _table(["occluder", *sizes], rows),
        "demo-machine": f"seed {', '.join(map(str, report['seeds']))}, {machine}, {cost['seconds'] / 60:.1f} minutes",
        "demo-interval-mean": f"{100 * simulated['mean']:.1f} %",
        "demo-interval-std": f"{100 * simulated['standard deviation']:.1f} %",
        **_demo_seeds(sizes),
    }


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3000 else f"{seconds / 3600:.1f} h"


def _demo_seeds(sizes: tuple[str, ...]) -> dict[str, str]:
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
        "demo-seeds": _table(header, rows),
        "demo-gains": _table(gained, gains),
        "demo-clean": _range([v for row in table["rows"].values() for v in row[0]["values"]]),
    }


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f} %"


def _torture() -> dict[str, str]:
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
        "torture-about": _table(runs[0], runs[1:]),
        "torture-machine": machine,
        "torture-kills": f"{totals['kills']:,}",
        "torture-inputs": f"{totals['fuzz_inputs']:,}",
        "torture-findings": f"{totals['findings']:,}",
        "torture-full": f"{sum(row['inputs'] >= 1_000_000 for row in report['fuzz'])} of {len(report['fuzz'])}",
        "torture-commands": _table(header, kills),
        "torture-disks": _table(
            ["command", "full disks, refused", "read-only", "two writers, refused", "findings"], disks
        ),
        "torture-parsers": _table(["file", "inputs", "a CPU second", "slowest", "memory", "findings"], parsers),
    }


def _calibration() -> dict[str, str]:
    """Return how estimated maps of small networks agree with full sweeps."""
    rows = _read("calibration")["rows"]
    header = ["faces, occluder", "mean error rate", "images used", "covered", "in the highest tenth", "worst, best run"]
    header += ["rms error", "stated: standard error, bias", "TV of P"]
    cells = []
    for row in rows:
        height, width = (100 * side // size for side, size in zip(row["occluder"], row["image"], strict=True))
        about = [f"{row['data'].upper()}, {height}×{width}", f"{100 * row['mean_error_rate']:.1f} %"]
        for part in ("all", "part"):
            found = row["sampled"][part]
            cells.append(
                [
                    *(about if part == "all" else ["", ""]),
                    f"{found['used']} of {found['of']}",
                    f"{100 * found['covered']:.1f} %",
                    f"{100 * found['highest']:.1f} %",
                    f"{100 * min(found['runs']):.0f} %, {100 * max(found['runs']):.0f} %",
                    f"{found['error']:.3f}",
                    f"{found['standard_error']:.3f}, {found['bias']:.3f}",
                    f"{found['variation']:.3f}",
                ]
            )
    every = [row["sampled"][part] for row in rows for part in ("all", "part")]
    adaptive = [row["adaptive"] for row in rows]
    different = [100 * found["truth"] for found in adaptive]
    fewer = [found["fewer"] for found in adaptive]
    return {
        "coverage": _table(header, cells),
        "coverage-seeds": str(_read("calibration")["seeds"]),
        "coverage-worst": f"{100 * min(min(found['runs']) for found in every):.0f} %",
        "coverage-highest": _percent([found["highest"] for found in every]),
        "coverage-elsewhere": _percent([found["elsewhere"] for found in every]),
        "adaptive-disagreement": f"{min(different):.2f} to {max(different):.2f} %",
        "adaptive-coverage": _percent([found["held"] for found in adaptive]),
        "adaptive-calibration-fewer": f"{min(fewer):.1f} to {max(fewer):.1f} times",
    }


def _stages() -> dict[str, str]:
    """Return the three stages of training on ORL: means over seeds with Student's intervals of the changes."""
    runs = _read("stages")["runs"]
    started = {"A": "A", "A20x40": "A20x40, from A's best, P from the map of A", "C": "C, from A20x40's last"}
    cells = []
    for name, title in started.items():
        row = [title, str(runs[0][name]["epochs"])]
        for figure, scale, unit, digits in (("accuracy", 100, " %", 1), ("decidability", 1, "", 2)):
            first, last = ([scale * run[name][figure][k] for run in runs] for k in (0, 1))
            change = [after - before for before, after in zip(first, last, strict=True)]
            row.append(f"{mean(first):.{digits}f} → {mean(last):.{digits}f}{unit}")
            row.append(_interval(change, digits))
        cells.append(row)
    header = ["stage", "epochs", "accuracy over pairs, first → last", "change in points [95 %]"]
    header += ["d′ (Eq. 8), first → last", "change [95 %]"]
    return {
        "training-stages": _table(header, cells),
        "training-seeds": str(len(runs)),
        "training-c-better": str(sum(run["C"]["accuracy"][1] > run["C"]["accuracy"][0] for run in runs)),
        "training-c-decidability": str(sum(run["C"]["decidability"][1] > run["C"]["decidability"][0] for run in runs)),
    }


def _interval(values: list[float], digits: int) -> str:
    """Return the mean of independent values and its Student's interval."""
    found = student(values)
    assert found is not None
    return f"{mean(values):+.{digits}f} [{found[0]:+.{digits}f}, {found[1]:+.{digits}f}]".replace("-", "−")


def _costs() -> dict[str, str]:
    """Return the time that reproductions took, and what full scale is predicted to take."""
    found: dict[str, str] = {}
    for paper in ("trigueros2018", "pdsn-landmarks"):
        for scale in ("smoke", "small"):
            report = json.loads((ROOT / "results" / paper / scale / "report.json").read_text())
            seconds = report["cost"]["seconds"] / len(report["seeds"])
            found[f"reproduce-{paper}-{scale}"] = _duration(seconds)
    return found | _scaling()


def _scaling() -> dict[str, str]:
    """Return the predicted cost of full scale: nothing of it was measured."""
    rows = {row["paper"]: row for row in _read("scaling")["rows"]}
    whole = rows["trigueros2018"]
    nouns = {"maps for P": "positions", "Table 1": "positions", "Table 2, Figure 6": "faces"}
    cells = [
        [
            part if found["steps"] == 1 else f"{part} ({found['steps']:.0f} steps)",
            f"{found['images'] / 1e6:.1f} million {nouns.get(part, 'images')}",
            _power(found["flops"]),
            _duration(found["seconds"]),
        ]
        for part, found in whole["parts"].items()
    ]
    cells.append(["together", "", "", _duration(whole["seconds"])])
    maps = [whole["parts"][part] for part in ("maps for P", "Table 1")]
    return {
        "scaling-trigueros2018": _table(["part", "work", "operations", "one H100 (predicted)"], cells),
        "scaling-trigueros2018-eight": _duration(whole["seconds_of_eight"]),
        "scaling-trigueros2018-spread": _duration(whole["seconds_of_eight_spread"]),
        "scaling-maps": _duration(sum(part["seconds"] for part in maps)),
        "scaling-maps-dense": _duration(sum(part["flops"] for part in maps) / whole["rate"]),
        "scaling-disk": f"{whole['disk'] / 1e9:.1f} GB",
        "scaling-pdsn": _duration(rows["pdsn-landmarks"]["seconds"]),
        "scaling-pdsn-spread": _duration(rows["pdsn-landmarks"]["seconds_of_eight_spread"]),
    }


def _power(value: float) -> str:
    exponent = len(f"{value:.0f}") - 1
    return f"{value / 10**exponent:.1f}·10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _table(header: list[str], cells: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *cells]
    return "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"


def main() -> None:
    """Fill in the pages, or only check or list the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs")
    parser.add_argument("--list", action="store_true", help="print every figure")
    arguments = parser.parse_args()
    if arguments.list:
        for name, value in figures().items():
            print(f"{name:32} {value}")
        return
    differ = []
    for page in pages():
        text, name = page.read_text(), page.relative_to(ROOT).as_posix()
        if (filled := fill(text, name)) != text:
            differ.append(name)
            if not arguments.check:
                page.write_text(filled)
    print("\n".join(differ) or "nothing to change")
    raise SystemExit(bool(differ and arguments.check))


if __name__ == "__main__":
    main()
