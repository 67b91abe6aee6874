"""The ops on a GPU against the same ops on the CPU, bit-equal where that is promised."""

from __future__ import annotations

import copy

import pytest
import torch

import occfast
from occfast.native import loader, ops
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.geometry import SweepGrid
from occfast.sweep.precision import float32_as
from tests import networks

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible to PyTorch"),
]
GRID = [40, 35, 1, 2, 2, 3, 20, 15]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def random_images(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.rand(shape, generator=generator).to(dtype)
    return torch.randint(0, 256, shape, generator=generator).to(dtype)


def same(gpu, cpu):
    assert gpu.device.type == "cuda" and gpu.dtype == cpu.dtype and gpu.shape == cpu.shape
    assert gpu.stride() == cpu.stride()
    assert torch.equal(gpu.cpu().flatten().view(torch.uint8), cpu.flatten().view(torch.uint8))


def sweep_arguments(shape=(4, 3, 101, 112), dtype=torch.float32, layout=torch.contiguous_format, count=3000):
    images = random_images(shape, dtype).contiguous(memory_format=layout)
    fill = random_images((1, shape[1], 1, 1), dtype)
    positions = torch.randint(0, shape[0] * GRID[0] * GRID[1], (count,), generator=torch.Generator().manual_seed(1))
    return images, fill, positions


def score_arguments(kind, dtype=torch.float32, classes=1000, images=4, per_image=500):
    generator = torch.Generator().manual_seed(2)
    count = images * per_image
    outputs = torch.randint(-50, 50, (count, classes), generator=generator).to(dtype) / 7
    return (
        outputs,
        torch.randperm(count, generator=generator),
        per_image,
        ops.SCORES[kind],
        torch.zeros(images, per_image, dtype=torch.float64),
        torch.zeros(1, dtype=torch.int32),
        torch.randint(0, classes, (images,), generator=generator),
        torch.rand(images, classes, generator=generator, dtype=torch.float64),
        torch.rand(images, generator=generator, dtype=torch.float64),
    )


def occluder_params(n, channels, height, width, gray=False):
    rows, columns = torch.arange(height), torch.arange(width)
    weights = torch.rand(height * width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    cdf = weights.cumsum(0) / weights.sum()
    cdf[-1] = 1.0
    ids = torch.arange(n) * 31 + 2**35
    return (
        ids,
        cdf,
        rows,
        columns,
        channels,
        height,
        width,
        2**61 + 7,
        0.9,
        [5, 40, 5, 40],
        [0.05, 0.6, 0.0, 1.0],
        [0, 1, 2, 3],
        gray,
    )


def on_gpu(arguments):
    return tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 1, 100, 100), (3, 3, 101, 113), (2, 3, 112, 112)], ids=str)
