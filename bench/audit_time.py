"""``python -m bench.audit_time``: the whole audit of a MobileFaceNet on 1,000 faces of LFW, with its findings and time.

    occfast export models/mobilefacenet-112x96.safetensors --network mobilefacenet --preset sphereface -o mfn.onnx
    occfast audit mfn.onnx lfw --limit 1000

Both commands run in processes of their own on the folder of photographs ``--data`` (or ``$OCCFAST_DATA``), as a user
runs them. The result without resamples and without names of people is written to ``bench/results/audit-lfw.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, environment, write


def run(*arguments: object) -> float:
    """Run the command line; return the wall time in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "occfast", *map(str, arguments)], check=True)
    return time.perf_counter() - started


def main() -> int:
    """Export, audit, and keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.audit_time", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("OCCFAST_DATA"), required=False)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULTS / "audit-lfw.json")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data: expected the folder of the photographs, or $OCCFAST_DATA")
    data = Path(arguments.data)
    weights = data / "models" / "mobilefacenet-112x96.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        model, report = Path(folder, "mobilefacenet.onnx"), Path(folder, "audit")
        export = run("export", weights, "--network", "mobilefacenet", "--preset", "sphereface", "-o", model)
        audit = run(
            *("audit", model, f"lfw:{data / 'lfw'}"), *("--limit", arguments.limit, "--output", report, "--quiet")
        )
        found: dict[str, Any] = json.loads((report / "audit.json").read_text())
    kept = {name: value for name, value in found.items() if name not in ("resamples", "worst")}
    write(arguments.output, {**environment("onnx"), "export_seconds": export, "audit_seconds": audit, "audit": kept})
    print(f"export {export:.0f} s, audit {audit:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
