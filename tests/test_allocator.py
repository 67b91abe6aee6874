"""Freed memory is kept if the C library has a setting for it."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from occfast.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():  # 48 MiB in blocks of different sizes, as activations are
    return sum(float(block[0]) for block in [torch.ones(n << 18) for n in (1, 3, 8, 36)])
for _ in range(5):  # till the heap is as large as it gets
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has the setting")
def test_freed_memory_is_not_faulted_in_again():
    pages = {}
    for way in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
        pages[way] = int(done.stdout)
    assert pages["leave"] > 10 * 48 * 256 / 2  # of 4 KiB, most of them each time (huge pages count once)
    assert pages["keep"] < pages["leave"] / 20
