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
from occfast.sweep.evaluators import runner
from occfast.sweep.evaluators.incremental.evaluator import FUSED
from tests.sweep.test_incremental import make

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
    assert np.array_equal(resumed.image_indices, whole.image_indices)
    assert path.exists()  # until the map is on the disk
    resumed.save(tmp_path / "map.png")
    assert path.exists()
    resumed.save(tmp_path / "map.npz")
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


@pytest.mark.parametrize("chosen", [0, -1])
def test_a_chosen_convolution_is_kept(chosen, tmp_path, monkeypatch):
    """On a GPU the native and PyTorch's convolution are measured; a resumed sweep takes the same, for the same bits."""
    model, images = make("split", torch.float32, 6)
    offered = []

    def choose(dense, candidates, *_):
        offered.append([each.layout for each in candidates])
        return candidates[chosen]

    monkeypatch.setattr(runner, "faster", choose)
    monkeypatch.setattr(runner.Runner, "_chooses", lambda self, images, count: True)
    arguments = (model, images, [0] * 6, 5)
    options = {"stride": 2, "score": "score_drop", "method": "incremental", "memory_limit": "16MiB"}
    path = tmp_path / "sweep.npz"
    whole = occfast.occlusion_map(*arguments, **options, progress=False)
    with pytest.raises(Interrupted):
        occfast.occlusion_map(*arguments, **options, progress=stop_after(400), checkpoint=path)
    resumed = occfast.occlusion_map(*arguments, **options, progress=False, checkpoint=path)
    both = ["channels_last", FUSED]
    assert offered == [both, both, [both[chosen]]]
    assert (resumed.values == whole.values).all() and resumed.settings["layout"] == both[chosen]


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
    """Limit the size of files, as a full disk would, for this process."""

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
    with FullDisk(100), pytest.warns(RuntimeWarning, match=r"checkpoint: .*could not be written.*the sweep continues"):
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


# -- until the map is saved ----------------------------------------------------------------------------


class Counting:
    """A model that counts the images that it sees."""

    def __init__(self, net):
        self.net, self.images = net, 0

    def __call__(self, x):
        self.images += len(x)
        return self.net(x)


