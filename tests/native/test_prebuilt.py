"""Which module of a wheel fits: variants, architectures, and what was made for another system."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

import occfast
from occfast import NativeUnavailable
from occfast.native import build, compile, doctor, loader, prebuilt

MACHINE = "x86_64"
LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that lays out the modules of a wheel and sets what the processor can run."""

    def lay(variants=LEVELS, runnable=LEVELS, cuda: dict[str, Any] | None = None, **stated: Any) -> Path:
        modules = [{"backend": "cpu", "variant": name, "file": f"occfast_cpu.{name}.so"} for name in variants]
        if cuda:
            modules.append({"backend": "cuda", "file": "occfast_cuda.so", **cuda})
        for module in modules:
            (tmp_path / module["file"]).write_bytes(module["file"].encode())
            module["sha256"] = hashlib.sha256(module["file"].encode()).hexdigest()
        fields = {"python": build.python_abi(), "machine": MACHINE, "sources": build.source_digest(), **stated}
        (tmp_path / "modules.json").write_text(json.dumps({**fields, "modules": modules}))
        monkeypatch.setattr(prebuilt, "runnable_variants", lambda: runnable)
        return tmp_path

    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    monkeypatch.setattr(loader, "_modules", {})  # none is loaded yet
    monkeypatch.setattr(platform, "machine", lambda: MACHINE)
    monkeypatch.delenv("OCCFAST_MARCH", raising=False)
    return lay


def chosen(backend: build.Backend = "cpu") -> str | None:
    path = prebuilt.find(backend)
    return path.name if path else None


def test_the_best_variant_that_the_processor_can_run_is_chosen(wheel) -> None:
    wheel()
    assert chosen() == "occfast_cpu.x86-64-v4.so" and loader.is_ready("cpu")
    wheel(runnable=LEVELS[1:])
    assert chosen() == "occfast_cpu.x86-64-v3.so"
    wheel(variants=LEVELS[2:])
    assert chosen() == "occfast_cpu.x86-64-v2.so"
    wheel(variants=LEVELS[:2], runnable=LEVELS[2:])
    assert prebuilt.choose("cpu") == (None, "this processor can run x86-64-v2")
    wheel(runnable=())
    assert prebuilt.choose("cpu") == (None, "this processor can run none")


def test_a_variant_can_be_forced_unless_the_processor_cannot_run_it(wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(runnable=LEVELS[1:])
    monkeypatch.setenv("OCCFAST_MARCH", "x86-64-v2")
    assert chosen() == "occfast_cpu.x86-64-v2.so"
    monkeypatch.setenv("OCCFAST_MARCH", "x86-64-v4")
    message = r"OCCFAST_MARCH: expected a variant that this processor can run \(x86-64-v3, x86-64-v2\), got 'x86-64-v4'"
    with pytest.raises(NativeUnavailable, match=message):
        prebuilt.find("cpu")
    refused = [finding for finding in doctor.examine() if finding.status == "missing"]
    assert [finding.name for finding in refused] == ["CPU kernels"] and "OCCFAST_MARCH" in refused[0].found
    assert occfast.backend()["cpu"] is None and "OCCFAST_MARCH: expected" in str(occfast.backend()["reason"])
    for value in ("native", "znver4"):
        monkeypatch.setenv("OCCFAST_MARCH", value)
        assert prebuilt.choose("cpu") == (None, f"OCCFAST_MARCH={value} asks for a build")
    monkeypatch.setenv("OCCFAST_MARCH", "")
    assert chosen() == "occfast_cpu.x86-64-v3.so"


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({"machine": "aarch64"}, "made for aarch64"),
        ({"python": "cpython-39-x86_64-linux-gnu"}, "made for cpython-39-x86_64-linux-gnu, and this is"),
        ({"sources": "0" * 64}, "made from other sources"),
    ],
)
def test_modules_for_another_system_are_not_used(wheel, stated: dict[str, str], reason: str) -> None:
    wheel(**stated)
    path, why = prebuilt.choose("cpu")
    assert path is None and why.startswith(reason)


