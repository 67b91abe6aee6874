"""A sweep that is interrupted or killed at any moment and resumed gives the same map to the bit."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import occfast
from occfast.sweep import checkpoint as checkpoints

ROOT = Path(__file__).resolve().parents[2]


class Interrupted(Exception):
    pass


def stop_after(count):
    def report(done, total):
        if done >= count:
            raise Interrupted

    return report


def same(a, b):
    return (
        np.array_equal(a.values, b.values)
        and np.array_equal(a.standard_error, b.standard_error)
        and np.array_equal(a.per_image, b.per_image)
        and np.array_equal(a.mean_image, b.mean_image)
        and (a.n_images, a.n_skipped, a.n_evaluations) == (b.n_images, b.n_skipped, b.n_evaluations)
    )


@pytest.fixture
def many(tiny_net):
    """More images than a block holds, some of them with a wrong label."""
    images = torch.rand(150, 1, 9, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = tiny_net(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % 5
    return images, labels


@pytest.mark.parametrize("score", ["error", "score_drop"])
@pytest.mark.parametrize("stops", [[1], [700], [3960, 3970], [2000, 5000, 8000], [9216]])
def test_interrupted_and_resumed_equals_uninterrupted(tiny_net, many, tmp_path, stops, score):
    images, labels = many
    arguments = dict(occluder=(4, 3), batch_size=37, score=score, skip_misclassified=True)
    whole = occfast.occlusion_map(tiny_net, images, labels, progress=False, **arguments)
    assert whole.n_evaluations == 128 * 72
    path = tmp_path / "sweep.npz"
    for count in stops:
        with pytest.raises(Interrupted):
            occfast.occlusion_map(tiny_net, images, labels, progress=stop_after(count), checkpoint=path, **arguments)
        assert path.exists()
    done = []
    resumed = occfast.occlusion_map(
        tiny_net, images, labels, checkpoint=path, progress=lambda d, t: done.append(d), **arguments
    )
    assert same(resumed, whole)
    assert not path.exists()
    assert len(done) < 0.99 * (9216 / 37) or stops == [1]  # it did not start anew


def test_killed_at_random_moments(tmp_path):
    """SIGKILL, no clean-up at all; the checkpoint is written after every batch to be hit while writing."""
    program = f"""
import sys, torch, occfast
from occfast.sweep import checkpoint
sys.path.insert(0, {str(ROOT)!r})
from tests.conftest import TinyNet
checkpoint.Checkpoint.due = lambda self: True
torch.manual_seed(0)
net = TinyNet().eval()
with torch.no_grad():
    for p in net.parameters():
        p.mul_(3)
images = torch.rand(70, 1, 12, 12)
with torch.no_grad():
    labels = net(images).argmax(1)
print("ready", flush=True)
m = occfast.occlusion_map(net, images, labels, (4, 4), batch_size=31, progress=False, checkpoint=sys.argv[1])
m.save(sys.argv[2])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(name):
        command = [sys.executable, "-c", program, str(tmp_path / f"{name}.check.npz"), str(tmp_path / f"{name}.npz")]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    assert start("whole").wait(timeout=300) == 0
    killed = 0
    generator = np.random.default_rng(0)
    for _ in range(5):
        process = start("killed")
        try:
            process.wait(timeout=float(generator.uniform(0.05, 0.4)))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    else:
        assert start("killed").wait(timeout=300) == 0
    assert killed >= 2
    whole, resumed = (occfast.OcclusionMap.load(tmp_path / f"{name}.npz") for name in ("whole", "killed"))
    assert same(whole, resumed)
    leftovers = [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert len(leftovers) <= killed  # a file under way when the process died; never the checkpoint itself


def test_a_chosen_batch_size_is_kept(tiny_net, many, tmp_path):
    images, labels = many
    path = tmp_path / "sweep.npz"
    with pytest.raises(Interrupted):
        occfast.occlusion_map(tiny_net, images, labels, (4, 3), progress=stop_after(3000), checkpoint=path)
    state = checkpoints.read_npz(path)
    chosen = json.loads(str(state["counts"]))["batch_size"]
    resumed = occfast.occlusion_map(tiny_net, images, labels, (4, 3), progress=False, checkpoint=path)
    assert resumed.settings["batch size"] == chosen


def test_other_settings_weights_or_data_are_refused(tiny_net, many, tmp_path):
    images, labels = many
    path = tmp_path / "sweep.npz"
    with pytest.raises(Interrupted):
        occfast.occlusion_map(
            tiny_net, images, labels, (4, 3), progress=stop_after(6000), checkpoint=path, batch_size=50
        )
    kept = path.read_bytes()

    def resume(net=tiny_net, images=images, box=(4, 3)):
        occfast.occlusion_map(net, images, labels, box, progress=False, checkpoint=path, batch_size=50)

    with pytest.raises(ValueError, match=r"of another sweep: occluder \[4, 3\] there and \[3, 3\] here"):
        resume(box=(3, 3))
    changed = images.clone()
    changed[0, 0, 0, 0] += 0.5
    with pytest.raises(ValueError, match="checkpoint: the images or labels are not those"):
        resume(images=changed)
    other = type(tiny_net)().eval()
    with pytest.raises(ValueError, match="of another sweep: weights"):
        resume(net=other)
    assert path.read_bytes() == kept  # what was earned is still there
    resume()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(tiny_net, many, tmp_path, keep):
    images, labels = many
    path = tmp_path / "sweep.npz"
    with pytest.raises(Interrupted):
        occfast.occlusion_map(tiny_net, images, labels, (4, 3), progress=stop_after(3000), checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(occfast.DataError, match=r"sweep\.npz: "):
        occfast.occlusion_map(tiny_net, images, labels, (4, 3), progress=False, checkpoint=path)


class FullDisk:
    """Files can't grow beyond some bytes while this is on: what a full disk does, for one process."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.limit[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_a_full_disk_costs_the_checkpoint_and_not_the_sweep(tiny_net, many, tmp_path, monkeypatch):
    images, labels = many
    monkeypatch.setattr(checkpoints.Checkpoint, "due", lambda self: True)
    path = tmp_path / "sweep.npz"
    with FullDisk(100), pytest.warns(RuntimeWarning, match=r"checkpoint: .*could not be written.*the sweep goes on"):
        m = occfast.occlusion_map(tiny_net, images, labels, (4, 3), progress=False, checkpoint=path, batch_size=500)
    assert m.n_images == 128
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_saving_keeps_the_old_file(tiny_net, faces, labels, tmp_path):
    m = occfast.occlusion_map(tiny_net, faces, labels, (5, 4), progress=False)
    path = tmp_path / "map.npz"
    m.save(path)
    old = path.read_bytes()
    with FullDisk(200), pytest.raises(OSError, match=r"map\.npz could not be written: .*its old content is kept"):
        m.save(path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["map.npz"]
    assert same(occfast.OcclusionMap.load(path), m)


def test_checkpoints_are_written_while_it_runs(tiny_net, many, tmp_path, monkeypatch):
    images, labels = many
    path = tmp_path / "sweep.npz"
    seen = []
    monkeypatch.setattr(checkpoints.Checkpoint, "due", lambda self: time.monotonic() - self._last > 0.02)
    occfast.occlusion_map(
        tiny_net,
        images,
        labels,
        (4, 3),
        checkpoint=path,
        batch_size=20,
        progress=lambda d, t: seen.append(path.exists()),
    )
    assert any(seen)
