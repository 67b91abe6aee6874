"""Building and loading the native modules: first use, cache, processes and missing tools."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USE = (
    "import torch, occfast; from occfast.native import ops; "
    "print(ops.sweep_accumulate(torch.ones(1, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), "
    "torch.zeros(2, dtype=torch.float64)))"
)


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OCCFAST_")}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def python(code: str, timeout: float = 300, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache that three processes filled at the same time, with what a killed build left."""
    cache = tmp_path_factory.mktemp("cache")
    folder = python("from occfast.native import loader; print(loader.cache_folder('cpu'))", OCCFAST_CACHE=str(cache))
    Path(folder.stdout.strip()).mkdir(parents=True)
    (Path(folder.stdout.strip()) / "occfast_cpu.so").write_bytes(b"cut")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", USE],
            env=environment(OCCFAST_CACHE=str(cache)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert sum("compiled in" in err for _, err in results) == 1  # one of them built, the others waited
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 120  # seconds of all processors, whatever else runs; 30 to 40 in 2026
    return cache


def test_later_starts_do_not_build(fresh_cache: Path) -> None:
    code = (
        "import time, torch; from occfast.native import loader; t = time.perf_counter(); loader.module('cpu'); "
        "print(time.perf_counter() - t)"
    )
    seconds = []
    for _ in range(3):
        done = python(code, OCCFAST_CACHE=str(fresh_cache))
        assert done.returncode == 0 and "compiling" not in done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.2


def test_import_is_quick_and_compiles_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import torch; u = time.perf_counter(); "
        "before = set(sys.modules); import occfast; v = time.perf_counter(); "
        "named = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names); "
        "print((v - u) / (u - t), *sorted(named)); assert 'torch.utils.cpp_extension' not in sys.modules"
    )
    runs = [python(code, OCCFAST_CACHE=str(tmp_path / "none")) for _ in range(3)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert {tuple(run.stdout.split()[1:]) for run in runs} == {("numpy", "occfast")}  # more of numpy; nothing else yet
    assert min(float(run.stdout.split()[0]) for run in runs) < 0.3  # of PyTorch's own; 0.11 on two cores
    assert not (tmp_path / "none").exists()


def test_changed_flags_do_not_reuse_a_module(fresh_cache: Path) -> None:
    code = "from occfast.native import loader; print(loader.cached_path('cpu'))"
    assert python(code, OCCFAST_CACHE=str(fresh_cache)).stdout.strip().endswith(".so")
    assert python(code, OCCFAST_CACHE=str(fresh_cache), OCCFAST_MARCH="x86-64-v2").stdout.strip() == "None"


def test_a_module_is_used_after_its_compiler_is_gone_or_replaced(fresh_cache: Path, tmp_path: Path) -> None:
    """Without a compiler a module of any counts; another version of a compiler builds its own."""
    code = "from occfast.native import loader; print(loader.cached_path('cpu'))"
    assert python(code, OCCFAST_CACHE=str(fresh_cache), PATH="/nowhere", CXX="").stdout.strip().endswith(".so")
    done = python(USE, OCCFAST_CACHE=str(fresh_cache), PATH="/nowhere", CXX="")
    assert done.returncode == 0 and "compiling" not in done.stderr, done.stderr
    newer = tmp_path / "g++"
    newer.write_text("#!/bin/sh\necho 'g++ 99.1.0'\n")
    newer.chmod(0o755)
    assert python(code, OCCFAST_CACHE=str(fresh_cache), CXX=str(newer)).stdout.strip() == "None"


def test_a_module_does_not_depend_on_pytorch(fresh_cache: Path) -> None:
    """The same binary serves every version of PyTorch: the key leaves it out, and nothing of it is linked."""
    [library] = fresh_cache.glob("cpu-*/occfast_cpu.so")
    assert "torch" not in json.loads((library.parent / "finished").read_text())
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not on the path")
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in needed and "torch" not in needed and "libc10" not in needed


def test_without_a_compiler_the_error_names_it(tmp_path: Path) -> None:
    done = python(USE, OCCFAST_CACHE=str(tmp_path), PATH="/nowhere")
    assert "NativeUnavailable" in done.stderr and "no C++ compiler" in done.stderr
    assert "OCCFAST_BACKEND=reference" in done.stderr
    done = python(USE, OCCFAST_CACHE=str(tmp_path), PATH="/nowhere", OCCFAST_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()  # nobody can make a folder below a file
    done = python(USE, OCCFAST_CACHE=str(blocked / "cache"))
    assert "NativeUnavailable" in done.stderr and str(blocked) in done.stderr and "OCCFAST_CACHE" in done.stderr


@pytest.mark.parametrize("content", ["", "cut", "changed"])
def test_a_damaged_module_is_built_again(fresh_cache: Path, tmp_path: Path, content: str) -> None:
    """An empty or cut library must neither raise ImportError nor end the process with a bus error."""
    copy = tmp_path / "cache"
    shutil.copytree(fresh_cache, copy)
    [library] = copy.glob("cpu-*/occfast_cpu.so")
    whole = library.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    library.write_bytes({"": b"", "cut": whole[: len(whole) // 2], "changed": bytes(damaged)}[content])
    code = "from occfast.native import loader; print(loader.is_ready('cpu'), loader.cached_path('cpu'))"
    assert python(code, OCCFAST_CACHE=str(copy)).stdout.split() == ["False", "None"]
    if content == "cut":  # one build is enough
        done = python(USE, OCCFAST_CACHE=str(copy))
        assert done.returncode == 0 and "compiled in" in done.stderr, done.stderr
        assert python(code, OCCFAST_CACHE=str(copy)).stdout.startswith("True")


def test_a_module_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "occfast_cpu.so").write_bytes(b"not a library")
    code = f"from pathlib import Path; from occfast.native import loader; loader._import('cpu', Path({str(tmp_path)!r}) / 'occfast_cpu.so')"
    done = python(code)
    assert "NativeUnavailable: the native module" in done.stderr and "run `occfast build`" in done.stderr


def compiler_folder(tmp_path: Path) -> str:
    """Return a path with g++ and its helper programs, but without c++ and ninja."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("g++", "as", "ld"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the path")
def test_a_compiler_by_another_name_than_cxx_builds(tmp_path: Path) -> None:
    done = python(USE, OCCFAST_CACHE=str(tmp_path / "cache"), PATH=compiler_folder(tmp_path), CXX=" ")
    assert done.returncode == 0, done.stderr


def test_a_program_that_is_no_compiler_is_named(tmp_path: Path) -> None:
    done = python(USE, OCCFAST_CACHE=str(tmp_path), CXX="/bin/false")
    assert "NativeUnavailable: the cpu kernels did not compile with /bin/false" in done.stderr, done.stderr
    done = python(USE, OCCFAST_CACHE=str(tmp_path), CXX="/no/such/program -O2")
    assert "CXX=/no/such/program -O2 is not a program on the path" in done.stderr, done.stderr


def test_a_user_without_a_home_folder_is_told_what_to_set() -> None:
    code = "import os, pwd; pwd.getpwuid = lambda uid: {}[uid]; os.environ.pop('HOME', None); " + USE
    done = python(code, XDG_CACHE_HOME="")
    assert "NativeUnavailable: no folder for the cache of the native modules" in done.stderr, done.stderr
    assert "set OCCFAST_CACHE" in done.stderr
    code = code.replace(
        USE, "from occfast.native import doctor; print([f for f in doctor.examine() if f.name == 'cache'])"
    )
    done = python(code, XDG_CACHE_HOME="")
    assert done.returncode == 0 and "set OCCFAST_CACHE" in done.stdout, done.stderr


def test_sources_that_do_not_compile_are_reported(tmp_path: Path) -> None:
    done = python(USE, OCCFAST_CACHE=str(tmp_path), OCCFAST_MARCH="no-such-machine")
    assert "NativeUnavailable" in done.stderr and "did not compile" in done.stderr
    assert "no-such-machine" in done.stderr  # the compiler's own words


def test_an_unknown_backend_is_refused() -> None:
    done = python(USE, OCCFAST_BACKEND="fast")
    assert "OCCFAST_BACKEND: expected 'native' or 'reference', got 'fast'" in done.stderr


def test_doctor_and_build(fresh_cache: Path, tmp_path: Path) -> None:
    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "occfast", *arguments],
            env=environment(**changes),
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
        )

    done = run("doctor", "--json", OCCFAST_CACHE=str(fresh_cache))
    assert done.returncode == 0, done.stderr
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert found["CPU kernels"]["found"] == "compiled"
    assert {"prebuilt kernels", "C++ compiler", "PyTorch", "nvcc", "GPU", "cache"} <= found.keys()
    broken = run("doctor", OCCFAST_CACHE=str(tmp_path), PATH="/nowhere")
    assert broken.returncode == 1
    assert "apt-get install g++" in broken.stdout and "Traceback" not in broken.stderr
    built = run("build", OCCFAST_CACHE=str(fresh_cache))
    assert built.returncode == 0 and "was ready" in built.stdout
    missing = run("build", OCCFAST_CACHE=str(tmp_path), PATH="/nowhere")
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1 and missing.stderr.startswith("occfast: the cpu kernels can't be built")
