"""Kinds of images, labels, fills and sizes: each gives the map of a plain tensor, or one clear error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import occfast
from occfast.checks import as_tensor, memory, pair
from tests.conftest import TinyNet

CALL = dict(occluder=(5, 4), batch_size=16, progress=False, skip_misclassified=False)


def masked(array, mask=False):
    return np.ma.masked_array(array, mask=mask)


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array):
    memory = np.empty(array.nbytes + 1, np.uint8)[1:]
    view = memory.view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def fields(array):
    """Return every other float of a structure, with strides that are no multiple of the item size."""
    table = np.zeros(array.shape, np.dtype([("a", "u1"), ("b", array.dtype)]))
    table["b"] = array
    return table["b"]


VIEWS = {
    "mirrored": lambda a: a[..., ::-1].copy()[..., ::-1],
    "upside down": lambda a: a[::-1].copy()[::-1],
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "read-only": frozen,
    "read-only view": lambda a: np.broadcast_to(a, a.shape),
    "objects": lambda a: a.astype(np.float64).astype(object) if a.dtype.kind == "f" else a.astype(object),
    "masked": masked,
    "unaligned": unaligned,
    "fields": fields,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "Fortran": np.asfortranarray,
}


@pytest.mark.parametrize("name", VIEWS)
def test_arrays_of_any_layout(tiny_net, faces, labels, name):
    kind = VIEWS[name]
    net, images = tiny_net.double(), faces.double()
    whole = occfast.occlusion_map(net, images, labels, fill=[0.25], **CALL)
    m = occfast.occlusion_map(
        net, kind(images.numpy()), kind(labels.numpy()), fill=kind(np.full((17, 14), 0.25)), **CALL
    )
    assert np.array_equal(m.values, whole.values)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "int16"])
def test_arrays_keep_their_values_and_the_original_is_left_alone(name, dtype):
    if (name, dtype) == ("objects", "float16"):
        pytest.skip("Python has one kind of float")
    array = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    view = VIEWS[name](array)
    tensor = as_tensor(view, "x")
    assert np.array_equal(tensor.numpy(), array)
    if name != "objects":
        assert tensor.numpy().dtype == array.dtype
    tensor += 1
    shared = ("masked", "strided", "Fortran", *(("byte-swapped", "unaligned", "fields") if array.itemsize == 1 else ()))
    if name not in shared:
        assert np.array_equal(np.asarray(view).astype(dtype), array)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (masked(np.zeros(3), [0, 1, 0]), ValueError, r"x: expected no masked entries, got 1; .*\.filled"),
        (np.array(["a", "b"]), TypeError, "x: expected an array of numbers, got dtype <U1"),
        (np.array([{}, 1], dtype=object), TypeError, "x: expected an array of numbers, got dtype object"),
        (np.array([[1], [1, 2]], dtype=object), TypeError, "x: expected an array of numbers"),
        (np.array(["2020-01-01"], "M8[D]"), TypeError, "x: expected an array of numbers"),
        (np.zeros(3, np.longdouble), TypeError, "x: expected a dtype that PyTorch has"),
        ([1, 2], TypeError, "x: expected a tensor or an array with __dlpack__, got list"),
    ],
)
def test_arrays_that_are_refused(array, error, message):
    with pytest.raises(error, match=message):
        as_tensor(array, "x")


def test_an_array_of_another_library_with_negative_strides():
    class Other:
        strides = (-8,)

        def __dlpack__(self):
            raise AssertionError("PyTorch would abort")

    with pytest.raises(ValueError, match="x: expected an array without negative strides"):
        as_tensor(Other(), "x")


@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        lambda x: [np.int64(v) for v in x],
        lambda x: np.array(x, np.int32),
        lambda x: np.array(x, np.uint8),
        lambda x: torch.tensor(x, dtype=torch.int16),
    ],
)
def test_labels_of_any_integer_kind(tiny_net, faces, labels, kind):
    whole = occfast.occlusion_map(tiny_net, faces, labels, **CALL)
    m = occfast.occlusion_map(tiny_net, faces, kind(labels.tolist()), **CALL)
    assert np.array_equal(m.values, whole.values)


@pytest.mark.parametrize("wrong", [[0.0] * 6, ["a"] * 6, [True] * 6, np.zeros(6), torch.zeros(6, dtype=torch.bool)])
def test_labels_that_are_no_integers(tiny_net, faces, wrong):
    with pytest.raises(TypeError, match="labels: expected"):
        occfast.occlusion_map(tiny_net, faces, wrong, **CALL)


def loader(faces, labels, make):
    return [make(faces[k : k + 2], labels[k : k + 2], torch.arange(k, k + 2)) for k in (0, 2, 4)]


BATCHES = {
    "pairs": lambda x, y, ids: (x, y),
    "lists": lambda x, y, ids: [x, y],
    "triples": lambda x, y, ids: (x, y, ids),
    "mappings": lambda x, y, ids: {"images": x, "labels": y, "path": ["a", "b"]},
    "singular": lambda x, y, ids: {"image": x, "label": y},
    "labels as lists": lambda x, y, ids: (x, y.tolist()),
    "arrays": lambda x, y, ids: (x.numpy(), y.numpy()),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches(tiny_net, faces, labels, name):
    whole = occfast.occlusion_map(tiny_net, faces, labels, **CALL)
    totals = []
    call = {**CALL, "progress": lambda done, total: totals.append(total)}
    m = occfast.occlusion_map(tiny_net, loader(faces, labels, BATCHES[name]), **call)
    assert np.array_equal(m.values, whole.values) and set(totals) == {6 * 17 * 14}
    assert np.array_equal(m.image_indices, np.arange(6))


def test_a_data_loader_of_triples(tiny_net, faces, labels):
    """As in the README."""
    data = torch.utils.data.TensorDataset(faces, labels, torch.arange(6))
    m = occfast.occlusion_map(tiny_net, torch.utils.data.DataLoader(data, batch_size=4), **CALL)
    assert np.array_equal(m.values, occfast.occlusion_map(tiny_net, faces, labels, **CALL).values)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y, ids: (x, y, ids, ids),
        lambda x, y, ids: (x,),
        lambda x, y, ids: (x, y, y.double()),
        lambda x, y, ids: (x, y, ["a", "b"]),
        lambda x, y, ids: {"pixels": x, "labels": y},
        lambda x, y, ids: {"image": x, "images": x, "labels": y},
        lambda x, y, ids: {"image": x, "label": y, "labels": y},
        lambda x, y, ids: "batch",
        lambda x, y, ids: 3,
    ],
)
def test_batches_that_are_refused(tiny_net, faces, labels, make):
    with pytest.raises(TypeError, match=r"images: expected .*batch"):
        occfast.occlusion_map(tiny_net, loader(faces, labels, make), **CALL)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(1, 17, 14), ValueError, r"got \[1, 17, 14\]; add the missing batch or channel dimension"),
        (torch.zeros(6, 1, 17, 14).byte(), TypeError, r"got uint8; scale the pixels .*images\.float\(\) / 255"),
        (torch.zeros(6, 1, 17, 14).long(), TypeError, "got int64; scale the pixels as the model expects"),
        (torch.zeros(6, 1, 0, 14), ValueError, "images: expected at least one channel, row and column"),
        ({"images": torch.zeros(6, 1, 17, 14)}, TypeError, "images: expected a tensor, .* got dict"),
        (
            [(torch.zeros(2, 1, 17, 14), [0, 0]), (torch.zeros(2, 1, 17, 14).double(), [0, 0])],
            ValueError,
            "expected float32 as before, got float64 in batch 1",
        ),
    ],
)
def test_images_that_are_refused(tiny_net, images, error, message):
    targets = None if isinstance(images, (list, dict)) else [0] * len(images)
    with pytest.raises(error, match=message):
        occfast.occlusion_map(tiny_net, images, targets, **CALL)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["auto", "dense", "adaptive"])
def test_images_of_another_dtype_than_the_weights(tiny_net, faces, labels, dtype, method):
    with pytest.raises(TypeError, match="images: expected float32, the dtype of the model's weights, got "):
        occfast.occlusion_map(tiny_net, faces.to(dtype), labels, (6, 8), stride=4, method=method)


def test_a_model_that_converts_images_itself_takes_any_dtype(tiny_net, faces, labels):
    class Converting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_net

        def forward(self, x):
            return self.inner(x.float())

    m, n = (
        occfast.occlusion_map(model.eval(), images, labels, (6, 8), stride=4, method="dense")
        for model, images in ((Converting(), faces.double()), (tiny_net, faces))
    )
    np.testing.assert_array_equal(m.values, n.values)


def test_the_number_of_a_bad_image_is_that_of_the_caller(tiny_net, faces, labels):
    faces[4, 0, 3, 3] = torch.nan
    for method in ("dense", "sampled"):  # which takes them in random order
        with pytest.raises(ValueError, match="NaN or infinity in image 4"):
            occfast.occlusion_map(tiny_net, faces, labels, method=method, **CALL)


@pytest.mark.parametrize("size", [(np.int64(5), np.int32(4)), np.array([5, 4]), [5, 4], torch.Size([5, 4])])
def test_sizes_of_any_integer_kind(tiny_net, faces, labels, size):
    whole = occfast.occlusion_map(tiny_net, faces, labels, **CALL)
    call = {**CALL, "occluder": size, "batch_size": np.int64(16)}
    m = occfast.occlusion_map(tiny_net, faces, labels, stride=np.int64(1), memory_limit=np.int64(10**9), **call)
    assert np.array_equal(m.values, whole.values) and m.grid.occluder == (5, 4)


@pytest.mark.parametrize(
    "value", [2.0, np.float64(3), (1, 2.0), np.array([1.0, 2.0]), np.array(3.0), True, (True, 1), b"ab", None]
)
def test_sizes_that_are_no_integers(value):
    with pytest.raises(TypeError, match="stride: expected an int or two"):
        pair(value, "stride")


def test_huge_numbers(tiny_net, faces, labels):
    for stride in (2**63, 2**31, 10**400):
        with pytest.raises(ValueError, match=r"stride: expected numbers of at most 2147483647"):
            occfast.occlusion_map(tiny_net, faces, labels, stride=stride, **CALL)
    m = occfast.occlusion_map(tiny_net, faces, labels, stride=2**31 - 1, **CALL)
    assert m.values.shape == (1, 1)
    with pytest.raises(ValueError, match="batch_size: expected"):
        occfast.occlusion_map(tiny_net, faces, labels, **{**CALL, "batch_size": -(10**400)})
    with pytest.raises(ValueError, match="fill: expected a number"):
        occfast.occlusion_map(tiny_net, faces, labels, fill=10**400, **CALL)
    assert memory(np.int64(5), "m") == 5
    for size in ("0", "0.0KB", 0):
        with pytest.raises(ValueError, match="m: expected at least 1 byte"):
            memory(size, "m")


FILLS = {
    "float32 scalar": (np.float32(0.25), 0.25),
    "integer": (np.int64(1), 1.0),
    "0-d array": (np.array(0.25), 0.25),
    "float16 array": (np.full((17, 14), 0.25, np.float16), 0.25),
    "integer array": (np.ones((17, 14), np.int32), 1.0),
    "integers": ([0, 1, 1], [0.0, 1.0, 1.0]),
    "a number a channel": (np.array([0.25, 0.5, 0.75]), [0.25, 0.5, 0.75]),
    "the same as a tensor": (torch.tensor([0.25, 0.5, 0.75]), [0.25, 0.5, 0.75]),
    "mirrored": (np.array([0.75, 0.5, 0.25])[::-1], [0.25, 0.5, 0.75]),
    "NumPy numbers": ([np.float32(0.25), np.float64(0.5), np.int8(1)], [0.25, 0.5, 1.0]),
}


@pytest.mark.parametrize("name", FILLS)
def test_fills_of_any_kind(name):
    net, images = TinyNet(channels=3).eval(), torch.rand(2, 3, 17, 14)
    given, plain = FILLS[name]
    call = {**CALL, "score": "score_drop"}
    a, b = (occfast.occlusion_map(net, images, [1, 2], fill=fill, **call) for fill in (given, plain))
    assert np.array_equal(a.values, b.values)


def test_fills_that_are_refused():
    net, images = TinyNet(channels=3).eval(), torch.rand(2, 3, 17, 3)
    call = {**CALL, "occluder": (3, 3)}
    with pytest.raises(ValueError, match=r"fill: 3 numbers may be one for each channel or .*shape \[3, 1, 1\] or"):
        occfast.occlusion_map(net, images, [1, 2], fill=np.array([0.1, 0.2, 0.3]), **call)
    for fill, error in (
        (np.array([True]), TypeError),
        (torch.tensor(1j), TypeError),
        ([True], TypeError),
        (None, TypeError),
        (np.array(["a"]), TypeError),
        (torch.zeros(3, 1, 1, 1), ValueError),  # rows for three images, of which there are two
        (np.array(np.nan), ValueError),
        (torch.zeros(4, 17, 3), ValueError),
        (torch.zeros(16, 3), ValueError),
    ):
        with pytest.raises(error, match="fill: expected"):
            occfast.occlusion_map(net, images, [1, 2], fill=fill, **call)
    with pytest.raises(ValueError, match="fill: expected numbers that float16 can hold"):
        occfast.occlusion_map(net.half(), images.half(), [1, 2], fill=1e6, **call)


@pytest.mark.parametrize("score", ["error", "similarity_drop"])
def test_one_logit_is_refused(faces, score):
    targets = [0] * 6 if score == "error" else None
    with pytest.raises(ValueError, match=r"K of at least 2 .*got \[n, 1\]; a single logit x with threshold t"):
        occfast.occlusion_map(lambda x: x.mean((1, 2, 3))[:, None], faces, targets, (5, 4), score=score, progress=False)


def test_one_logit_as_two_classes(faces):
    """Classify as the error recommends: class 1 above the threshold."""

    def logit(x):
        return x.mean((1, 2, 3))[:, None] * 10

    threshold = float(logit(faces).median())
    targets = (logit(faces)[:, 0] > threshold).long()
    two = occfast.occlusion_map(
        lambda x: torch.cat([threshold - logit(x), logit(x) - threshold], 1), faces, targets, (9, 9), progress=False
    )
    assert two.n_images == 6 and 0 < two.values.mean() < 1
    one = occfast.occlusion_map(logit, faces, [0] * 6, (9, 9), score="score_drop", progress=False)
    assert (one.values > 0).all()


def test_score_drop_keeps_misclassified_images(tiny_net, faces, labels):
    """The second class of an image can be explained without a switch; each row says which image it is."""
    second = (labels + 1) % 5
    m = occfast.occlusion_map(tiny_net, faces, second, (5, 4), score="score_drop", progress=False)
    assert (m.n_images, m.n_skipped) == (6, 0)
    mixed = torch.where(torch.arange(6) % 2 == 0, labels, second)
    m = occfast.occlusion_map(tiny_net, faces, mixed, (5, 4), progress=False)
    assert m.image_indices.tolist() == [0, 2, 4] and "3 images (3 misclassified ones left out)" in repr(m)
    m = occfast.occlusion_map(
        tiny_net, faces, mixed, (5, 4), score="score_drop", progress=False, skip_misclassified=True
    )
    assert m.image_indices.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("stride", 1.5),
        ("border", 1),
        ("score", None),
        ("method", 3),
        ("skip_misclassified", 1),
        ("precision", 16),
        ("seed", 1.0),
        ("batch_size", 2.0),
        ("memory_limit", 1.5),
        ("device", 0),
        ("resume", None),
        ("progress", "yes"),
        ("model", "net"),
    ],
)
def test_wrong_types_are_type_errors(tiny_net, faces, labels, tmp_path, argument, value):
    call = dict(model=tiny_net, images=faces, labels=labels, occluder=(5, 4), checkpoint=tmp_path / "c")
    with pytest.raises(TypeError, match=f"{argument}: expected"):
        occfast.occlusion_map(**{**call, argument: value})


def test_options_are_keywords(tiny_net, faces, labels):
    with pytest.raises(TypeError, match="positional"):
        occfast.occlusion_map(tiny_net, faces, labels, (5, 4), 2)
