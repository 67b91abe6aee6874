"""All tests and benchmarks on a GPU: ``python -m bench.gpu`` (``make gpu-check``).

The parts are the ceilings of the GPU, the kernels against their floors, the fused convolution against the matrix rate
and PyTorch's, the dense and the incremental sweep against plain PyTorch, the triplet loss against its matrix products,
identification with PDSN against the matrix rate, training, the CUDA tests, and compute-sanitizer on them. Each part
runs in a process of its own, so that a device error does not affect the others, and its result is written at once.
Settings of the GPU are read, never changed. ``--device cpu`` is a dry run of the timed parts with small workloads.

The floor of a kernel is the time to read and write its bytes at the measured copy bandwidth; its share is floor / time.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.gpu.ceilings import ceilings
from bench.gpu.clocks import Clock, cpu_clock, gpu_clock
from bench.gpu.convolutions import fused_convolutions
from bench.gpu.kernels import time_kernels
from bench.gpu.losses import identify, training, triplet_loss
from bench.gpu.report import PARTS, table
from bench.gpu.sweeps import dense_sweep, exact_sweep
from bench.gpu.tests import run_sanitizer, run_tests, tail
from bench.harness import RESULTS, ROOT, command, environment, write

#: Time limits of the parts in seconds.
_LIMITS = {"tests": 180.0, "sanitizer": 150.0}
_LIMIT = 90.0


def run_part(part: str, device: str, clock: Clock, rates: dict[str, float], limit: float) -> Any:
    """Run one part in this process.

    Args:
        part: One of :data:`PARTS`.
        device: "cuda", or "cpu" for a dry run.
        clock: Timer of calls.
        rates: Result of the part "ceilings". If it is empty and needed, it is measured.
        limit: Time limit of the tests or the sanitizers, in seconds.
    """
    if part in ("kernels", "convolutions", "identify") and not rates:
        rates = ceilings(device, clock)
    match part:
        case "ceilings":
            return ceilings(device, clock)
        case "kernels":
            return time_kernels(device, clock, rates["copy_bytes_per_s"])
        case "convolutions":
            return fused_convolutions(device, clock, rates)
        case "sweep":
            return dense_sweep(device, clock)
        case "exact":
            return exact_sweep(device, clock)
        case "triplet":
            return triplet_loss(device, clock)
        case "identify":
            return identify(device, clock, rates["fp32_flop_per_s"])
        case "training":
            return training(device)
        case "tests":
            return run_tests(limit)
        case "sanitizer":
            return run_sanitizer(limit)
    raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")


def isolated(part: str, device: str, rates: dict[str, float], limit: float) -> Any:
    """Run one part in a process of its own and return its result; raise RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "part.json"
        call = [sys.executable, "-m", "bench.gpu", "--part", part, "--device", device, "--output", str(output)]
        call += ["--rates", json.dumps(rates), "--limit", str(limit)]
        try:
            done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=limit + 30)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"stopped after {limit + 30:.0f} s: {tail(error.stderr)}") from error
        if done.returncode or not output.exists():
            raise RuntimeError(tail(done.stderr) or f"exit status {done.returncode}")
        return json.loads(output.read_text())


def check(device: str, skip: set[str], output: Path, budget: float = 450.0, clock: Clock | None = None) -> Any:
    """Run the parts and write the result after each.

    Args:
        device: "cuda" or "cpu".
        skip: Parts to leave out.
        output: Path of the JSON file.
        budget: Total time in seconds.
        clock: Timer for running all parts in this process. None: run each part in a process of its own.

    Returns:
        The result. An error in a part is recorded in ``errors`` and does not stop the others.
    """
    started = time.perf_counter()
    result: dict[str, Any] = {"environment": environment(device=device), "skipped": sorted(skip), "errors": {}}
    for part in PARTS:
        if part in skip:
            continue
        began = time.perf_counter()
        limit = max(30.0, min(_LIMITS.get(part, _LIMIT), budget - (began - started)))
        print(f"gpu-check: {part} ...", file=sys.stderr, flush=True)
        try:
            rates = result.get("ceilings", {})
            result[part] = (
                isolated(part, device, rates, limit) if clock is None else run_part(part, device, clock, rates, limit)
            )
        except Exception as error:  # keep the results of the other parts
            result["errors"][part] = f"{type(error).__name__}: {error}"
        print(f"gpu-check: {part}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        result["seconds"] = time.perf_counter() - started
        write(output, result, table(result) + "\n")
    return result


def succeeded(result: dict[str, Any]) -> bool:
    """Return whether no part failed."""
    return not result["errors"] and all(result.get(part, {}).get("ok", True) for part in ("tests", "sanitizer"))


def main(arguments: list[str] | None = None, clock: Clock | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--skip", default="", help=f"parts to leave out, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run of the timed parts")
    parser.add_argument(
        "--output", type=Path, help="default: bench/results/gpu-<device>.json; a table is written beside it"
    )
    parser.add_argument("--budget", type=float, default=450.0, help="total time in seconds (default: 450)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rates", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=_LIMIT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    skip = {part.strip() for part in options.skip.split(",") if part.strip()}
    if unknown := skip - set(PARTS):
        parser.error(f"--skip: expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if options.device == "cpu":
        skip |= {"tests", "sanitizer"}
    elif not torch.cuda.is_available():
        reason = "this PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees no GPU (try nvidia-smi)"
        print(f"gpu-check: no GPU: {reason}; nothing was run", file=sys.stderr)
        return 1
    if options.part:
        found = run_part(
            options.part,
            options.device,
            gpu_clock if options.device == "cuda" else cpu_clock,
            options.rates,
            options.limit,
        )
        options.output.write_text(json.dumps(found))
        return 0
    card = torch.cuda.get_device_name() if options.device == "cuda" else "cpu-dry-run"
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    output = options.output or RESULTS / f"gpu-{name}.json"
    result = check(options.device, skip, output, options.budget, clock)
    print(table(result))
    print(f"written: {output} ({command()})")
    return 0 if succeeded(result) else 1


if __name__ == "__main__":
    sys.exit(main())
