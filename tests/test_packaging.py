"""The source distribution and the wheel hold all that an installation needs."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tracked() -> list[str]:
    """Names of the files under version control; the test is skipped where there is none."""
    try:
        done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the files under version control can't be listed")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def build(kind: str, source: Path, target: Path, **environment: str) -> Path:
    """Run setuptools' ``build_sdist`` or ``build_wheel`` in ``source`` and return the file."""
    code = f"import setuptools.build_meta as b; print('built', b.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return target / done.stdout.splitlines()[-1].removeprefix("built ")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, made from a copy of the tracked files and unpacked."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("packaging")
    for name in tracked():
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "copy" / name).write_bytes((ROOT / name).read_bytes())
    with tarfile.open(build("sdist", folder / "copy", folder)) as archive:
        archive.extractall(folder / "sdist", filter="data")
    return next((folder / "sdist").iterdir())


def test_the_source_distribution_holds_the_sources(unpacked: Path) -> None:
    wanted = [
        name
        for name in tracked()
        if name.split("/")[0] in ("csrc", "occfast", "tests", "bench", "tools") and "results/" not in name
    ]
    missing = [name for name in wanted if not (unpacked / name).is_file()]
    assert len(wanted) > 200 and not missing


def test_a_wheel_is_built_from_it(unpacked: Path, tmp_path: Path) -> None:
    wheel = build("wheel", unpacked, tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in tracked():
        if name.startswith("occfast/"):
            assert name in names, name
        elif name.startswith("csrc/"):
            assert f"occfast/{name}" in names, name
    assert not any(name.endswith(".so") for name in names)


def test_a_wheel_with_prebuilt_modules_is_tagged_for_its_platform(unpacked: Path, tmp_path: Path) -> None:
    wheel = build("wheel", unpacked, tmp_path, OCCFAST_AOT="1")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in wheel.name and "any" not in wheel.name
    assert "occfast/native/occfast_cpu.so" in zipfile.ZipFile(wheel).namelist()
