"""Weights: ours, arcface_torch's, and what is neither."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from occfast import DataError, LargeMarginCosine
from occfast.models import (
    IResNet,
    PaperNet,
    Preprocessing,
    build,
    iresnet18,
    iresnet34,
    iresnet50,
    iresnet100,
    resnet18,
)
from occfast.models.registry import to_channels_last
from occfast.models.tensor_files import read_state_dict, read_tensors, write_tensors
from occfast.train import Trained, load_into, load_network


def trained() -> Trained:
    network = PaperNet(5, width=0.125, batch_norm=True).to(memory_format=torch.channels_last).eval()
    alignment = {"template": "paper-100", "points": ((40.0, 31.0),)}
    p = Preprocessing((100, 100), "gray", 0.5, 0.25, alignment)
    spec = {"name": "paper", "classes": 5, "arguments": {"width": 0.125, "batch_norm": True}}
    return Trained(network, p, spec, ["Ada", "Zoë", "c", "d", "e"], None, {"step": 7})


def test_files_tell_of_themselves(tmp_path: Path) -> None:
    one = trained()
    one.save(tmp_path / "best.safetensors")
    other = load_network(tmp_path / "best.safetensors")
    images = torch.randint(0, 256, (3, 1, 100, 100), dtype=torch.uint8)
    assert torch.equal(other.classifier()(other.preprocessing(images)), one.network(one.preprocessing(images)))
    assert torch.equal(other.embed(images), one.embed(images)) and not other.network.training
    assert (other.people, other.spec, other.about) == (one.people, one.spec, one.about)
    other.preprocessing.require(one.preprocessing)
    one.preprocessing.require(other.preprocessing)
    assert one.save(tmp_path / "again.safetensors").read_bytes() == (tmp_path / "best.safetensors").read_bytes()
    # Any tool finds the plain names.
    assert read_state_dict(tmp_path / "best.safetensors").keys() == one.network.state_dict().keys()


def test_heads_go_beside(tmp_path: Path) -> None:
    network, head = (
        iresnet18(width=8, size=(32, 32), feature_size=16).eval(),
        LargeMarginCosine(16, 4, scale=30.0, margin=0.2),
    )
    p = Preprocessing((32, 32), "RGB")
    spec = {"name": "iresnet18", "classes": None, "arguments": {"width": 8, "feature_size": 16}}
    Trained(network, p, spec, list("abcd"), head, {"head": True}).save(tmp_path / "best.safetensors")
    loaded = load_network(tmp_path / "best.safetensors")
    assert isinstance(loaded.head, LargeMarginCosine) and (loaded.head.scale, loaded.head.margin) == (30.0, 0.2)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.classifier()(x), head(network(x)))
    assert set(read_state_dict(tmp_path / "best.safetensors")) == set(network.state_dict())
    (tmp_path / "best-head.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="best-head"):
        load_network(tmp_path / "best.safetensors")
    with pytest.raises(ValueError, match="classifier: expected a network that was trained to classify"):
        Trained(network, p, spec).classifier()


def test_code_of_others_runs_only_if_trusted(tmp_path: Path) -> None:
    one = trained()
    one.spec["name"] = "tests.train.tiny:Net"
    one.save(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="whose code runs only with trust=True"):
        load_network(tmp_path / "w.safetensors")


# -- arcface_torch -----------------------------------------------------------------------------------------


def arcface_shapes(layers: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict of arcface_torch's iresnet, written down from its definition."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, size: int) -> None:
        shapes.update({f"{name}.{k}": (size,) for k in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (64, 3, 3, 3)
    norm("bn1", 64)
    shapes["prelu.weight"] = (64,)
    before = 64
    for stage, (blocks, after) in enumerate(zip(layers, (64, 128, 256, 512), strict=True), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            norm(f"{name}.bn1", before)
            shapes[f"{name}.conv1.weight"] = (after, before, 3, 3)
            norm(f"{name}.bn2", after)
            shapes[f"{name}.prelu.weight"] = (after,)
            shapes[f"{name}.conv2.weight"] = (after, after, 3, 3)
            norm(f"{name}.bn3", after)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (after, before, 1, 1)
                norm(f"{name}.downsample.1", after)
            before = after
    norm("bn2", 512)
    shapes |= {"fc.weight": (512, 512 * 7 * 7), "fc.bias": (512,)}
    norm("features", 512)
    return shapes


@pytest.mark.parametrize(
    ("make", "layers", "parameters"),
    [
        (iresnet18, (2, 2, 2, 2), 24_025_600),
        (iresnet34, (3, 4, 6, 3), 34_139_328),
        (iresnet50, (3, 4, 14, 3), 43_590_848),
        (iresnet100, (3, 13, 30, 3), 65_156_160),
    ],
)
def test_arcface_names_and_shapes(make: type[IResNet], layers: tuple[int, ...], parameters: int) -> None:
    with torch.device("meta"):
        network = make()
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert found == arcface_shapes(layers)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("wrapped", ["plain", "module.", "state_dict_backbone"])
def test_arcface_state_dicts_load_without_renaming(wrapped: str, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, shape in arcface_shapes((2, 2, 2, 2)).items():
        noise = 0.05 * torch.randn(shape, generator=random)
        state[name] = noise.abs() + 0.5 if name.endswith("running_var") else noise
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(9)
    content: object = state
    if wrapped == "module.":
        content = {f"module.{name}": tensor for name, tensor in state.items()}
    elif wrapped != "plain":
        content = {"epoch": 3, "global_step": 100, wrapped: state}
    torch.save(content, tmp_path / "model.pt")
    network = iresnet18()
    assert load_into(network, tmp_path / "model.pt") == []
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())


def test_an_iresnet_is_what_its_definition_says() -> None:
    torch.manual_seed(0)
    network = iresnet18(width=4, size=(32, 24), feature_size=8).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    s = network.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, var, scale, shift = (
            s[f"{name}.{k}"].view(shape) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def prelu(x: Tensor, name: str) -> Tensor:
        return torch.where(x > 0, x, x * s[f"{name}.weight"].view(1, -1, 1, 1))

    conv = torch.nn.functional.conv2d
    x = torch.randn(2, 3, 32, 24, dtype=torch.float64)
    out = prelu(norm(conv(x, s["conv1.weight"], padding=1), "bn1"), "prelu")
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 - block
            y = prelu(
                norm(conv(norm(out, f"{name}.bn1"), s[f"{name}.conv1.weight"], padding=1), f"{name}.bn2"),
                f"{name}.prelu",
            )
            y = norm(conv(y, s[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn3")
            if block == 0:
                out = norm(conv(out, s[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
            out = out + y
    maps = norm(out, "bn2")
    assert maps.shape == (2, 32, 2, 2)
    torch.testing.assert_close(network.maps(x), maps)
    torch.testing.assert_close(network(x), norm(maps.flatten(1) @ s["fc.weight"].T + s["fc.bias"], "features"))
    assert not network.features.weight.requires_grad
    torch.fx.symbolic_trace(network)


# -- loading into a network ----------------------------------------------------------------------------------


def test_a_classifier_is_left_behind_or_begun_anew() -> None:
    a = PaperNet(5, width=0.125).state_dict()
    assert load_into(PaperNet(None, width=0.125), a) == ["classifier.weight", "classifier.bias"]
    other = PaperNet(9, width=0.125)
    with pytest.raises(
        ValueError, match=r"weights: don't fit the network: classifier.bias has shape \[5\], expected \[9\]"
    ):
        load_into(other, a)
    before = other.classifier.weight.clone()
    load_into(other, a, fresh_classifier=True)
    assert torch.equal(other.classifier.weight, before)
    assert torch.equal(other.state_dict()["convolutions.0.weight"], a["convolutions.0.weight"])
    assert load_into(resnet18(None, width=4), resnet18(5, width=4).state_dict()) == ["fc.weight", "fc.bias"]
    # The fully connected layer of an iResNet is no classifier.
    with pytest.raises(ValueError, match=r"missing fc.bias, fc.weight"):
        state = iresnet18(width=4, size=(16, 16)).state_dict()
        load_into(iresnet18(width=4, size=(16, 16)), {k: v for k, v in state.items() if not k.startswith("fc.")})


def test_missing_and_surplus_names_are_told() -> None:
    state = PaperNet(5, width=0.125).state_dict()
    state["extra"] = state.pop("convolutions.0.bias")
    with pytest.raises(ValueError, match=r"missing convolutions.0.bias; not of this network extra"):
        load_into(PaperNet(5, width=0.125), state)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


@pytest.mark.parametrize("content", [b"", b"not a file of weights", pickle.dumps(Evil()), b"PK\x03\x04" + b"0" * 50])
def test_files_that_hold_no_weights(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: not a (file of weights|(whole )?.safetensors file)"):
            read_state_dict(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    state = {"a": torch.zeros(1)}
    for held, message in (
        ({"epoch": 3}, "expected a state dict: names and tensors, got epoch"),
        ([state], "expected a state dict: names and tensors, got list"),
        ({}, "expected a state dict: names and tensors, got nothing"),
        (
            {"teacher": state, "student": state},
            "expected one state dict, got several: teacher, student; save the wanted",
        ),
    ):
        torch.save(held, tmp_path / "none.pt")
        with pytest.raises(DataError, match=rf"none.pt: {message}"):
            read_state_dict(tmp_path / "none.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "trust"),
    [(b"", False), (b"neither", False), (pickle.dumps(Evil()), True), (b"PK\x03\x04" + b"0" * 50, True)],
)
def test_trust_is_not_recommended_for_files_without_a_pickle(content: bytes, trust: bool, tmp_path: Path) -> None:
    from occfast.models import load

    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DataError, match=r"w.pth: not a file of weights") as found:
        load(tmp_path / "w.pth")
    assert ("--trust" in str(found.value)) == trust
    assert trust or "(neither an archive of PyTorch nor a pickle)" in str(found.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"people": ["a"]}, "people: expected 3 names, one for each class, got 1"),
        ({"people": ["a", "b", "a"]}, "people: expected a name of its own for every class"),
        ({"people": [1, 2, 3]}, "people: expected a name of its own for every class"),
        ({"alignment": {}}, "alignment: expected None or the record of an alignment, got {}"),
        ({"alignment": 3}, "alignment: expected None or the record of an alignment, got 3"),
        ({"size": [100.5, 100]}, "size: expected an int"),
    ],
)
def test_descriptions_that_contradict_the_network(change: dict, message: str, tmp_path: Path) -> None:
    network = PaperNet(3, width=0.125)
    spec = {"name": "paper", "classes": 3, "arguments": {"width": 0.125}}
    path = tmp_path / "w.safetensors"
    Trained(network, Preprocessing((100, 100), "gray"), spec, ["a", "b", "c"]).save(path)
    tensors, about = read_tensors(path)
    assert load_network(path).people == ["a", "b", "c"]
    place = about if "people" in change else about["preprocessing"]
    place.update(change)
    write_tensors(path, tensors, about)
    with pytest.raises(DataError, match=message):
        load_network(path)


def test_other_safetensors_are_not_taken_for_networks(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"format": "pt"})
    assert read_tensors(tmp_path / "a.safetensors")[1] == {}
    with pytest.raises(DataError, match="no architecture is recorded in this file; name it with network="):
        load_network(tmp_path / "a.safetensors")
    about = {"kind": "occfast.network", "network": {}, "people": [], "about": {}, "preprocessing": {}}
    write_tensors(tmp_path / "b.safetensors", {"a": torch.zeros(1)}, about)
    with pytest.raises(DataError, match=r"b.safetensors: not a whole description of a network"):
        load_network(tmp_path / "b.safetensors")


# -- preprocessing and building --------------------------------------------------------------------------------


def test_preprocessing_scales_orders_and_refuses() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8)
    rgb, bgr = Preprocessing((8, 6), "RGB"), Preprocessing((8, 6), "BGR")
    torch.testing.assert_close(rgb(images), images.float() / 127.5 - 1)
    assert torch.equal(bgr(images), rgb(images).flip(1))
    assert Preprocessing.from_json(bgr.to_json()) == bgr
    for other, message in (
        (bgr, "the weights expect color RGB, got BGR"),
        (Preprocessing((8, 8), "RGB"), r"the weights expect size \(8, 6\), got \(8, 8\)"),
        (Preprocessing((8, 6), "RGB", std=0.25), "the weights expect std 0.5, got 0.25"),
    ):
        with pytest.raises(ValueError, match=message):
            rgb.require(other)
    aligned = [Preprocessing((8, 6), alignment={"template": name}) for name in ("a", "b")]
    with pytest.raises(ValueError, match="faces aligned to a, got b"):
        aligned[0].require(aligned[1])
    Preprocessing((8, 6)).require(aligned[0])
    aligned[0].require(Preprocessing((8, 6), alignment={"template": "a", "color": "gray"}))
    with pytest.raises(TypeError, match="images: expected uint8, got float32"):
        rgb(images.float())
    with pytest.raises(ValueError, match=r"images: expected \[N, 1, 8, 6\], got \[2, 3, 8, 6\]"):
        Preprocessing((8, 6))(images)
    with pytest.raises(DataError, match="x: not a description of preprocessing"):
        Preprocessing.from_json('{"size": 3}', "x")


def test_build_hands_on_what_a_network_takes() -> None:
    assert build("paper", 7, channels=1, size=(100, 100), width=0.125).classifier.out_features == 7
    assert build("resnet34", None, channels=1, size=(64, 64), width=4).fc is None
    assert build("iresnet18", channels=1, size=(32, 48), width=4).fc.in_features == 32 * 2 * 3
    assert isinstance(build("torch.nn:Flatten", 3, channels=1, size=(4, 4)), nn.Flatten)
    for name, message in (
        ("vgg", "network: expected one of paper"),
        ("nowhere:net", "can't be imported"),
        ("torch.nn:pi", "can't be imported"),
        ("tests.train.tiny:recipe", "to give a torch.nn.Module, got Recipe"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            build(name, 3, channels=1, size=(4, 4))


# -- files of other programs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "container",
    ["state_dict", "net_state_dict", "backbone", "model", "model_state_dict", "state_dict_ema", "params", None],
)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.model.", "net.0."]
)
def test_state_dicts_are_found_wherever_programs_put_them(container: str | None, prefix: str, tmp_path: Path) -> None:
    network = PaperNet(None, width=0.125)
    state = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(state if container is None else {"epoch": 3, container: state}, tmp_path / "w.pt")
    other = PaperNet(None, width=0.125)
    assert load_into(other, tmp_path / "w.pt") == []
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_what_lies_beside_a_prefix_is_returned(tmp_path: Path) -> None:
    network = PaperNet(None, width=0.125)
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": {**state, "head.weight": torch.zeros(3, 40)}}, tmp_path / "w.pt")
    other = PaperNet(None, width=0.125)
    assert load_into(other, tmp_path / "w.pt") == ["head.weight"]
    assert torch.equal(other.state_dict()["convolutions.0.weight"], network.state_dict()["convolutions.0.weight"])
    # A classifier of the network's own may lack in the file if it begins anew.
    fresh = PaperNet(4, width=0.125)
    assert load_into(fresh, tmp_path / "w.pt", fresh_classifier=True, classes=4) == ["head.weight"]
    del state["backbone.convolutions.0.bias"]
    with pytest.raises(ValueError, match=r"weights: don't fit the network: missing convolutions.0.bias"):
        load_into(PaperNet(None, width=0.125), state)


def test_plain_weights_load_with_a_named_architecture(tmp_path: Path) -> None:
    network, p = iresnet18(width=4, size=(32, 24), feature_size=8).eval(), Preprocessing((32, 24), "RGB")
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pth")
    images = torch.randint(0, 256, (3, 3, 32, 24), dtype=torch.uint8)
    arguments = {"width": 4, "feature_size": 8}
    loaded = load_network(tmp_path / "w.pth", network="iresnet18", arguments=arguments, preprocessing=p)
    to_channels_last(network, 3, p.size)  # as loaded
    assert torch.equal(loaded.embed(images), network(p(images))) and not loaded.network.training
    again = load_network(loaded.save(tmp_path / "w.safetensors"))  # now the file records it
    assert torch.equal(again.embed(images), loaded.embed(images)) and again.preprocessing == p
    with pytest.raises(DataError, match=r"w.pth: no architecture is recorded in this file; name it with network="):
        load_network(tmp_path / "w.pth")
    with pytest.raises(ValueError, match="preprocessing: expected together with network"):
        load_network(tmp_path / "w.pth", network="iresnet18")
    with pytest.raises(ValueError, match=r"w.pth: don't fit the network: not of this network bn2.bias"):
        load_network(tmp_path / "w.pth", network="resnet18", preprocessing=p)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.onnx", b"\x08\x07\x12\x07pytorch", r"a.onnx: not a file of weights \(this looks like ONNX\)"),
        (
            "a.safetensors",
            b"PK\x03\x04" + b"0" * 50,
            r"not a .safetensors file \(this looks like a PyTorch file, .pt or .pth\)",
        ),
        ("a.safetensors", b"\x80\x04N.", r"not a .safetensors file \(this looks like a pickle\)"),
        ("a.safetensors", b"", "not a whole .safetensors file"),
    ],
)
def test_files_of_another_kind_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_network(tmp_path / name)
