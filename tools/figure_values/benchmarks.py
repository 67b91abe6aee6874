"""Numbers of ``bench/results``."""

from __future__ import annotations

import re
from statistics import mean

from tools.figure_values.formats import BENCH, change, duration, markdown, percent, power, read, row_of, times

#: Of trigueros2018 at full scale, a third with each occluder: docs/guides/scaling.md.
PAPER_POSITIONS = 240e6


def sweeps() -> dict[str, str]:
    """Return speeds and memory of the exact sweep."""
    found: dict[str, str] = {}
    peers = {"plain": "plain PyTorch", "compile": "torch.compile", "captum": "Captum", "monai": "MONAI"}
    hours = {"occfast": 0.0, "captum": 0.0}
    for occluder in ("20x20", "20x40", "40x40"):
        rates = {
            name: row_of("sweep-cpu", workload="paper", occluder=occluder, who=who)["positions_per_second"]
            for name, who in {**peers, "occfast": "+ early sharing"}.items()
        }
        for name in peers:
            found[f"sweep-{occluder}-{name}"] = times(rates["occfast"] / rates[name])
        for name in ("occfast", "captum"):
            found[f"rate-{occluder}-{name}"] = f"{rates[name]:,.0f}"
            hours[name] += PAPER_POSITIONS / 3 / rates[name] / 3600
    found["scaling-sweep"] = f"{hours['occfast']:.0f} hours"
    found["scaling-captum"] = f"{hours['captum'] / 24:.0f} days"
    check = row_of("sweep-cpu", who="self-check")
    found["self-check"] = f"{check['share']:.1%}"
    for key, name in {"memory-occfast": "+ early sharing", "memory-plain": "plain PyTorch"}.items():
        used = [r["mib"] for r in read("sweep-memory-cpu")["rows"] if r["workload"] == "paper" and r["name"] == name]
        found[key] = f"{min(used)} to {max(used)} MiB"
    without, shared = (
        {r["occluder"]: r["mib"] for r in read("sweep-memory-cpu")["rows"] if (r["workload"], r["name"]) == case}
        for case in (("paper", "+ folded tail"), ("paper", "+ early sharing"))
    )
    found["memory-sharing"] = percent([1 - without[occluder] / shared[occluder] for occluder in shared])
    for mib in (1, 8, 32):
        changes = [
            row_of("sweep-batch-cpu", occluder=row["occluder"], mib=mib)["positions_per_second"]
            / row["positions_per_second"]
            - 1
            for row in read("sweep-batch-cpu")["rows"]
            if row["used"]
        ]
        found[f"batch-{mib}"] = percent(changes if mib == 32 else [-change for change in changes])
    for network in ("resnet34", "iresnet18"):
        own, plain = (
            row_of("sweep-w2-cpu", workload=network, who=who)["positions_per_second"]
            for who in ("+ early sharing", "plain PyTorch")
        )
        found[f"sweep-{network}"] = times(own / plain)
    for name, who in {"plain": "plain PyTorch", "captum": "Captum Occlusion"}.items():
        ratio = row_of("bench-cpu", workload="occlusion map, W1, 20×40, one image", who=who)["ratio"]
        found[f"one-image-{name}"] = times(ratio)
    return found


def predictions() -> dict[str, str]:
    """Return the speed-ups that ``explain`` predicts."""
    found: dict[str, str] = {}
    for row in read("predictions")["rows"]:
        name = f"predicted-{row['network']}-{row['occluder']}"
        found[name + (f"-stride-{row['stride']}" if row["stride"] > 1 else "")] = times(row["speedup"])
    return found


