"""The modules that a wheel brings: which of them fits this machine.

``modules.json`` beside them states what they were made for. A module is used if it can run here, not only where the
same build would give it. This is the one place that asks what the processor can run.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import NativeUnavailable
from . import build
from .build import Backend

#: Folder of the modules in an installed wheel. A checkout has none.
FOLDER = Path(__file__).with_name("prebuilt")


def find(backend: Backend) -> Path | None:
    """Return the module of the wheel to use, or None if one has to be built; see :func:`choose`."""
    return choose(backend)[0]


def choose(backend: Backend) -> tuple[Path | None, str]:
    """Return the module of the wheel to use, or None, and the reason in words.

    The best variant of the CPU kernels that this processor can run, or the one that ``OCCFAST_MARCH`` names. Any
    other value of ``OCCFAST_MARCH``, such as "native", asks for a build.

    Raises:
        NativeUnavailable: ``OCCFAST_MARCH`` names a variant that this processor cannot run.
    """
    if not (FOLDER / "modules.json").is_file():
        return None, "none was installed"
    try:
        stated = json.loads((FOLDER / "modules.json").read_text())
        found = _choose(backend, stated)
        if found[0] is not None:
            _check_digest(found[0], stated)
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(
            f"the prebuilt modules in {FOLDER} are damaged ({type(error).__name__}: {error}) and not used; "
            "reinstall occfast",
            RuntimeWarning,
            stacklevel=2,
        )
        return None, f"damaged: {error}"


def _choose(backend: Backend, stated: dict[str, Any]) -> tuple[Path | None, str]:
    modules = {m.get("variant", backend): m for m in stated["modules"] if m["backend"] == backend}
    if not modules:
        return None, "none was installed"
    if stated["machine"] != platform.machine():
        return None, f"made for {stated['machine']}"
    if stated["python"] != build.python_abi():
        return None, f"made for {stated['python']}, and this is {build.python_abi()}"
    if stated["sources"] != _present_sources(stated["sources"]):
        return None, "made from other sources than those installed"
    if backend == "cuda":
        [module] = modules.values()
        reason = cuda_misfit(module["architectures"], module["nvcc"])
        return (None, reason) if reason else (FOLDER / module["file"], _cuda_name(module["architectures"]))
    chosen = os.environ.get("OCCFAST_MARCH")
    if chosen and chosen not in build.VARIANTS.get(platform.machine(), ()):
        return None, f"OCCFAST_MARCH={chosen} asks for a build"
    runnable = runnable_variants()
    if chosen and chosen not in runnable:
        raise NativeUnavailable(
            f"OCCFAST_MARCH: expected a variant that this processor can run ({', '.join(runnable) or 'none'}), "
            f"got {chosen!r}"
        )
    for name in [chosen] if chosen else runnable:
        if name in modules:
            return FOLDER / modules[name]["file"], name
    return None, f"this processor can run {', '.join([chosen] if chosen else runnable) or 'none'}"


def _present_sources(otherwise: str) -> str:
    try:
        return build.source_digest()
    except FileNotFoundError:
        return otherwise  # a wheel without sources can only run what it brings


def _cuda_name(architectures: list[str]) -> str:
    return ", ".join(f"sm_{one}" for one in architectures)


def _check_digest(path: Path, stated: dict[str, Any]) -> None:
    """Refuse a module that was cut: mapping it could end the process."""
    [wanted] = [module["sha256"] for module in stated["modules"] if module["file"] == path.name]
    if build.file_digest(path) != wanted:
        raise ValueError(f"{path.name} was changed or cut")


@lru_cache(maxsize=1)
def runnable_variants() -> tuple[str, ...]:
    """Return the variants that this processor can run, the best first, as the library of the wheel sees it.

    Raises:
        OSError: The library is missing or damaged.
    """
    library = ctypes.CDLL(str(FOLDER / "cpu_level.so"))
    library.occfast_cpu_level.restype = ctypes.c_char_p
    level = library.occfast_cpu_level().decode()
    known = build.VARIANTS.get(platform.machine(), ())
    return known[known.index(level) :] if level in known else ()


def cuda_misfit(architectures: list[str], nvcc: str) -> str | None:
    """Return why a CUDA module cannot run here, or None.

    It runs on GPUs of the same major capability and the same or a later minor one, and, since it holds PTX of the
    newest architecture, on all later GPUs. It needs PyTorch's CUDA runtime, compatible within a major version.
    """
    import torch

    made = re.search(r"release (\d+)\.", nvcc)
    present = torch.version.cuda
    if present is None:
        return "this PyTorch has no CUDA"
    if made is None or made[1] != present.partition(".")[0]:
        return f"made with CUDA {made[1] if made else '?'}, and PyTorch has {present}"
    numbers = [int(one) for one in architectures]
    for k in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(k)
        here = 10 * major + minor
        if not any(one <= here and (one // 10 == major or one == max(numbers)) for one in numbers):
            return f"made for {_cuda_name(architectures)}, and GPU {k} is sm_{here}"
    return None


def provide_openmp() -> None:
    """Make the functions of OpenMP visible, which the modules of a wheel take from PyTorch's library.

    PyTorch's wheels load it for every library of the process. Where one does not, the library that is loaded is opened
    again for all, so that both share their threads; or else that of the system.

    Raises:
        NativeUnavailable: There is none.
    """
    import torch  # noqa: F401  loads it

    if hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        return
    loaded = []
    if sys.platform == "linux":
        maps = Path("/proc/self/maps").read_text()
        loaded = sorted(set(re.findall(r"(/\S*/lib(?:gomp|omp|iomp5)[^/\s]*\.so[^/\s]*)", maps)))
    for name in (*loaded, "libgomp.so.1"):
        try:
            if hasattr(ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL), "GOMP_parallel"):
                return
        except OSError:
            continue
    raise NativeUnavailable(
        "the CPU kernels need the OpenMP library libgomp.so.1, which neither PyTorch nor the system has; install it "
        "(Debian: apt-get install libgomp1)"
    )
