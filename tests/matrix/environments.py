"""Interpreters and virtual environments of the cells."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from .cells import Packages

ROOT = Path(__file__).resolve().parents[2]
#: Parts of the package that the tests use; tests of packages that are not installed are skipped.
_EXTRAS = ("demo", "export", "fetch", "detect")
_TOOLS = ("pytest", "pytest-benchmark", "pytest-timeout", "pytest-xdist", "hypothesis", "setuptools>=77", "wheel")


class NotHere(Exception):
    """What a cell needs is not on this machine."""


def interpreter(version: str, places: Iterable[Path]) -> Path:
    """Return the interpreter of a version, from files and folders (and their ``*/bin``) or the path.

    Raises:
        NotHere: There is none.
    """
    name = f"python{version}"
    for place in places:
        candidates = [place] if place.is_file() else [place / name, *sorted(place.glob(f"*/bin/{name}"))]
        for candidate in candidates:
            if candidate.is_file() and _version_of(candidate) == version:
                return candidate
    found = shutil.which(name)
    if found and _version_of(Path(found)) == version:
        return Path(found)
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        return Path(sys.executable)
    raise NotHere(f"no {name} on the path or under --pythons")


def _version_of(python: Path) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return done.stdout.strip()


def lowest() -> list[str]:
    """Return the lowest versions that ``pyproject.toml`` declares, as constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = list(project["dependencies"])
    for extra in ("train", *_EXTRAS):
        declared += project["optional-dependencies"][extra]
    found = [re.fullmatch(r"([\w.-]+)>=([\w.]+)", entry) for entry in declared if not entry.startswith("occfast")]
    return sorted(f"{match[1]}=={match[2]}" for match in found if match)


def prepare(folder: Path, python: Path, packages: Packages, log: Path) -> Path:
    """Make the environment of a cell, unless it is there, and return its interpreter.

    Raises:
        NotHere: The packages can't be installed; the log says why.
    """
    inside = folder / "bin" / "python"
    done = folder / "done"
    if done.exists():
        return inside
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    constraints = folder / "constraints.txt"
    lines = {
        "pinned": (ROOT / "constraints.txt").read_text().splitlines(),
        "lowest": lowest(),
        "torch 2.11": ["torch==2.11.*"],
        "newest": [],
        "present": [],
    }[packages]
    constraints.write_text("\n".join(line for line in lines if not line.startswith("#")) + "\n")
    install = [str(inside), "-m", "pip", "install", "-q", "-c", str(constraints)]
    with log.open("a") as out:
        for command in (
            [str(python), "-m", "venv", str(folder)],
            [*install, *_TOOLS],
            [*install, "-e", f"{ROOT}[{','.join(_EXTRAS)}]"],
        ):
            print("$", *command, file=out, flush=True)
            if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT).returncode:
                raise NotHere(f"the packages can't be installed: {_last_error(log)}")
    done.touch()
    return inside


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR")]
    return lines[-1].removeprefix("ERROR: ") if lines else "see the log"


_VERSIONS = """
import json, sys, torch, numpy
found = {"python": "%d.%d.%d" % sys.version_info[:3], "torch": torch.__version__, "numpy": numpy.__version__}
found["capability"] = torch.backends.cpu.get_cpu_capability()
print(json.dumps(found))
"""


def versions(python: Path, environment: dict[str, str]) -> dict[str, str]:
    """Return the versions of an environment, and the instruction set that PyTorch's own kernels use in it."""
    done = subprocess.run(
        [str(python), "-c", _VERSIONS], capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise NotHere(f"PyTorch can't be imported: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def compiler_version(program: str) -> str:
    """Return the first line of a compiler's ``--version``.

    Raises:
        NotHere: It is not on the path.
    """
    if shutil.which(program) is None:
        raise NotHere(f"{program} is not on the path")
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    return done.stdout.splitlines()[0] if done.stdout else program