def plan() -> dict[str, str]:
    """Return what ``python -m bench.plan`` found; nothing before it was run."""
    if not (BENCH / "plan-cpu.json").is_file():
        return {}
    content = read("plan-cpu")
    found = content["summary"]
    strides = sorted({row["stride"] for row in content["rows"]})
    table = [
        [
            kind.replace("_", " "),
            *(
                f"{times(row['predicted'])} / {times(row['measured'])}"
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
        "plan-largest": times(found["largest_factor"]),
        "plan-auto-slowest": f"{found['auto_slowest']:.2f}×",
        "plan-table": markdown(["predicted / measured", *(f"stride {stride}" for stride in strides)], table),
    }


def estimates() -> dict[str, str]:
    """Return what adaptive and sampled maps save, and their errors."""
    found: dict[str, str] = {}
    files = {"": "estimate-cpu", "-40x40": "estimate-40x40-cpu"}
    files |= {"-occluded": "estimate-occluded-cpu", "-weak": "estimate-weak-cpu"}
    costs = [1 / read(file)["adaptive"]["adaptive"]["fewer_evaluations"] for file in files.values()]
    for name, file in files.items():
        part = read(file)["adaptive"]
        adaptive = part["adaptive"]
        found |= {
            f"full-captum{name}": times(part["full"]["times_captum"]),
            f"adaptive-captum{name}": times(adaptive["times_captum"]),
            f"adaptive-single{name}": times(adaptive["one_image_at_a_time_times_captum"]),
            f"adaptive-fewer{name}": f"{adaptive['fewer_evaluations']:.1f}×",
            f"adaptive-agreement{name}": f"{adaptive['agreement']:.2%}",
            f"adaptive-worst{name}": f"{adaptive['agreement_of_the_worst_image']:.1%}",
        }
    own = read("estimate-cpu")
    sampled, truth = own["sampled"], read("estimate-truth-cpu")["truth"]
    stated = re.search(r"standard error ([\d.]+) .*smoothing bias ([\d.]+)", sampled["stated"])
    if stated is None:
        raise SystemExit(f"estimate-cpu.json: no standard error and bias in {sampled['stated']!r}")
    return found | {
        "adaptive-cost": percent(costs),
        "sampled-cost": f"{1 / sampled['fewer_evaluations']:.0%}".replace("%", " %"),
        "sampled-captum": times(sampled["times_captum"]),
        "sampled-fewer": f"{sampled['fewer_evaluations']:.0f}×",
        "sampled-error": f"{float(stated[1]):.4f}",
        "sampled-bias": f"{float(stated[2]):.3f}",
        "truth-rms": f"{truth['rms_error']:.3f}",
        "truth-stated": f"{truth['rms_stated']:.3f}",
        "truth-covered": f"{truth['covered_by_95_percent_intervals']:.1%}",
        "truth-variation": f"{truth['total_variation_of_P']:.3f}",
        "two-processes": f"{own['processes']['ratio']:.2f}×",
    }


def captum() -> dict[str, str]:
    """Return the speed of Captum's signature on the sweeps."""
    rows = [row for row in read("captum-occlusion-cpu")["rows"] if row["workload"] == "paper, stride 5"]
    best = next(row["seconds"] for row in rows if row["best"])
    seconds = {row["who"]: row["seconds"] for row in rows}
    names = {"captum-first": "occfast", "captum-kept": "occfast, kept plan"}
    return {name: times(best / seconds[who]) for name, who in names.items()}


def comparisons() -> dict[str, str]:
    """Return how often comparisons of maps raise a false alarm."""
    rows = read("false-alarms")["rows"]
    shares = {row["case"]: row["false_alarms"] for row in rows}
    exact = [share for case, share in shares.items() if case != "skewed"]
    return {
        "false-alarms": f"{100 * min(exact):.1f} to {100 * max(exact):.1f} %",
        "false-alarms-skewed": f"{100 * shares['skewed']:.1f} %",
        "false-alarms-repetitions": f"{rows[0]['repetitions']:,}",
    }


def verification() -> dict[str, str]:
    """Return what adaptive maps of a recognizer save, and how far they are from full ones."""
    found = read("verification-maps")
    by_name = {row["score"]: row for row in found["rows"]}
    labels, drops = by_name["mismatch"], by_name["similarity_drop"]

    def interval(values: list[float], digits: int) -> str:
        mean, low, high = (100 * value for value in values)
        return f"{mean:.{digits}f} % ({low:.{digits}f}-{high:.{digits}f})"

    return {
        "mismatch-faces": str(found["faces"]),
        "mismatch-fewer": times(labels["fewer_evaluations"]),
        "mismatch-fewer-single": times(labels["one_face_fewer_evaluations"]),
        "mismatch-equal": interval(labels["equal"], 2),
        "similarity-fewer": times(drops["fewer_evaluations"]),
        "similarity-fewer-single": times(drops["one_face_fewer_evaluations"]),
        "similarity-rmse": interval(drops["rmse_over_range"], 1),
    }


def calibration() -> dict[str, str]:
    """Return how estimated maps of small networks agree with full sweeps."""
    rows = read("calibration")["rows"]
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
        "coverage": markdown(header, cells),
        "coverage-seeds": str(read("calibration")["seeds"]),
        "coverage-worst": f"{100 * min(min(found['runs']) for found in every):.0f} %",
        "coverage-highest": percent([found["highest"] for found in every]),
        "coverage-elsewhere": percent([found["elsewhere"] for found in every]),
        "adaptive-disagreement": f"{min(different):.2f} to {max(different):.2f} %",
        "adaptive-coverage": percent([found["held"] for found in adaptive]),
        "adaptive-calibration-fewer": f"{min(fewer):.1f} to {max(fewer):.1f} times",
    }


def noise() -> dict[str, str]:
    """Return speeds of the noisy occluder."""
    found: dict[str, str] = {}
    peers = {"plain": "plain PyTorch", "skimage": "scikit-image", "kornia": "kornia RandomErasing"}
    for dtype in ("float32", "uint8"):
        for name, who in peers.items():
            if (dtype, name) != ("uint8", "kornia"):  # kornia takes floating-point images only
                row = row_of("bench-cpu", workload=f"noisy occluder 20×40, grey 100×100 {dtype}", who=who)
                found[f"noise-{dtype}-{name}"] = times(row["ratio"])
    rows = read("occluder-pixels")["rows"]
    names = list(rows[0]["nanoseconds"])
    cells = [[row["instruction_set"], *(f"{row['nanoseconds'][name]:.2f}" for name in names)] for row in rows]
    return found | {"occluder-pixels": markdown(["instruction set", *names], cells)}


def losses() -> dict[str, str]:
    """Return speeds of the triplet losses, and what each mining selects."""
    found: dict[str, str] = {}
    size = {"batch": 2048, "per_class": 8, "dim": 320}
    for mining in ("all", "violating"):
        peer = row_of("triplet", provider="pytorch-metric-learning", mining=mining, **size)
        found[f"triplet-{mining}"] = times(peer["ratio"])
        found[f"triplet-{mining}-time"] = (
            f"{1000 * row_of('triplet', provider='occfast', mining=mining, **size)['seconds']:.0f} ms"
        )
    large = next(row for row in read("triplet")["memory"] if row["batch"] == 16384)
    columns = {"mean_ap": "mean d_ap", "mean_an": "mean d_an", "var_ap": "var d_ap", "var_an": "var d_an"}
    mined = [
        [f"`{row['mining']}`", f"{row['n_triplets']:,.0f}", *(f"{row[name]:.3f}" for name in columns)]
        for row in read("triplet-mining")["rows"]
    ]
    linear = read("triplet-memory")
    ratios = [row["ratio"] for row in linear["rows"] if row["batch"] == 8192]
    peak = max(linear["memory"], key=lambda row: int(row["batch"]))
    return found | {
        "triplet-linear": f"{min(ratios):.1f} to {max(ratios):.1f} times",
        "triplet-linear-batch": f"{peak['batch']:,}",
        "triplet-linear-time": f"{peak['seconds']:.0f} s",
        "triplet-linear-memory": f"{peak['peak_bytes'] / 2**30:.1f} GiB",
        "triplet-linear-gradient": f"{max(row['gradients_apart'] for row in linear['rows']):.0e}",
        "triplet-mining": markdown(["mining", "mined triplets", *columns.values()], mined),
        "triplet-large-time": f"{large['seconds']:.0f} s",
        "triplet-large-memory": f"{large['peak_bytes'] / 1e9:.1f} GB",
    }


def stages() -> dict[str, str]:
    """Return the three stages of training on ORL: means over seeds with Student's intervals of the changes."""
    runs = read("stages")["runs"]
    started = {"A": "A", "A20x40": "A20x40, from A's best, P from the map of A", "C": "C, from A20x40's last"}
    cells = []
    for name, title in started.items():
        row = [title, str(runs[0][name]["epochs"])]
        for figure, scale, unit, digits in (("accuracy", 100, " %", 1), ("decidability", 1, "", 2)):
            first, last = ([scale * run[name][figure][k] for run in runs] for k in (0, 1))
            gains = [after - before for before, after in zip(first, last, strict=True)]
            row.append(f"{mean(first):.{digits}f} → {mean(last):.{digits}f}{unit}")
            row.append(change(gains, digits))
        cells.append(row)
    header = ["stage", "epochs", "accuracy over pairs, first → last", "change in points [95 %]"]
    header += ["d′ (Eq. 8), first → last", "change [95 %]"]
    return {
        "training-stages": markdown(header, cells),
        "training-seeds": str(len(runs)),
        "training-c-better": str(sum(run["C"]["accuracy"][1] > run["C"]["accuracy"][0] for run in runs)),
        "training-c-decidability": str(sum(run["C"]["decidability"][1] > run["C"]["decidability"][0] for run in runs)),
    }


def pipelines() -> dict[str, str]:
    """Return images a second from files to the network's input."""
    rows = read("pipelines")["rows"]
    cells = [[row["pipeline"], f"{row['images_per_second']:,.0f}", f"{row['over torch, Pillow']:.2f}×"] for row in rows]
    return {"pipelines": markdown(["pipeline", "images a second", "over a DataLoader with Pillow"], cells)}


def evaluation() -> dict[str, str]:
    """Return speeds of the evaluation."""
    roc = row_of(
        "evaluation",
        workload="ROC and AUC of 10,000,000 float64 scores, half of one person",
        who="scikit-learn roc_curve + auc",
    )
    search = row_of(
        "evaluation",
        workload="rank-1 and rank-5 of 2,000 probes among 13,000 images, D = 512",
        who="scikit-learn NearestNeighbors",
    )
    own = [
        row["seconds"]
        for row in read("evaluation")["rows"]
        if row["workload"].startswith("ROC and AUC of 10,000,000") and row["who"] == "occfast"
    ]
    return {
        "roc-sklearn": times(roc["occfast_is"]),
        "roc-time": f"{min(own):.2f} to {max(own):.2f} seconds",
        "search-sklearn": times(search["occfast_is"]),
    }


def scaling() -> dict[str, str]:
    """Return the predicted cost of full scale: nothing of it was measured."""
    rows = {row["paper"]: row for row in read("scaling")["rows"]}
    whole = rows["trigueros2018"]
    nouns = {"maps for P": "positions", "Table 1": "positions", "Table 2, Figure 6": "faces"}
    cells = [
        [
            part if found["steps"] == 1 else f"{part} ({found['steps']:.0f} steps)",
            f"{found['images'] / 1e6:.1f} million {nouns.get(part, 'images')}",
            power(found["flops"]),
            duration(found["seconds"]),
        ]
        for part, found in whole["parts"].items()
    ]
    cells.append(["together", "", "", duration(whole["seconds"])])
    maps = [whole["parts"][part] for part in ("maps for P", "Table 1")]
    classifiers = [
        [
            "one process" if row["processes"] == 1 else f"{row['processes']} processes, sampling {row['sampling']:g}",
            f"{3 * row['weights'] / 1e9:.2g} GB",
            f"{row['logits'] / 1e9:.2g} GB",
            f"{row['temporary'] / 1e9:.2g} GB",
            "" if row["processes"] == 1 else f"{row['exchanged'] / 1e6:.1f} MB",
            f"{row['flops_per_image'] / 1e9:.1f} GFLOP",
        ]
        for row in read("scaling")["webface42m"]
    ]
    columns = ["classifier", "weights, gradient, momentum", "logits", "temporary", "sent a step", "work a face"]
    return {
        "scaling-webface42m": markdown(columns, classifiers),
        "scaling-trigueros2018": markdown(["part", "work", "operations", "one H100 (predicted)"], cells),
        "scaling-trigueros2018-eight": duration(whole["seconds_of_eight"]),
        "scaling-trigueros2018-spread": duration(whole["seconds_of_eight_spread"]),
        "scaling-maps": duration(sum(part["seconds"] for part in maps)),
        "scaling-maps-dense": duration(sum(part["flops"] for part in maps) / whole["rate"]),
        "scaling-disk": f"{whole['disk'] / 1e9:.1f} GB",
        "scaling-pdsn": duration(rows["pdsn-landmarks"]["seconds"]),
        "scaling-pdsn-spread": duration(rows["pdsn-landmarks"]["seconds_of_eight_spread"]),
    }
