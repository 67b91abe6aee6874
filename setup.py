"""Package the C++ sources with the Python package, and prebuild the kernels if requested.

``pip install -e .`` compiles nothing: kernels are built at first use. With ``OCCFAST_AOT=1`` (and
``--no-build-isolation``, since torch is needed) the same sources and flags give modules that ship inside the package.
They are used if torch, Python and the instruction set are the same.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, find_namespace_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NATIVE_FOLDERS = ("", "core", "cpu", "cuda")
PREBUILD = os.environ.get("OCCFAST_AOT") == "1"


class BuildPy(build_py):  # type: ignore[misc]
    """Build step that copies csrc/ into the package, and prebuilt modules beside the loader."""

    def run(self) -> None:
        """Copy the native sources into the package, and build them if OCCFAST_AOT is set."""
        super().run()
        if self.editable_mode:
            target = ROOT / "occfast"
        else:
            target = Path(self.build_lib) / "occfast"
            for folder in NATIVE_FOLDERS:
                (target / "csrc" / folder).mkdir(parents=True, exist_ok=True)
                for source in sorted((ROOT / "csrc" / folder).iterdir()):
                    if source.suffix in {".h", ".cpp", ".cu", ".cuh"}:
                        shutil.copy2(source, target / "csrc" / folder / source.name)
        if PREBUILD:
            self.prebuild(target / "native")

    @staticmethod
    def prebuild(target: Path) -> None:
        """Build the native modules for this machine and copy them into the package."""
        sys.path.insert(0, str(ROOT))
        from occfast.native import build, loader

        for backend in ("cpu", "cuda"):
            if backend == "cuda" and loader.missing("cuda"):
                print(f"occfast: no CUDA module is prebuilt: {loader.missing('cuda')}")
                continue
            loader.module(backend)
            module = f"occfast_{backend}.so"
            built = loader.cached_path(backend) or loader.prebuilt_path(backend)
            assert built is not None  # it was loaded from there
            shutil.copy2(built, target / module)
            (target / f"occfast_{backend}.json").write_text(
                json.dumps({"key": build.key(backend).digest(), "module": module})
            )


class BinaryDistribution(Distribution):  # type: ignore[misc]
    """Distribution whose wheel is tagged for one Python and one platform if it has prebuilt modules."""

    def has_ext_modules(self) -> bool:
        """Return whether the wheel holds compiled code."""
        return PREBUILD


setup(
    packages=find_namespace_packages(include=["occfast", "occfast.*"], exclude=["occfast.csrc*"]),
    package_data={"": ["*.csv", "*.html", "*.css", "*.yaml", "py.typed"]},
    cmdclass={"build_py": BuildPy},
    distclass=BinaryDistribution,
)
