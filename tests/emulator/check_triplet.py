"""The emulated CUDA kernels of the batch triplet loss against the CPU module and the PyTorch twin.

Run by ``tests/losses/test_cuda.py`` in a process that watches every allocation.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from occfast.native import loader, ops
from occfast.native.enums import Slot


def _load():
    spec = importlib.util.spec_from_file_location("occfast_emulated", Path(os.environ["OCCFAST_EMULATED"]))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EMULATED, NATIVE = _load(), loader.module("cpu")


class Device:
    """The emulated module with the matrix product of the CPU, since a GPU uses PyTorch's library."""

    MatrixProduct = NATIVE.MatrixProduct

    @staticmethod
    def multiply(product, context):
        NATIVE.multiply(product, NATIVE.ExecContext(threads=1, stream=None))

    def __getattr__(self, name):
        return getattr(EMULATED, name)


@contextlib.contextmanager
def running(backend, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("OCCFAST_BACKEND", "reference" if backend == "reference" else "native")
        patch.setitem(loader._modules, "cpu", Device() if backend == "emulated" else NATIVE)
        yield


def batch(kind, dtype):
    random = torch.Generator().manual_seed(2)
    if kind == "many":  # positives, more than a warp has lanes
        return torch.randn(150, 5, generator=random, dtype=dtype), (torch.arange(150) % 15 == 0).long()
    if kind == "tied":
        return torch.randint(0, 3, (40, 4), generator=random).to(dtype), torch.arange(40) % 7
    if kind == "lonely":
        return torch.randn(37, 6, generator=random, dtype=dtype), torch.arange(37)
    if kind == "one class":
        return torch.randn(20, 6, generator=random, dtype=dtype), torch.zeros(20, dtype=torch.int64)
    if kind == "zeros":
        x = torch.randn(33, 5, generator=random, dtype=dtype)
        x[::4] = 0
        return x, torch.arange(33) // 3
    if kind == "empty":
        return torch.randn(0, 4, dtype=dtype), torch.zeros(0, dtype=torch.int64)
    return F.normalize(torch.randn(35, 5, generator=random, dtype=dtype)), torch.arange(35) // 5


KINDS = ("unit", "many", "tied", "lonely", "one class", "empty")
# If distances tie exactly, the order of a sum decides the mined triplets. Zero vectors are compared without mining.
CASES = [*((kind, mining) for kind in KINDS for mining in ops.MININGS), ("zeros", "all")]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize(("kind", "mining"), CASES)
def test_triplets(kind, mining, dtype, monkeypatch):
    x, y = batch(kind, dtype)
    z, labels = batch("unit", dtype)
    sets = [(None, None)]
    if z.shape[1] == x.shape[1]:
        sets.append((z[:33], labels[:33] % 4))
    # The emulator runs one thread at a time, so other distances are tested only where they matter.
    for distance in ops.DISTANCES.values() if kind == "zeros" else (0,):
        at = F.normalize(x) if distance == ops.DISTANCES["cosine"] else x
        for hinge in (False, True) if mining in ("all", "hardest") else (False,):
            for refs in sets:
                arguments = (
                    at,
                    y,
                    *refs,
                    distance,
                    ops.MININGS[mining],
                    hinge,
                    0.5,
                    0.7,
                    9,
                    4,
                    True,
                    16,
                    0.0,
                    True,
                    False,
                    False,
                )
                results = []
                for backend in ("emulated", "native", "reference"):
                    with running(backend, monkeypatch):
                        results.append(ops.triplet_loss(*arguments))
                emulated, native, twin = results
                tight = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-11}
                if kind == "zeros":
                    # Distances of exactly 1 tie with each other and with the edges of bins: the last bit, which
                    # depends on the order of a sum, decides whether a triplet is hard and which bin a pair is in.
                    for result in results:
                        result[1][Slot.HARD_TRIPLETS] = 0
                        result[3][:, 0], result[3][:, 1:] = result[3].sum(1), 0
                for name, other in (("native", native), ("twin", twin)):
                    for k, (got, want) in enumerate(zip(emulated, other, strict=True)):
                        assert got.shape == want.shape, (name, k)
                        torch.testing.assert_close(got, want, **tight, msg=lambda t, k=k, n=name: f"{n} {k}: {t}")
                # Counts are integers: equal to the last one, unless float32 sums differ at a threshold.
                if dtype == torch.float64 or kind == "tied":
                    counts = [
                        Slot.CANDIDATES,
                        Slot.VIOLATING_TRIPLETS,
                        Slot.HARD_TRIPLETS,
                        Slot.MINED_POSITIVE,
                        Slot.ACTIVE_POSITIVE,
                    ]
                    assert torch.equal(emulated[1][counts], native[1][counts])
                    assert torch.equal(emulated[3], native[3])


@pytest.mark.parametrize("mining", ops.MININGS)
def test_more_positives_than_a_block_holds(mining, monkeypatch):
    """A block holds 256 at a time. Integers, so that distances tie."""
    random = torch.Generator().manual_seed(3)
    x, references = (torch.randint(-2, 3, (n, 3), generator=random).double() for n in (3, 320))
    labels = (torch.arange(320) % 32 == 0).long()
    for hinge in (False, True) if mining == "all" else (False,):
        shared = (0, ops.MININGS[mining], hinge, 1.5, 0.7, 9, 4, True, 16, 0.0, True, False, False)
        results = []
        for backend in ("emulated", "native"):
            with running(backend, monkeypatch):
                results.append(ops.triplet_loss(x, torch.tensor([0, 1, 0]), references, labels, *shared))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
        counts = [
            Slot.CANDIDATES,
            Slot.VIOLATING_TRIPLETS,
            Slot.HARD_TRIPLETS,
            Slot.MINED_POSITIVE,
            Slot.ACTIVE_NEGATIVE,
        ]
        assert torch.equal(results[0][1][counts], results[1][1][counts])
        assert results[0][1][Slot.CANDIDATES] == 2 * 310 * 10 + 10 * 310


@pytest.mark.parametrize("mining", ops.MININGS)
@pytest.mark.parametrize("candidates", ("own", "others", "own and others"))
def test_linear_memory(mining, candidates, monkeypatch):
    """Tiles of 64 anchors: 64 and 6."""
    monkeypatch.setattr("occfast.native.ops.triplet_passes._TILE_BYTES", 1)
    random = torch.Generator().manual_seed(5)
    x, y = torch.randn(70, 4, generator=random, dtype=torch.float64), torch.arange(70) % 12
    leading = candidates == "own and others"
    refs = (x[:40].flip(0), y[:40].flip(0))
    if candidates != "others":
        refs = (torch.cat((x, refs[0])), torch.cat((y, refs[1]))) if leading else (None, None)
    arguments = (x, y, *refs, 0, ops.MININGS[mining], False, 0.5, 0.7, 9, 4, True, 16, 0.0, True)
    with running("emulated", monkeypatch):
        linear, quadratic = (ops.triplet_loss(*arguments, memory, leading) for memory in (True, False))
    with running("native", monkeypatch):
        native = ops.triplet_loss(*arguments, True, leading)
    for got, want in zip(linear[:7], quadratic[:7], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    for got, want in zip(linear, native, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_products_are_left_to_the_libraries_of_pytorch():
    assert not hasattr(EMULATED, "multiply") and not hasattr(EMULATED, "convolution_block")
