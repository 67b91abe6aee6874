"""What no emulator shows: streams, several GPUs, tensors of more than 2^31 elements, grids of more than 65,535 blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from occfast.native import ops
from occfast.sweep.precision import float32_as
from tests.native.test_cuda_device import GRID, occluder_params, random_images, score_arguments, sweep_arguments

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible to PyTorch"),
]
DEVICE = torch.device("cuda")
#: Numbers just above the limits.
ELEMENTS, BLOCKS = 2**31 + 2**20, 65_535 + 100
Arguments = tuple[object, ...]


def moved(arguments: Arguments, device: torch.device = DEVICE) -> Arguments:
    return tuple(x.to(device) if isinstance(x, Tensor) else x for x in arguments)


def windows(count: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Arguments:
    """Return arguments of ``gather_windows``, with a patch of 2 x 3 in each window."""
    generator = torch.Generator().manual_seed(7)
    origins, places = (torch.randint(-3, 9, (count, 2), generator=generator) for _ in range(2))
    maps = torch.randn((3, channels, 9, 11), generator=generator).to(dtype)
    patches = torch.randn((count, channels, 2, 3), generator=generator).to(dtype)
    return maps, torch.randint(0, 3, (count,), generator=generator), origins, height, width, patches, places, -1.5


def layer(inputs: int, outputs: int) -> Arguments:
    """Return the weight and the bias of a 3 x 3 convolution."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn((outputs, inputs, 3, 3), generator=generator), torch.randn(outputs, generator=generator)


def convolved(*arguments: object) -> Tensor:
    """Gather windows and convolve them in float32, in one pass."""
    *given, weight, bias = arguments
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    packed = ops.pack_convolution(weight, bias, ops.convolution_block(weight))
    with float32_as("ieee"):
        return ops.gather_windows(*given, *packed, len(weight), [3, 3, 1, 1, 1, 1, 1])  # type: ignore[no-any-return]


def triplets(rows: int, references: int | None, linear: bool = False) -> Arguments:
    """Return arguments of ``triplet_loss``: all violating triplets, with statistics."""
    generator = torch.Generator().manual_seed(8)
    x, y = torch.randn(rows, 4, generator=generator, dtype=torch.float64), torch.arange(rows) % 97
    others = (None, None)
    if references is not None:
        others = torch.randn(references, 4, generator=generator, dtype=torch.float64), torch.arange(references) % 5
    return x, y, *others, 0, ops.MININGS["violating"], False, 0.5, 0.7, 9, 4, True, 16, 0.0, True, linear, False


def painted(n: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Arguments:
    """Return arguments of ``paint_occluders``."""
    drawing = occluder_params(n, *shape)
    high = 255.0 if dtype == torch.uint8 else 1.0
    return random_images((n, *shape), dtype), drawing[0], *ops.draw_occluders(*drawing), 5, 0.0, high


def flat(result: object) -> list[Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]  # type: ignore[list-item]


CALLS: dict[str, tuple[Callable[..., object], Callable[[], Arguments]]] = {
    "copies": (ops.occlude_positions, lambda: (*sweep_arguments(count=300), GRID)),
    "draws": (ops.draw_occluders, lambda: occluder_params(2000, 3, 112, 96)),
    "paint": (ops.paint_occluders, lambda: painted(50, (3, 112, 112), torch.uint8)),
    "windows": (ops.gather_windows, lambda: windows(500, 16, 20, 20)),
    "convolutions": (convolved, lambda: (*windows(500, 16, 20, 20), *layer(16, 70))),
    "triplets": (ops.triplet_loss, lambda: triplets(700, None)),
}


def expect_close(found: object, expected: object, exact: bool) -> None:
    for one, other in zip(flat(found), flat(expected), strict=True):
        if exact:
            assert torch.equal(one.cpu(), other.cpu())
        else:  # sums in another order
            torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CALLS)
def test_each_op_runs_on_the_current_stream(name: str) -> None:
    """Two streams at once, whose tensors come late: a kernel elsewhere would read zeros."""
    op, make = CALLS[name]
    cpu = make()
    expected, ready = op(*cpu), moved(cpu)
    op(*ready)  # loads the kernels
    torch.cuda.synchronize()
    found = []
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    late = [tuple(torch.zeros_like(x) if isinstance(x, Tensor) else x for x in ready) for _ in streams]
    torch.cuda.synchronize()
    for stream, arguments in zip(streams, late, strict=True):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)
            for to, source in zip(arguments, ready, strict=True):
                if isinstance(to, Tensor):
                    to.copy_(source)  # type: ignore[arg-type]
            found.append(op(*arguments))
    torch.cuda.synchronize()
    for result in found:
        expect_close(result, expected, name != "triplets")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
@pytest.mark.parametrize("name", CALLS)
def test_each_op_runs_on_the_device_of_its_tensors(name: str) -> None:
    op, make = CALLS[name]
    cpu = make()
    expected = op(*cpu)
    last = torch.cuda.device_count() - 1
    for current in (0, last):
        with torch.cuda.device(current):
            for device in (0, last):
                found = op(*moved(cpu, torch.device("cuda", device)))
                assert {x.device.index for x in flat(found)} == {device}
                expect_close(found, expected, name != "triplets")


# -- more than 2^31 elements: the last of them, computed again alone on the CPU -------------------------------


