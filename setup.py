"""Package the C++ sources with the Python package, and build the modules that a wheel brings.

``pip wheel .`` and ``pip install .`` compile the CPU kernels for several levels of processors, from the same sources
and flags as the build at first use. ``pip install -e .`` compiles nothing. ``OCCFAST_PREBUILD`` changes what is
built: variants of ``build.VARIANTS`` and "cuda", separated by commas, or "none".
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

from setuptools import Distribution, find_namespace_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NATIVE_FOLDERS = ("", "core", "cpu", "cuda")


def native() -> tuple[types.ModuleType, types.ModuleType]:
    """Import ``occfast.native.build`` and ``compile`` without their packages, which would import PyTorch."""
    for name in ("occfast", "occfast.native"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, package)
    return importlib.import_module("occfast.native.build"), importlib.import_module("occfast.native.compile")


def wanted() -> list[str]:
    """Return the modules to build: ``OCCFAST_PREBUILD``, by default all variants for this machine."""
    chosen = os.environ.get("OCCFAST_PREBUILD")
    if not chosen:
        return list(native()[0].VARIANTS.get(platform.machine(), ()))
    return [] if chosen == "none" else [name.strip() for name in chosen.split(",")]


class BuildPy(build_py):  # type: ignore[misc]
    """Build step that copies csrc/ into the package, and compiles the modules of a wheel."""

    def run(self) -> None:
        """Copy the native sources into the package and build the modules; an editable installation gets neither."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "occfast"
        for folder in (package / "csrc", package / "native" / "prebuilt"):
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        for name in NATIVE_FOLDERS:
            (package / "csrc" / name).mkdir(parents=True, exist_ok=True)
            for source in sorted((ROOT / "csrc" / name).iterdir()):
                if source.suffix in {".h", ".cpp", ".cu", ".cuh"}:
                    shutil.copy2(source, package / "csrc" / name / source.name)
        if names := wanted():
            self.prebuild(names, package / "native" / "prebuilt")

    @staticmethod
    def prebuild(names: list[str], target: Path) -> None:
        """Build the modules with these names into the package."""
        _, compiling = native()
        target.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as work:
            try:
                compiling.prebuild(names, target, Path(work))
            except (compiling.CompileError, ValueError) as error:
                raise SystemExit(
                    f"the native modules of the wheel can't be built: {error}\n"
                    "OCCFAST_PREBUILD=none makes a wheel whose kernels are compiled at first use"
                ) from error


class BdistWheel(bdist_wheel):  # type: ignore[misc]
    """Wheel whose tag names the oldest system that its modules run on."""

    def run(self) -> None:
        """Write the wheel, and let auditwheel find its tag."""
        super().run()
        if not self.distribution.has_ext_modules():
            return
        if importlib.util.find_spec("auditwheel") is None:
            print("occfast: auditwheel is not installed, so the wheel is tagged for this system alone")
            return
        for kind, python, name in self.distribution.dist_files:
            if kind == "bdist_wheel":
                self.retag(Path(name))
                self.distribution.dist_files.remove((kind, python, name))
                break

    @staticmethod
    def retag(wheel: Path) -> None:
        """Replace a wheel by the same with the tag that auditwheel finds."""
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder]
            command += ["--exclude", "libcudart.so.*", str(wheel)]  # a CUDA build of PyTorch brings it
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"auditwheel failed:\n{done.stdout}{done.stderr}")
            [repaired] = Path(folder).iterdir()
            wheel.unlink()
            shutil.move(repaired, wheel.parent / repaired.name)


class BinaryDistribution(Distribution):  # type: ignore[misc]
    """Distribution whose wheel is for one Python and one platform if it brings modules."""

    def has_ext_modules(self) -> bool:
        """Return whether the wheel holds compiled code."""
        return bool(wanted())


setup(
    packages=find_namespace_packages(include=["occfast", "occfast.*"], exclude=["occfast.csrc*"]),
    package_data={"": ["*.csv", "*.html", "*.css", "*.yaml", "*.safetensors", "card.md", "py.typed"]},
    cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel},
    distclass=BinaryDistribution,
)