def test_occluded_copies(shape, dtype, layout):
    images, fill, positions = sweep_arguments(shape, dtype, layout, count=700)
    positions %= shape[0] * GRID[0] * GRID[1]
    gpu = images.cuda().contiguous(memory_format=layout)
    same(
        ops.occlude_positions(gpu, fill.cuda(), positions.cuda(), GRID),
        ops.occlude_positions(images, fill, positions, GRID),
    )
    assert ops.occlude_positions(gpu, fill.cuda(), positions[:0].cuda(), GRID).shape[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", list(ops.SCORES))
def test_scores(kind, dtype):
    cpu = score_arguments(kind, dtype)
    gpu = on_gpu(cpu)
    ops.sweep_score(*cpu)
    ops.sweep_score(*gpu)
    if kind == "similarity_drop":
        torch.testing.assert_close(gpu[4].cpu(), cpu[4], rtol=0, atol=1e-12)
    else:
        same(gpu[4], cpu[4])
    assert gpu[5].item() == 0
    gpu[0][17, 999] = float("nan")
    ops.sweep_score(*gpu)
    assert gpu[5].item() == 1


def test_running_sums():
    scores = torch.randn(50, 10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    cpu, gpu = (torch.zeros(2, 10_000, dtype=torch.float64, device=device) for device in ("cpu", "cuda"))
    ops.sweep_accumulate(scores, cpu[0], cpu[1])
    ops.sweep_accumulate(scores.cuda(), gpu[0], gpu[1])
    same(gpu, cpu)


@pytest.mark.parametrize("gray", [False, True])
def test_draws(gray):
    arguments = occluder_params(5000, 3, 112, 96, gray)
    for gpu, cpu in zip(ops.draw_occluders(*on_gpu(arguments)), ops.draw_occluders(*arguments), strict=True):
        same(gpu, cpu)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", list(ops.IMAGE_DTYPES))
@pytest.mark.parametrize("shape", [(64, 1, 100, 100), (33, 3, 97, 101), (16, 3, 112, 112)], ids=str)
def test_paint(shape, dtype, layout):
    images = random_images(shape, dtype).contiguous(memory_format=layout)
    gpu = images.cuda().contiguous(memory_format=layout)
    arguments = occluder_params(*shape)
    occluders = (arguments[0], *ops.draw_occluders(*arguments))
    ends = (0.0, 255.0) if dtype == torch.uint8 else (-1.0, 1.0)
    expected = ops.paint_occluders(images, *occluders, 5, *ends)
    same(ops.paint_occluders(gpu, *on_gpu(occluders), 5, *ends), expected)
    ops.paint_occluders_(gpu, *on_gpu(occluders), 5, *ends)
    same(gpu, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 3, 8, 64])
def test_gathered_windows(dtype, channels):
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn((3, channels, 40, 37), generator=generator).to(dtype)
    images = torch.randint(0, 3, (300,), generator=generator)
    origins, places = (torch.randint(-12, 35, (300, 2), generator=generator) for _ in range(2))
    patches = torch.randn((300, channels, 9, 8), generator=generator).to(dtype)
    for patch in ((None, None), (patches, places)):
        arguments = (maps, images, origins, 21, 17, *patch, -1.5)
        same(ops.gather_windows(*on_gpu(arguments)), ops.gather_windows(*arguments))


@pytest.mark.parametrize("edges", [(0, 0, 2, 2), (1, 0, 1, 2), (0, 1, 2, 1), (0, 0, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("channels", [1, 4, 7, 32])
def test_gathered_pieces(channels, edges):
    from tests.sweep.test_incremental import pieces

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        arguments = pieces(channels, dtype, edges)
        same(ops.gather_pieces(*on_gpu(arguments)), ops.gather_pieces(*arguments))


#: Layers of the ten-layer network (inputs, outputs), others with odd numbers of channels, and windows of them.
LAYERS = [
    (1, 32, 30),
    (32, 64, 28),
    (64, 128, 20),
    (128, 96, 14),
    (96, 192, 12),
    (160, 320, 7),
    (3, 70, 11),
    (20, 33, 9),
]


def fused(op, arguments, weight, bias, kind="ieee"):
    """Gather windows and convolve them in one pass."""
    packed = ops.pack_convolution(weight, bias, ops.convolution_block(weight))
    with float32_as(kind):
        return op(*arguments, *packed, len(weight), [3, 3, 1, 1, 1, 1, 1])


def apart(op, arguments, weight, bias):
    """Gather windows and convolve them by PyTorch in float64, and add up the absolute values of what is summed."""
    gathered, weight, bias = op(*arguments).double(), weight.double(), bias.double()
    out = torch.nn.functional.conv2d(gathered, weight, bias).relu()
    return out, torch.nn.functional.conv2d(gathered.abs(), weight.abs(), bias.abs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs", "side"), LAYERS, ids=str)
def test_convolved_windows(dtype, inputs, outputs, side):
    """Exact ones have the bits of the CPU; all equal gathering and PyTorch's convolution up to rounding."""
    generator = torch.Generator().manual_seed(7)
    maps = torch.randn((3, inputs, side + 5, side + 3), generator=generator).to(dtype)
    images = torch.randint(0, 3, (200,), generator=generator)
    origins, places = (torch.randint(-5, side, (200, 2), generator=generator) for _ in range(2))
    patches = torch.randn((200, inputs, side // 2, side // 2), generator=generator).to(dtype)
    weight = (torch.randn((outputs, inputs, 3, 3), generator=generator) / (9 * inputs) ** 0.5).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    arguments = (maps, images, origins, side, side, patches, places, 0.0)
    gpu = on_gpu((*arguments, weight, bias))
    found = fused(ops.gather_windows, gpu[:8], *gpu[8:])
    if dtype in (torch.float32, torch.float64):
        same(found, fused(ops.gather_windows, arguments, weight, bias))
    expected, size = apart(ops.gather_windows, gpu[:8], *gpu[8:])
    unit = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    sums = 9 * inputs * (2.0**-52 if dtype == torch.float64 else 2.0**-23) * size
    assert bool(((found.double() - expected).abs() <= 2 * sums + unit * (expected + sums) + 2.0**-24).all())
    if dtype == torch.float32:
        rounded = fused(ops.gather_windows, gpu[:8], *gpu[8:], kind="tf32")
        assert bool(((rounded.double() - expected).abs() <= 2 * sums + 2.01 * 2.0**-11 * size).all())
        assert not torch.equal(rounded, found)


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "bfloat16", "tf32"])
@pytest.mark.parametrize("edges", [(0, 0, 2, 2), (1, 0, 1, 2), (0, 1, 2, 1), (0, 0, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("channels", [1, 4, 7, 32])
def test_convolved_pieces(channels, edges, kind):
    from tests.sweep.test_incremental import pieces

    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    arguments = pieces(channels, dtype, edges)
    generator = torch.Generator().manual_seed(8)
    weight = (torch.randn((70, channels, 3, 3), generator=generator) / (9 * channels) ** 0.5).to(dtype)
    bias = torch.randn(70, generator=generator).to(dtype)
    gpu = on_gpu((*arguments, weight, bias))
    found = fused(ops.gather_pieces, gpu[:-2], *gpu[-2:], kind="tf32" if kind == "tf32" else "ieee")
    if kind in ("float32", "float64"):
        same(found, fused(ops.gather_pieces, arguments, weight, bias))
    expected, size = apart(ops.gather_pieces, gpu[:-2], *gpu[-2:])
    unit = {"float32": 2.0**-20, "float64": 2.0**-48, "float16": 2.0**-10, "tf32": 2.0**-9, "bfloat16": 2.0**-7}[kind]
    assert bool(((found.double() - expected).abs() <= unit * size).all())


@pytest.mark.parametrize("distance", list(ops.DISTANCES))
@pytest.mark.parametrize("mining", list(ops.MININGS))
def test_triplets_with_references_and_statistics(mining, distance):
    """Also more positives than a block of the GPU holds at a time, and embeddings that have collapsed."""
    random = torch.Generator().manual_seed(6)
    x = torch.nn.functional.normalize(torch.randn(700, 24, generator=random, dtype=torch.float64))
    labels = (torch.arange(700) >= 350).long() + 2 * (torch.arange(700) % 7 == 0)
    near = torch.nn.functional.normalize(x[:1] + 1e-4 * x)
    for at, refs in ((x, (None, None)), (x, (x[:90].flip(0), labels[:90])), (near, (None, None))):
        arguments = (at, labels, *refs, ops.DISTANCES[distance], ops.MININGS[mining], False, 0.5, 0.7, 9, 4, True, 16)
        arguments = (*arguments, 0.0, True, False, False)
        gpu, cpu = ops.triplet_loss(*on_gpu(arguments)), ops.triplet_loss(*arguments)
        for found, expected in zip(gpu[:3], cpu[:3], strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-10)
        again = ops.triplet_loss(*on_gpu(arguments))
        assert all(torch.equal(one, other) for one, other in zip(gpu, again, strict=True))


def test_words_and_normals():
    n = 100_000
    generator = torch.Generator().manual_seed(6)
    counters, keys = (torch.randint(-(2**31), 2**31, (n, k), generator=generator).int() for k in (4, 2))
    stream = torch.cuda.current_stream().cuda_stream
    results = []
    for module, device in ((loader.module("cpu"), "cpu"), (loader.module("cuda"), "cuda")):
        c, k = counters.to(device), keys.to(device)
        words = torch.empty(n, 4, dtype=torch.int32, device=device)
        values = torch.empty(4 * n, device=device)
        context = module.ExecContext(threads=1, stream=0 if device == "cpu" else stream)
        module.philox_words(counters=c.data_ptr(), keys=k.data_ptr(), n=n, words=words.data_ptr(), context=context)
        module.normals(words=words.data_ptr(), n=4 * n, values=values.data_ptr(), context=context)
        results.append((words, values))
    same(results[1][0], results[0][0])
    same(results[1][1], results[0][1])


def test_the_current_stream_is_used_and_the_host_does_not_wait():
    images, fill, positions = on_gpu(sweep_arguments())
    expected = ops.occlude_positions(images, fill, positions, GRID)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    late = torch.zeros_like(images)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # the images come late: a kernel on another stream would see zeros
        late.copy_(images)
        copies = ops.occlude_positions(late, fill, positions, GRID)
        assert not stream.query(), "the call waited for the device"
    stream.synchronize()
    assert torch.equal(copies, expected)


def test_every_op_runs_in_a_cuda_graph():
    images, fill, positions = on_gpu(sweep_arguments(count=200))
    arguments = on_gpu(occluder_params(4, 3, 101, 112))
    scoring = on_gpu(score_arguments("error"))
    total, squares = (torch.zeros(scoring[4].shape[1], dtype=torch.float64, device="cuda") for _ in range(2))

    def everything():
        copies = ops.occlude_positions(images, fill, positions, GRID)
        ops.sweep_score(*scoring)
        ops.sweep_accumulate(scoring[4], total, squares)
        occluders = ops.draw_occluders(*arguments)
        return copies, ops.paint_occluders(images, arguments[0], *occluders, 5, 0.0, 1.0)

    expected = everything()  # also warms up
    torch.cuda.synchronize()
    total.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(total, scoring[4].sum(0))
    for one, other in zip(captured, expected, strict=True):
        assert torch.equal(one, other)


def test_tensors_on_different_devices_are_refused():
    images, fill, positions = sweep_arguments(count=3)
    with pytest.raises(ValueError, match="fill: expected a tensor on cuda:0, got cpu"):
        ops.occlude_positions(images.cuda(), fill, positions.cuda(), GRID)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_a_gpu_that_is_not_the_current_one():
    images, fill, positions = sweep_arguments(count=50)
    with torch.cuda.device(0):
        copies = ops.occlude_positions(images.to("cuda:1"), fill.to("cuda:1"), positions.to("cuda:1"), GRID)
    assert copies.device.index == 1
    same(copies, ops.occlude_positions(images, fill, positions, GRID))


def swept(dtype, tf32=False, cuda_graphs=False, fuse=False):
    """Return the outputs of a small network on the GPU: two incremental sweeps of two blocks of images, and the dense
    ones in float32."""
    model = networks.lively(networks.Yi(classes=20, width=8)).cuda()
    images = torch.rand((3, 1, 100, 100), generator=torch.Generator().manual_seed(1)).cuda()
    grid, fill = SweepGrid.over((100, 100), (20, 30), stride=5), torch.zeros(1, 1, 1, 1, device="cuda")
    found, expected = [], []
    with torch.no_grad(), float32_as("tf32" if tf32 else "ieee"):
        evaluator = IncrementalEvaluator(
            copy.deepcopy(model).to(dtype), grid, images.to(dtype), cuda_graphs=cuda_graphs, fuse=fuse
        )
        for block in (images, images[1:].sqrt()):
            positions = torch.arange(len(block) * grid.positions, device="cuda")
            evaluator.start(block.to(dtype), fill.to(dtype))
            for _ in range(3):
                found.append(evaluator.outputs(positions).float())
            with float32_as("ieee"):
                copies = ops.occlude_positions(block, fill, positions, grid.native())
                expected += [torch.cat([model(part) for part in copies.split(256)])] * 3
    return torch.cat(found), torch.cat(expected), evaluator.graphs


@pytest.mark.parametrize(
    ("dtype", "tf32", "tolerance"),
    [
        (torch.float32, False, 1e-5),
        (torch.float64, False, 1e-5),
        (torch.float32, True, 1e-2),
        (torch.bfloat16, False, 0.04),
    ],
    ids=["float32", "float64", "tf32", "bf16"],
)
@pytest.mark.parametrize("fuse", [False, True])
def test_incremental_sweep_with_and_without_graphs(dtype, tf32, tolerance, fuse):
    plain, expected, _ = swept(dtype, tf32, fuse=fuse)
    scale = float(expected.abs().max())
    assert float((plain - expected).abs().max()) <= tolerance * scale
    replayed, _, graphs = swept(dtype, tf32, cuda_graphs=True, fuse=fuse)
    assert graphs.replayed > 0 and not graphs._failed
    assert float((replayed - expected).abs().max()) <= tolerance * scale
    if not tf32 and dtype != torch.bfloat16:
        assert torch.equal(plain.argmax(1), expected.argmax(1))


def test_precision_none_is_float32_whatever_the_switches_say():
    model = networks.lively(networks.Yi(classes=20, width=8)).cuda()
    images = torch.rand((2, 1, 100, 100), generator=torch.Generator().manual_seed(1)).cuda()
    arguments = dict(occluder=(20, 30), stride=10, score="similarity_drop", method="incremental", progress=False)
    maps = {}
    for allowed in (False, True):
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        try:
            for precision in (None, "tf32", "bf16"):
                maps[allowed, precision] = occfast.occlusion_map(model, images, precision=precision, **arguments).values
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    reference = occfast.occlusion_map(model.cpu(), images.cpu(), **arguments).values
    largest = abs(reference).max()
    for allowed in (False, True):
        assert abs(maps[allowed, None] - reference).max() <= 1e-4 * largest
        assert (maps[allowed, "tf32"] == maps[True, "tf32"]).all() and (maps[allowed, None] == maps[True, None]).all()
        assert abs(maps[allowed, "bf16"] - reference).max() <= 0.2 * largest


def test_opcheck():
    sweep, scoring, drawing = (
        sweep_arguments(count=20),
        score_arguments("error", per_image=5),
        occluder_params(4, 3, 101, 112),
    )
    occluders = (drawing[0], *ops.draw_occluders(*drawing))
    scores = torch.rand(3, 40, dtype=torch.float64)
    for op, arguments in (
        (ops.occlude_positions, (*sweep, GRID)),
        (ops.sweep_score, scoring),
        (ops.sweep_accumulate, (scores, scores[0].clone(), scores[1].clone())),
        (ops.draw_occluders, drawing),
        (ops.paint_occluders, (sweep[0], *occluders, 5, 0.0, 1.0)),
        (ops.paint_occluders_, (sweep[0], *occluders, 5, 0.0, 1.0)),
    ):
        torch.library.opcheck(op, on_gpu(arguments))


def test_cupy_arrays_come_in_and_go_out_without_a_copy():
    cupy = pytest.importorskip("cupy")
    images, fill, positions = sweep_arguments(count=50)
    array = cupy.asarray(images.numpy())
    tensor = torch.from_dlpack(array)
    assert tensor.data_ptr() == array.data.ptr
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream, torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
        copies = ops.occlude_positions(tensor, fill.cuda(), positions.cuda(), GRID)
        back = cupy.from_dlpack(copies)
        assert back.data.ptr == copies.data_ptr()
        mean = float(back.mean())
    expected = ops.occlude_positions(images, fill, positions, GRID)
    same(copies, expected)
    assert mean == pytest.approx(expected.mean().item(), rel=1e-4)
