"""The networks: sizes against hand counts, names, tracing, gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from occfast.models import PaperNet, build, iresnet18, resnet18, resnet34, resnet50


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_paper_net_has_the_parameters_counted_by_hand() -> None:
    # (inputs · 9 + 1) · outputs of each convolution, worked out from the paper's table of channels.
    convolutions = 320 + 18496 + 36928 + 73856 + 110688 + 166080 + 221312 + 295168 + 368800 + 461120
    assert convolutions == 1_752_768
    assert count(PaperNet(10575)) == convolutions + (320 + 1) * 10575
    assert count(PaperNet(40)) == convolutions + 321 * 40


def test_paper_net_quarter_width() -> None:
    model = PaperNet(40, width=0.25)
    pairs = ((1, 8), (8, 16), (16, 16), (16, 32), (32, 24), (24, 48), (48, 32), (32, 64), (64, 40), (40, 80))
    assert count(model) == sum((a * 9 + 1) * b for a, b in pairs) + 81 * 40
    assert model.feature_size == 80


def test_paper_net_layout() -> None:
    model = PaperNet(40).eval()
    kinds = [type(m).__name__ for m in model.convolutions]
    assert kinds.count("Conv2d") == 10 and kinds.count("ReLU") == 9 and kinds.count("MaxPool2d") == 4
    assert kinds[-1] == "Conv2d"  # no ReLU after the last convolution
    sizes: list[tuple[int, int]] = []
    for module in model.convolutions:
        if isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[-2:])))
    x = torch.randn(2, 1, 100, 100)
    features = model.features(x)
    assert sizes == [(50, 50), (25, 25), (13, 13), (7, 7)]
    assert features.shape == (2, 320)
    assert (features < 0).any()
    torch.testing.assert_close(model(x), model.classifier(features))


def test_paper_net_equals_the_plain_definition() -> None:
    torch.manual_seed(0)
    model = PaperNet(7, width=0.125).double().eval()
    x = torch.randn(2, 1, 100, 100, dtype=torch.float64)
    out = x
    convolutions = [m for m in model.convolutions if isinstance(m, nn.Conv2d)]
    for number, conv in enumerate(convolutions):
        out = torch.nn.functional.conv2d(out, conv.weight, conv.bias, padding=1)
        if number < 9:
            out = out.clamp_min(0)
        if number % 2 and number < 9:  # a partial window holds what is left of the image
            odd = (0, out.shape[-1] % 2, 0, out.shape[-2] % 2)
            out = torch.nn.functional.pad(out, odd, value=-torch.inf).unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
    out = out.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(x), out)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = PaperNet(5, width=0.125, dropout=0.5)
    x = torch.randn(2, 1, 100, 100)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_paper_net_seed_gradient_and_trace(batch_norm: bool) -> None:
    def build() -> PaperNet:
        torch.manual_seed(3)
        return PaperNet(6, width=0.125, batch_norm=batch_norm)

    model, twin = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    x = torch.randn(3, 1, 100, 100)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    traced = fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)
    assert all(not (isinstance(m, nn.ReLU) and m.inplace) for m in model.modules())


@pytest.mark.parametrize(
    ("build", "parameters", "size"),
    [
        # torchvision's counts for 1,000 classes and three channels.
        (resnet18, 11_689_512, 512),
        (resnet34, 21_797_672, 512),
        (resnet50, 25_557_032, 2048),
    ],
)
def test_resnets(build, parameters: int, size: int) -> None:
    assert count(build(1000)) == parameters
    model = build(10, channels=1, width=16).eval()
    x = torch.randn(2, 1, 128, 96)
    assert model.maps(x).shape == (2, size // 4, 4, 3)
    assert model.features(x).shape == (2, model.feature_size) == (2, size // 4)
    traced = fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


def test_resnet_names_are_torchvisions() -> None:
    names = set(resnet34(10).state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.num_batches_tracked",
        "layer3.5.bn2.bias",
        "layer4.2.conv2.weight",
        "fc.weight",
        "fc.bias",
    } <= names
    assert not any(name.startswith("layer1.0.downsample") for name in names)
    assert any(name.startswith("layer1.0.downsample") for name in resnet50(10).state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "classes: expected an int of at least 1, got 0"),
        ({"classes": 3, "width": 0}, "width: expected a number above 0"),
        ({"classes": 3, "dropout": 1.0}, "dropout: expected a probability"),
    ],
)
def test_paper_net_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaperNet(**arguments)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (PaperNet, {"classes": "three"}),
        (PaperNet, {"classes": 3, "width": None}),
        (PaperNet, {"classes": 3, "batch_norm": "yes"}),
        (resnet18, {"classes": 3.0}),
        (resnet18, {"classes": 3, "channels": None}),
        (iresnet18, {"feature_size": "512"}),
        (iresnet18, {"dropout": "0"}),
    ],
)
def test_arguments_of_a_wrong_type(make: type, arguments: dict) -> None:
    with pytest.raises(TypeError, match=list(arguments)[-1]):
        make(**arguments)


def test_modules_in_the_current_folder_are_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "her_network.py").write_text(
        "from torch import nn\n\n\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, classes))\n"
    )
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with pytest.raises(ValueError, match=r"network: 'her_network:net' can't be imported \(No module named"):
        build("her_network:net", 3, channels=1, size=(2, 2))
    monkeypatch.chdir(tmp_path)
    assert build("her_network:net", 3, channels=1, size=(2, 2))[1].out_features == 3
    with pytest.raises(
        ValueError, match=r"network: her_network:net failed with classes=None .* leave its classifier out"
    ):
        build("her_network:net", None, channels=1, size=(2, 2))
    with pytest.raises(ValueError, match="network: her_network:net takes no argument width; it takes none"):
        build("her_network:net", 3, channels=1, size=(2, 2), width=2)
    with pytest.raises(ValueError, match="takes no argument norm; it takes width, batch_norm, dropout"):
        build("paper", 3, channels=1, size=(100, 100), norm=True)


def test_resnet_errors() -> None:
    with pytest.raises(ValueError, match="classes: expected an int of at least 1, got 0"):
        resnet18(0)