def need(gigabytes: float) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes:.0f} GB of the GPU's memory, {free:.0f} are free")


def test_copies_of_more_elements() -> None:
    need(4)
    images, fill, _ = sweep_arguments((4, 3, 101, 112), torch.uint8)
    count = ELEMENTS // images[0].numel() + 1
    positions = torch.arange(count) % (4 * GRID[0] * GRID[1])
    copies = ops.occlude_positions(*moved((images, fill, positions)), GRID)
    assert copies.numel() > ELEMENTS
    for part in (slice(0, 40), slice(count // 2, count // 2 + 40), slice(count - 40, count)):
        assert torch.equal(copies[part].cpu(), ops.occlude_positions(images, fill, positions[part], GRID))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_paint_of_more_elements(layout: torch.memory_format) -> None:
    need(8)
    shape = (3, 112, 112)
    n = ELEMENTS // (3 * 112 * 112) + 1
    images = torch.full((n, *shape), 77, dtype=torch.uint8, device=DEVICE).contiguous(memory_format=layout)
    drawing = occluder_params(n, *shape)
    occluders = (drawing[0], *ops.draw_occluders(*drawing))
    ops.paint_occluders_(images, *moved(occluders), 5, 0.0, 255.0)
    for part in (slice(0, 40), slice(n - 40, n)):
        alone = torch.full((40, *shape), 77, dtype=torch.uint8).contiguous(memory_format=layout)
        ops.paint_occluders_(alone, *(x[part] for x in occluders), 5, 0.0, 255.0)
        assert torch.equal(images[part].cpu(), alone)


def test_windows_of_more_elements() -> None:
    need(10)
    count = ELEMENTS // (64 * 30 * 30) + 1
    maps, images, origins, height, width, patches, places, padding = windows(count, 64, 30, 30, torch.bfloat16)
    whole = moved((maps, images, origins, height, width, patches, places, padding))
    gathered = ops.gather_windows(*whole)
    for part in (slice(0, 40), slice(count - 40, count)):
        alone = (maps, images[part], origins[part], height, width, patches[part], places[part], padding)
        assert torch.equal(gathered[part].cpu(), ops.gather_windows(*alone))


def test_convolutions_of_more_elements() -> None:
    need(12)
    count = ELEMENTS // (64 * 30 * 30) + 1
    maps, images, origins, height, width, patches, places, padding = windows(count, 8, 32, 32)
    whole = moved((maps, images, origins, height, width, patches, places, padding, *layer(8, 64)))
    out = convolved(*whole)
    assert out.numel() > ELEMENTS
    for part in (slice(0, 40), slice(count - 40, count)):
        alone = (maps, images[part], origins[part], height, width, patches[part], places[part], padding)
        assert torch.equal(out[part].cpu(), convolved(*alone, *layer(8, 64)))


def test_triplets_of_more_pairs() -> None:
    """Tiles of anchors, which have fewer pairs each, against all pairs at once."""
    need(60)
    rows = 46_400
    assert rows**2 > ELEMENTS
    whole, tiled = (ops.triplet_loss(*moved(triplets(rows, None, linear))) for linear in (False, True))
    expect_close(whole[:7], tiled[:7], exact=False)


# -- more blocks than a grid holds, which then take several turns each ----------------------------------------


def small_copies() -> Arguments:
    images = random_images((3, 1, 6, 8), torch.float32)
    grid = [6, 8, 0, 0, 1, 1, 3, 2]
    return images, torch.ones(1, 1, 1, 1), torch.arange(BLOCKS) % 144, grid


MANY: dict[str, tuple[Callable[..., object], Callable[[], Arguments], bool]] = {
    "copies": (ops.occlude_positions, small_copies, True),
    "draws": (ops.draw_occluders, lambda: occluder_params(BLOCKS * 128, 1, 41, 43), True),
    "paint": (ops.paint_occluders, lambda: painted(BLOCKS, (1, 41, 43), torch.uint8), True),
    "windows": (ops.gather_windows, lambda: windows(BLOCKS * 64, 1, 1, 40), True),
    "convolutions": (convolved, lambda: (*windows(BLOCKS * 2, 1, 10, 10), *layer(1, 3)), True),  # 128 pixels a block
    "triplets": (ops.triplet_loss, lambda: triplets(BLOCKS, 30), False),
}


@pytest.mark.parametrize("name", MANY)
def test_more_blocks_than_a_grid_holds(name: str) -> None:
    op, make, exact = MANY[name]
    cpu = make()
    expect_close(op(*moved(cpu)), op(*cpu), exact)


def test_scores_and_sums_of_more_blocks_than_a_grid_holds() -> None:
    cpu = score_arguments("error", classes=2, images=5, per_image=BLOCKS)  # a block scores four copies
    gpu = moved(cpu)
    ops.sweep_score(*cpu)
    ops.sweep_score(*gpu)
    assert torch.equal(gpu[4].cpu(), cpu[4])  # type: ignore[attr-defined]
    scores = torch.randn(3, BLOCKS * 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    sums = [torch.zeros(2, BLOCKS * 32, dtype=torch.float64, device=device) for device in (torch.device("cpu"), DEVICE)]
    for total in sums:
        ops.sweep_accumulate(scores.to(total.device), total[0], total[1])
    assert torch.equal(sums[1].cpu(), sums[0])