@pytest.mark.parametrize("method", ["dense", occfast.Adaptive(check=0.1), occfast.Sampled(tolerance=0.5), "sampled"])
def test_a_finished_sweep_is_kept_until_its_map_is_saved(tiny_net, many, tmp_path, method):
    images, labels = many
    path = tmp_path / "sweep.check"
    model = Counting(tiny_net)
    call = dict(occluder=(4, 3), batch_size=50, method=method, progress=False, checkpoint=path)
    first = occfast.occlusion_map(model, images, labels, **call)
    assert path.exists()  # the process may die here
    model.images = 0
    again = occfast.occlusion_map(model, images, labels, **call)
    assert model.images <= 2  # the fingerprint's; nothing is swept
    assert np.array_equal(first.values, again.values) and np.array_equal(first.standard_error, again.standard_error)
    assert again.estimate == first.estimate and again.n_evaluations == first.n_evaluations
    assert np.array_equal(first.image_indices, again.image_indices) and again.settings == first.settings
    with FullDisk(200), pytest.raises(OSError, match="could not be written"):
        again.save(tmp_path / "map.npz")
    assert path.exists()
    again.save(tmp_path / "map.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["map.npz"]


def test_the_checkpoint_may_be_the_file_of_the_map(tiny_net, many, tmp_path):
    """One file: unfinished work until the map replaces it; then the same call reads the map."""
    images, labels = many
    path = tmp_path / "map.npz"
    call = dict(occluder=(4, 3), batch_size=50, checkpoint=path)
    with pytest.raises(Interrupted):
        occfast.occlusion_map(tiny_net, images, labels, progress=stop_after(3000), **call)
    m = occfast.occlusion_map(tiny_net, images, labels, progress=False, **call)
    m.save(path)
    model = Counting(tiny_net)
    assert same(occfast.OcclusionMap.load(path), m)
    read = occfast.occlusion_map(tiny_net, images, labels, progress=lambda d, t: pytest.fail("it sweeps"), **call)
    assert same(read, m) and read.fingerprint.images == m.fingerprint.images
    for changed in (images.flip(0), images[:100], torch.cat([images, images])):
        with pytest.raises(ValueError, match="checkpoint: the images or labels are not those"):
            occfast.occlusion_map(tiny_net, changed, labels.repeat(2)[: len(changed)], progress=False, **call)
    with pytest.raises(ValueError, match=r"of another sweep: stride \[1, 1\] there and \[2, 2\] here"):
        occfast.occlusion_map(tiny_net, images, labels, progress=False, stride=2, **call)
    with pytest.raises(ValueError, match="of another sweep: weights"):
        occfast.occlusion_map(type(tiny_net)().eval(), images, labels, progress=False, **call)
    assert same(occfast.OcclusionMap.load(path), m)
    anew = occfast.occlusion_map(tiny_net, images, labels, progress=False, resume=False, stride=2, **call)
    anew.save(path)
    assert occfast.OcclusionMap.load(path).grid.stride == (2, 2)
    plain = occfast.occlusion_map(tiny_net, images, labels, (4, 3), batch_size=50, progress=False)
    plain.save(path)
    with pytest.raises(ValueError, match="computed without a checkpoint"):
        occfast.occlusion_map(model, images, labels, progress=False, **call)


def test_resume_false_starts_anew(tiny_net, many, tmp_path):
    images, labels = many
    path = tmp_path / "sweep.npz"
    call = dict(occluder=(4, 3), batch_size=50, checkpoint=path)
    with pytest.raises(Interrupted):
        occfast.occlusion_map(tiny_net, images, labels, progress=stop_after(5000), **call)
    done = []
    occfast.occlusion_map(tiny_net, images, labels, progress=lambda d, t: done.append(d), resume=False, **call)
    assert done[0] <= 50
    path.write_text("a letter")
    for resume in (True, False):  # never overwritten
        with pytest.raises(occfast.DataError, match=r"sweep\.npz"):
            occfast.occlusion_map(tiny_net, images, labels, progress=False, resume=resume, **call)
    assert path.read_text() == "a letter"
    with pytest.raises(TypeError, match="resume: expected True or False"):
        occfast.occlusion_map(tiny_net, images, labels, progress=False, resume="yes", **call)


def test_saving_does_not_remove_the_checkpoint_of_another_sweep(tiny_net, many, tmp_path):
    images, labels = many
    path = tmp_path / "sweep.npz"
    first = occfast.occlusion_map(tiny_net, images, labels, (4, 3), progress=False, checkpoint=path)
    with pytest.raises(Interrupted):
        occfast.occlusion_map(
            tiny_net, images, labels, (3, 3), progress=stop_after(3000), checkpoint=path, resume=False
        )
    first.save(tmp_path / "first.npz")
    assert path.exists()
    occfast.occlusion_map(tiny_net, images, labels, (3, 3), progress=False, checkpoint=path)


# -- functions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function", "method"])
def test_a_function_is_known_by_its_outputs(tiny_net, many, tmp_path, kind):
    """A function or a bound method has no weights to compare."""
    images, labels = many
    other = type(tiny_net)().eval()
    one, two = ((lambda x, n=n: n(x)) if kind == "function" else n.forward for n in (tiny_net, other))
    path = tmp_path / "sweep.npz"
    call = dict(occluder=(4, 3), batch_size=50, checkpoint=path)
    with pytest.raises(Interrupted):
        occfast.occlusion_map(one, images, labels, progress=stop_after(3000), **call)
    with pytest.raises(ValueError, match="is of another model: outputs for a test image differ by"):
        occfast.occlusion_map(two, images, labels, progress=False, **call)
    whole = occfast.occlusion_map(one, images, labels, (4, 3), batch_size=50, progress=False)
    assert same(occfast.occlusion_map(one, images, labels, progress=False, **call), whole)


def test_a_module_with_the_same_weights_and_another_forward(tiny_net, many, tmp_path):
    images, labels = many
    path = tmp_path / "sweep.npz"
    call = dict(occluder=(4, 3), batch_size=50, checkpoint=path)
    with pytest.raises(Interrupted):
        occfast.occlusion_map(tiny_net, images, labels, progress=stop_after(3000), **call)
    tiny_net.layers[1] = torch.nn.GELU().eval()
    with pytest.raises(ValueError, match="is of another model"):
        occfast.occlusion_map(tiny_net, images, labels, progress=False, **call)


# -- damaged files -------------------------------------------------------------------------------------


def changed(path, counts=(), **arrays):
    content = checkpoints.read_npz(path)
    content["counts"] = np.array(json.dumps({**json.loads(str(content["counts"])), **dict(counts)}))
    for name, array in arrays.items():
        content.pop(name) if array is None else content.update({name: array})
    checkpoints.write_npz(path, **content)


WRONG = {
    "counts": dict(counts={"next": -1}),
    "float count": dict(counts={"seen": 64.0}),
    "null": dict(counts={"used": None}),
    "text": dict(counts={"seconds": "long"}),
    "sum": dict(counts={"skipped": 0}),
    "next": dict(counts={"next": 10**9}),
    "layout": dict(counts={"layout": "nhwc"}),
    "method": dict(counts={"method": "magic"}),
    "tally": dict(counts={"tally": [1]}),
    "tally text": dict(counts={"tally": {"skipped": "x"}}),
    "keep": dict(counts={"keep_per_image": 1}),
    "total shape": dict(total=np.zeros(3)),
    "total dtype": dict(total=np.zeros(72, np.float32)),
    "nan": dict(squares=np.full(72, np.nan)),
    "image": dict(image_sum=np.zeros((3, 9, 8))),
    "partial": dict(partial=np.zeros((5, 71))),
    "partial scalar": dict(partial=np.array(1.0)),
    "no partial": dict(partial=None),
    "per image": dict(per_image=np.zeros((3, 72), np.uint8)),
    "per image dtype": dict(per_image=np.zeros((54, 72), np.float32)),
    "no per image": dict(per_image=None),
    "indices": dict(indices=np.zeros(2, np.int64)),
    "outputs": dict(outputs=np.zeros(5, np.float32)),
    "samples": dict(samples=np.array(["x"])),
    "stamp": dict(stamp=np.array("[1]")),
    "no stamp": dict(stamp=None),
    "json": dict(counts={}, stamp=np.array("{")),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_checkpoint_is_named(tiny_net, many, tmp_path, name):
    images, labels = many
    path = tmp_path / "sweep.npz"
    call = dict(occluder=(4, 3), batch_size=50, checkpoint=path)
    with pytest.raises(Interrupted):
        occfast.occlusion_map(tiny_net, images, labels, progress=stop_after(6000), **call)
    changed(path, **WRONG[name])
    with pytest.raises(occfast.DataError, match=r"sweep\.npz: not a complete checkpoint"):
        occfast.occlusion_map(tiny_net, images, labels, progress=False, **call)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("sampled", dict(samples=np.zeros(7, np.uint8))),
        ("sampled", dict(samples=None)),
        ("adaptive", dict(counts={"tally": {"skipped": 5.0, "checked": 9.0}})),
        ("adaptive", dict(counts={"tally": {"evaluated": -5.0}})),
    ],
)
def test_a_wrong_checkpoint_of_an_estimate_is_named(tiny_net, many, tmp_path, method, change):
    images, labels = many
    path = tmp_path / "sweep.npz"
    call = dict(occluder=(4, 3), batch_size=50, method=method, progress=False, checkpoint=path)
    occfast.occlusion_map(tiny_net, images, labels, **call)
    changed(path, **change)
    with pytest.raises(occfast.DataError, match=r"sweep\.npz: not a complete checkpoint"):
        occfast.occlusion_map(tiny_net, images, labels, **call)