def test_the_reports_name_the_variant(wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(runnable=LEVELS[1:])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("OCCFAST_CACHE", "/dev/null/none")
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["CPU kernels"].status == "ok" and found["CPU kernels"].found == "prebuilt for x86-64-v3"
    assert found["C++ compiler"].status == "absent" and "not needed" in found["C++ compiler"].found
    assert not [finding for finding in found.values() if finding.status == "missing"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"modules": 1}', '{"modules": [{}]}', "\0", "[" * 100_000])
def test_a_damaged_description_is_reported(wheel, content: str) -> None:
    (wheel() / "modules.json").write_text(content)
    with pytest.warns(RuntimeWarning, match=r"prebuilt modules in .* are damaged .* reinstall occfast"):
        assert prebuilt.find("cpu") is None


@pytest.mark.parametrize("change", ["cut", "missing"])
def test_a_damaged_module_is_reported(wheel, change: str) -> None:
    path = wheel() / "occfast_cpu.x86-64-v4.so"
    path.write_bytes(b"") if change == "cut" else path.unlink()
    with pytest.warns(RuntimeWarning, match=r"are damaged .*occfast_cpu\.x86-64-v4\.so"):
        assert prebuilt.find("cpu") is None


# -- CUDA: compatible, not equal -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "fits"),
    [
        ([], True),  # built and looked for where no GPU is visible
        ([(8, 0)], True),
        ([(8, 6)], True),  # machine code of the same major capability
        ([(9, 0)], True),
        ([(10, 0)], True),  # PTX of the newest
        ([(12, 1)], True),
        ([(7, 5)], False),
        ([(9, 0), (7, 5)], False),
    ],
)
def test_a_cuda_module_fits_the_gpus_that_it_can_run_on(wheel, monkeypatch, gpus, fits: bool) -> None:
    wheel(cuda={"architectures": ["80", "90"], "nvcc": "Cuda compilation tools, release 13.0, V13.0.48"})
    monkeypatch.setattr(torch.version, "cuda", "13.1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda k: gpus[k])
    monkeypatch.setenv("OCCFAST_MARCH", "x86-64-v2")  # of no concern
    path, why = prebuilt.choose("cuda")
    assert (path is not None) == fits and ("sm_75" in why) == (not fits)


@pytest.mark.parametrize(
    ("cuda", "why"), [(None, "no CUDA"), ("12.8", r"made with CUDA 13, and PyTorch has 12.8"), ("13.9", "sm_80")]
)
def test_a_cuda_module_needs_the_same_major_version_of_cuda(wheel, monkeypatch, cuda: str | None, why: str) -> None:
    wheel(cuda={"architectures": ["80"], "nvcc": "Cuda compilation tools, release 13.0, V13.0.48"})
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert why in prebuilt.choose("cuda")[1]
    assert (prebuilt.find("cuda") is not None) == (cuda == "13.9")


def test_the_architectures_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCCFAST_CUDA_ARCHITECTURES", "80, 90")
    assert build.cuda_architectures() == ("80", "90")
    for wrong in ("9.0", "sm_90", ",", "90a"):
        monkeypatch.setenv("OCCFAST_CUDA_ARCHITECTURES", wrong)
        with pytest.raises(ValueError, match="OCCFAST_CUDA_ARCHITECTURES: expected numbers such as 90,100, got"):
            build.cuda_architectures()


def _compiler(folder: Path, name: str, text: str) -> Path:
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    return program


def test_the_versions_of_the_compilers_are_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(_compiler(tmp_path, "g++", "g++ (Debian) 12.2.0")))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    _compiler(tmp_path, "nvcc", "Cuda compilation tools, release 13.0, V13.0.48")
    assert build.key("cpu").compilers == "g++ (Debian) 12.2.0"
    assert build.key("cuda").compilers == "g++ (Debian) 12.2.0; Cuda compilation tools, release 13.0, V13.0.48"
    build.version_of.cache_clear()
    before = build.key("cuda").digest()
    _compiler(tmp_path, "nvcc", "Cuda compilation tools, release 13.1, V13.1.1")
    build.version_of.cache_clear()
    assert build.key("cuda").digest() != before
    build.version_of.cache_clear()


@pytest.mark.parametrize(("release", "fails"), [("12.8", True), ("13.0", False)])
def test_another_major_version_of_cuda_is_refused(tmp_path, monkeypatch, release: str, fails: bool) -> None:
    """By PyTorch's own check, on the nvcc that is used."""
    _compiler(tmp_path, "nvcc", f"Cuda compilation tools, release {release}, V{release}.1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    if not fails:
        compile.check_cuda_version()
        return
    with pytest.raises(compile.CompileError, match=r"12\.8.*13\.0"):
        compile.check_cuda_version()
