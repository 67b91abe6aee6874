"""Several processes give the map of one; a lost one ends the run with a clear error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

import occfast
from occfast.errors import ProcessLost
from occfast.sweep.processes import Processes
from tests.conftest import TinyNet
from tests.networks import Yi

ROOT = Path(__file__).resolve().parents[2]


def network():
    torch.manual_seed(0)
    net = TinyNet().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    return net


def pictures(count):
    images = torch.rand(count, 1, 24, 20, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = network()(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % 5
    return images, labels


# A dense sweep's batch size is fixed, since one process would choose it by measuring, and sums depend on it in their
# last bits. An estimate of this small network is dense too.
CASES = {
    "dense": dict(count=10, method="dense", batch_size=13),
    "dense, one image": dict(count=1, method="dense", skip_misclassified=False),
    "incremental": dict(count=70, method="incremental", stride=2),
    "incremental, one image": dict(count=1, method="incremental", score="score_drop", skip_misclassified=False),
    "adaptive": dict(count=20, method=occfast.Adaptive(spacing=4)),
    "adaptive, one image": dict(
        count=1, method=occfast.Adaptive(tolerance=2.0), score="score_drop", skip_misclassified=False
    ),
    "sampled": dict(count=90, method="sampled", score="score_drop", batch_size=13),
    "sampled, few images": dict(count=3, method="sampled", skip_misclassified=False, batch_size=13),
}


def maps():
    made = {}
    for name, case in CASES.items():
        images, labels = pictures(case["count"])
        rest = {key: value for key, value in case.items() if key != "count"}
        made[name] = occfast.occlusion_map(network(), images, labels, (5, 4), progress=False, **rest)
    # A network of convolutions, whose sums depend on the batch in their last bits.
    torch.manual_seed(1)
    deep = Yi(7, width=16, size=32).eval()
    images = torch.rand(3, 1, 32, 32)
    made["deep"] = occfast.occlusion_map(
        deep,
        images,
        torch.zeros(3, dtype=torch.long),
        (8, 8),
        stride=2,
        method="incremental",
        score="score_drop",
        progress=False,
        skip_misclassified=False,
    )
    return made


def join(rank, ranks, folder, seconds=60):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=seconds),
    )


def work(rank, ranks, folder):
    join(rank, ranks, folder)
    for name, made in maps().items():
        made.save(Path(folder) / f"{name} {rank}.npz")
    alone = occfast.occlusion_map(network(), *pictures(2), (5, 4), progress=False, batch_size=8, group=False)
    alone.save(Path(folder) / f"alone {rank}.npz")
    with pytest.raises(ValueError, match=r"occluder: expected the same in all processes, got \[5, \d\] in process"):
        occfast.occlusion_map(network(), *pictures(2), (5, 4 + rank), progress=False)
    net = network()
    with pytest.raises(ValueError, match=r"model: expected the same outputs in all processes, process \d has others"):
        occfast.occlusion_map(lambda x: net(x) + 0.1 * rank, *pictures(2), (5, 4), progress=False)
    # One process's mistake ends all of them.
    images, labels = pictures(4)
    if rank == ranks - 1:
        images[2] = torch.nan
    expected = ValueError if rank == ranks - 1 else ProcessLost
    with pytest.raises(expected, match=r"expected finite pixels|gave up: ValueError: images: expected finite pixels"):
        occfast.occlusion_map(network(), images, labels, (5, 4), progress=False)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_several_give_the_map_of_one(ranks, tmp_path):
    torch.set_num_threads(1)
    expected = maps()
    multiprocessing.spawn(work, args=(ranks, str(tmp_path)), nprocs=ranks)
    for name, one in expected.items():
        for rank in range(ranks):
            m = occfast.OcclusionMap.load(tmp_path / f"{name} {rank}.npz")
            assert np.array_equal(m.values, one.values, equal_nan=True), name
            assert np.array_equal(m.standard_error, one.standard_error, equal_nan=True), name
            assert (m.per_image is None) == (one.per_image is None)
            assert one.per_image is None or np.array_equal(m.per_image, one.per_image)
            assert (m.n_images, m.n_evaluations, m.method) == (one.n_images, one.n_evaluations, one.method)
            assert repr(m.estimate) == repr(one.estimate)  # NaN equals NaN here


def test_a_share_is_contiguous_and_whole():
    group = Processes(False)
    assert not group and list(group.mine(5)) == [0, 1, 2, 3, 4]
    for size in (1, 2, 3, 7):
        group.size = size
        shares = []
        for group.rank in range(size):
            shares += list(group.mine(10))
        assert shares == list(range(10))


def test_a_group_needs_torch_distributed(tiny_net, faces, labels):
    with pytest.raises(ValueError, match=r"group: expected None or False where torch.distributed is not initialized"):
        occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False, group=object())


PROGRAM = """
import sys, time, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.sweep import test_processes as t
import occfast
from occfast.sweep import checkpoint
rank, ranks, folder = int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
if ranks > 1:
    t.join(rank, ranks, str(folder / sys.argv[5]))
checkpoint.Checkpoint.due = lambda self: True
images, labels = t.pictures(60)
def report(done, total):
    if rank == 0 and done > 4000 and ranks > 1:
        (folder / "under way").touch()
        time.sleep(0.2)
try:
    m = occfast.occlusion_map(t.network(), images, labels, (5, 4), progress=report, method=sys.argv[6], batch_size=64,
                              checkpoint=folder / "sweep.npz")
    if rank == 0:
        m.save(folder / f"result {sys.argv[5]}.npz")
except occfast.ProcessLost as error:
    print(f"lost: {error}", flush=True)
    import os
    os._exit(1)
"""


def start(tmp_path, ranks, name, method):
    (tmp_path / name).mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(ROOT), str(rank), str(ranks), str(tmp_path), name, method],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("ranks, then", [(2, 1), (3, 2)])
def test_one_killed_and_resumed_by_another_number(ranks, then, tmp_path):
    for method in ("dense",):
        running = start(tmp_path, ranks, "killed", method)
        deadline = time.monotonic() + 120
        while not (tmp_path / "under way").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        running[-1].send_signal(signal.SIGKILL)
        for process in running[:-1]:
            out, _ = process.communicate(timeout=60)
            assert process.returncode == 1
            assert "lost another one" in out and "resumed by any number of processes" in out and out.count("\n") == 1
        running[-1].wait()
        assert (tmp_path / "sweep.npz").exists()
        for process in start(tmp_path, then, "resumed", method):
            assert process.wait(timeout=120) == 0
        assert not (tmp_path / "sweep.npz").exists()
        for process in start(tmp_path, 1, "whole", method):
            assert process.wait(timeout=120) == 0
        resumed, whole = (occfast.OcclusionMap.load(tmp_path / f"result {name}.npz") for name in ("resumed", "whole"))
        assert np.array_equal(resumed.values, whole.values) and np.array_equal(resumed.per_image, whole.per_image)
        assert resumed.n_evaluations == whole.n_evaluations