def test_batches_of_another_size_or_fewer_images(tiny_net, many, tmp_path):
    images, labels = many
    path = tmp_path / "sweep.npz"
    call = dict(occluder=(4, 3), batch_size=50, checkpoint=path)

    def batches(size, count=150):
        return list(zip(images[:count].split(size), labels[:count].split(size), strict=True))

    with pytest.raises(Interrupted):
        occfast.occlusion_map(tiny_net, batches(30), progress=stop_after(6000), **call)
    for other in (batches(45), batches(30, 60)):
        with pytest.raises(ValueError, match="checkpoint: the images or labels are not those"):
            occfast.occlusion_map(tiny_net, other, progress=False, **call)
    whole = occfast.occlusion_map(tiny_net, images, labels, (4, 3), batch_size=50, progress=False)
    m = occfast.occlusion_map(tiny_net, batches(30), progress=False, **call)
    np.testing.assert_allclose(m.values, whole.values, atol=1e-12)


def test_a_checkpoint_of_an_earlier_version_goes_on(tiny_net, many, tmp_path):
    """It holds neither outputs nor image numbers, and a function's checkpoint matches that of any other function."""
    images, labels = many
    path = tmp_path / "sweep.npz"
    call = dict(occluder=(4, 3), batch_size=50, checkpoint=path)
    whole = occfast.occlusion_map(tiny_net, images, labels, (4, 3), batch_size=50, progress=False)
    with pytest.raises(Interrupted):
        occfast.occlusion_map(tiny_net, images, labels, progress=stop_after(6000), **call)
    changed(path, outputs=None, indices=None)
    m = occfast.occlusion_map(tiny_net, images, labels, progress=False, **call)
    assert same(m, whole) and m.image_indices is None
    m.save(tmp_path / "map.npz")
    assert occfast.OcclusionMap.load(tmp_path / "map.npz").image_indices is None
    with pytest.raises(Interrupted):
        occfast.occlusion_map(lambda x: tiny_net(x), images, labels, progress=stop_after(6000), **call)
    changed(path, outputs=None, indices=None)
    with pytest.raises(ValueError, match=r"holds no outputs of its model, .*before 0\.1\.0"):
        occfast.occlusion_map(lambda x: tiny_net(x), images, labels, progress=False, **call)
