"""The source distribution and the wheel hold all that an installation needs."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from occfast.native.build import VARIANTS

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


def test_a_wheel_without_modules_is_built_from_it(unpacked: Path, tmp_path: Path) -> None:
    wheel = build("wheel", unpacked, tmp_path, OCCFAST_PREBUILD="none")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in tracked():
        if name.startswith("occfast/"):
            assert name in names, name
        elif name.startswith("csrc/"):
            assert f"occfast/{name}" in names, name
    assert not any(name.endswith(".so") for name in names)


# -- modules of a wheel: `make wheel-check` builds and tests all variants; here the oldest, not optimized ---------

VARIANT = VARIANTS.get(platform.machine(), ("none",))[-1]
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or VARIANT == "none", reason="no g++ on the path, or no variant for this machine"
)
USE = """
import json, torch, occfast
from occfast.native import loader, prebuilt
images = torch.rand(2, 1, 9, 9)
assert not torch.equal(occfast.NoisyOccluder(size=(4, 5), seed=1)(images, torch.arange(2)), images)
print(json.dumps([occfast.__file__, occfast.backend(), str(prebuilt.find("cpu")), loader._modules["cpu"].__file__]))
"""


@pytest.fixture(scope="module")
def quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compiler that does not optimize, for the time of the tests."""
    program = tmp_path_factory.mktemp("compiler") / "g++"
    program.write_text(f'#!/bin/sh\nexec {shutil.which("g++")} "$@" -O0\n')
    program.chmod(0o755)
    return str(program)


@pytest.fixture(scope="module")
def wheel(unpacked: Path, quick_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with one variant; what an earlier build left behind must not get into it."""
    for stale in unpacked.glob("build/lib*/occfast/native"):
        (stale / "prebuilt").mkdir(exist_ok=True)
        (stale / "prebuilt" / "occfast_cpu.stale.so").write_bytes(b"of an earlier build")
    folder = tmp_path_factory.mktemp("wheel")
    return build("wheel", unpacked, folder, OCCFAST_PREBUILD=VARIANT, CXX=quick_compiler)


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def use(site: Path, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Use the kernels of an installation where there is no compiler and no cache."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OCCFAST_") and k != "CXX"}
    environment = {**kept, "PYTHONPATH": str(site), "OCCFAST_CACHE": "/dev/null/none", "PATH": "/none", **changes}
    return subprocess.run([sys.executable, "-c", USE], cwd=cwd, capture_output=True, text=True, env=environment)


@needs_compiler
def test_a_wheel_with_modules_is_tagged_for_its_platform(wheel: Path) -> None:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.search(rf"-{tag}-{tag}t?-(many)?linux\w*_{platform.machine()}\.whl$", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    modules = sorted(Path(name).name for name in names if "/prebuilt/" in name)
    assert modules == ["cpu_level.so", "modules.json", f"occfast_cpu.{VARIANT}.so"]
    stated = json.loads(zipfile.ZipFile(wheel).read("occfast/native/prebuilt/modules.json"))
    assert [module["variant"] for module in stated["modules"]] == [VARIANT]


@needs_compiler
def test_an_installed_wheel_is_used_without_a_compiler_and_without_a_cache(site: Path, tmp_path: Path) -> None:
    done = use(site, tmp_path)
    assert done.returncode == 0, done.stderr
    package, backend, found, loaded = json.loads(done.stdout)
    assert package == str(site / "occfast" / "__init__.py")
    assert backend["cpu"] == "native" and "ready" in backend["reason"]
    assert found == loaded == str(site / "occfast" / "native" / "prebuilt" / f"occfast_cpu.{VARIANT}.so")
    doctor = "from occfast.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", doctor, "doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site), "OCCFAST_CACHE": "/dev/null/none", "PATH": "/none", "CXX": ""},
    )
    assert done.returncode == 0 and f"prebuilt for {VARIANT}" in done.stdout, done.stdout + done.stderr


@needs_compiler
def test_a_checkout_beside_an_installed_wheel_uses_its_own_sources(site: Path, tmp_path: Path) -> None:
    """A checkout that comes first on the path must not take the kernels of the wheel, which have other sources."""
    done = use(site, tmp_path, PYTHONPATH=os.pathsep.join([str(ROOT), str(site)]))
    assert "NativeUnavailable" in done.stderr and "no C++ compiler" in done.stderr


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "level"])
def test_damaged_modules_are_reported_and_not_used(site: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    prebuilt = copy / "occfast" / "native" / "prebuilt"
    module = prebuilt / f"occfast_cpu.{VARIANT}.so"
    if damage == "cut":
        module.write_bytes(module.read_bytes()[: module.stat().st_size // 2])
    else:
        (prebuilt / "cpu_level.so").write_text("not a library")
    done = use(copy, tmp_path)
    assert done.returncode == 1 and "are damaged" in done.stderr and "reinstall occfast" in done.stderr, done.stderr
    assert "no C++ compiler" in done.stderr


@needs_compiler
def test_an_editable_installation_compiles_nothing(unpacked: Path, tmp_path: Path) -> None:
    code = f"import setuptools.build_meta as b; print('built', b.build_editable({str(tmp_path)!r}))"
    before = sorted(path for path in unpacked.rglob("*") if path.suffix in (".so", ".o"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True, env={**os.environ, "CXX": "false"}
    )
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1].removeprefix("built ")).namelist()
    assert not any(name.endswith(".so") for name in names)
    assert sorted(path for path in unpacked.rglob("*") if path.suffix in (".so", ".o")) == before
    assert not (unpacked / "occfast" / "native" / "prebuilt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"OCCFAST_PREBUILD": "x86-64-v9"}, "OCCFAST_PREBUILD: expected names among"),
        ({"OCCFAST_PREBUILD": VARIANT, "CXX": "/no/such/program"}, "no C++ compiler"),
        ({"OCCFAST_PREBUILD": VARIANT, "CXX": "false"}, "OCCFAST_PREBUILD=none makes a wheel"),
    ],
)
@needs_compiler
def test_a_wheel_that_cannot_be_built_says_why(
    unpacked: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    code = f"import setuptools.build_meta as b; b.build_wheel({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True, env={**os.environ, **changes}
    )
    assert done.returncode != 0 and message in done.stderr, done.stderr[-2000:]
    assert not list(tmp_path.iterdir())
