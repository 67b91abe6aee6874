"""The supervised loop and the jitter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from occfast.train import Epoch, Jitter, fit, predict


def problem(n: int = 60) -> tuple[Tensor, Tensor]:
    """Three classes: which third of the image is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    images = 0.3 * torch.randn(n, 1, 6, 6, generator=generator)
    for k in range(3):
        images[labels == k, :, 2 * k : 2 * k + 2] += 1
    return images, labels


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def test_it_learns_and_tells_how() -> None:
    images, labels = problem()
    model, told = network(), []
    history = fit(model, images, labels, epochs=30, batch_size=10, learning_rate=1e-2, on_epoch=told.append)
    assert not model.training
    assert (predict(model, images).argmax(1) == labels).double().mean() > 0.95
    assert told == history.epochs and [epoch.number for epoch in told] == list(range(1, 31))
    assert isinstance(told[0], Epoch) and told[-1].loss < told[0].loss / 2
    assert history.seconds > 0


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator() -> None:
    images, labels = problem()

    def trained(seed: int) -> list[Tensor]:
        model = network()
        before = torch.get_rng_state()
        fit(model, images, labels, epochs=2, batch_size=10, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)  # what others draw in between doesn't matter
        return list(model.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(trained(1), trained(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(trained(1), trained(2), strict=True))


def test_sample_ids_are_others_in_each_epoch_and_cover_all_images() -> None:
    images, labels = problem(20)
    seen: list[Tensor] = []

    def transform(batch: Tensor, sample_ids: Tensor, _: torch.Generator) -> Tensor:
        assert torch.equal(batch, images[sample_ids % 20])
        seen.append(sample_ids)
        return batch

    fit(network(), images, labels, epochs=3, batch_size=5, transform=transform)
    assert torch.cat(seen).sort().values.tolist() == list(range(60))


def test_one_step_is_adamw_on_the_cross_entropy() -> None:
    images, labels = problem(8)
    images, model = images.double(), nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    weight, bias = (p.detach().clone().requires_grad_() for p in model[1].parameters())
    loss = -(images.flatten(1) @ weight.T + bias).log_softmax(1)[torch.arange(8), labels].mean()
    loss.backward()
    # The first step of Adam moves each number by the learning rate against its gradient's sign; decay is apart.
    expected = weight * (1 - 1e-3 * 0.1) - 1e-3 * weight.grad / (weight.grad.abs() + 1e-8)
    history = fit(model, images, labels, epochs=1, batch_size=8, learning_rate=1e-3, weight_decay=0.1)
    torch.testing.assert_close(model[1].weight.detach(), expected.detach())
    torch.testing.assert_close(model[1].bias.detach(), (bias - 1e-3 * bias.grad / (bias.grad.abs() + 1e-8)).detach())
    assert history.epochs[0].loss == pytest.approx(float(loss.detach()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs: expected an int of at least 1, got 0"),
        ({"epochs": 1, "batch_size": 0}, ValueError, "batch_size: expected an int of at least 1"),
        ({"epochs": 1, "labels": torch.zeros(5, dtype=torch.int64)}, ValueError, r"labels: .*\[60\], got \[5\]"),
        ({"epochs": "3"}, TypeError, "epochs: expected an int, got '3'"),
        ({"epochs": 1, "learning_rate": float("nan")}, ValueError, "learning_rate: expected a number above 0, got nan"),
        ({"epochs": 1, "learning_rate": None}, TypeError, "learning_rate"),
        ({"epochs": 1, "labels": torch.zeros(60)}, TypeError, "labels: expected dtype int64, got float32"),
        ({"epochs": 1, "images": torch.zeros(0, 1, 6, 6)}, ValueError, "images: expected"),
        ({"epochs": 50, "learning_rate": 1e30}, ValueError, "learning_rate: the loss is no longer finite in epoch"),
    ],
)
def test_errors(arguments: dict, error: type[Exception], message: str) -> None:
    images, labels = problem()
    with pytest.raises(error, match=message):
        fit(network(), **{"images": images, "labels": labels, **arguments})


def test_predict_restores_the_mode() -> None:
    model = network().train()
    images, _ = problem(7)
    assert torch.equal(predict(model, images, batch_size=3), predict(model, images, batch_size=3))
    assert model.training


def still(**changes: float) -> Jitter:
    return Jitter(**{"flip": 0.0, "shift": 0.0, "scale": 0.0, "turn": 0.0, "gain": 0.0, "offset": 0.0, **changes})


def test_jitter_without_ranges_changes_nothing_and_mirrors_exactly() -> None:
    images = torch.rand(4, 1, 12, 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    torch.testing.assert_close(still()(images, generator), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(still(flip=1.0)(images, generator), images.flip(3), rtol=0, atol=1e-5)


def test_jitter_stays_within_its_ranges() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.full((500, 1, 4, 4), 0.5)
    out = still(offset=0.1)(images, generator)
    assert 0.4 <= float(out.min()) < 0.41 and 0.59 < float(out.max()) <= 0.6
    # A bright point in the middle of 101×101 moves by at most the shift, along each axis.
    point = torch.zeros(200, 1, 101, 101)
    point[:, :, 50, 50] = 1
    out = still(shift=0.1)(point, generator)
    place = torch.arange(101.0)
    rows = (out.sum((1, 3)) * place).sum(1) / out.sum((1, 2, 3)) - 50
    columns = (out.sum((1, 2)) * place).sum(1) / out.sum((1, 2, 3)) - 50
    for moved in (rows, columns):
        assert 9 < float(moved.abs().max()) < 10.2
    assert abs(float(torch.corrcoef(torch.stack([rows, columns]))[0, 1])) < 0.3
    assert torch.equal(
        Jitter()(images, torch.Generator().manual_seed(5)), Jitter()(images, torch.Generator().manual_seed(5))
    )


def test_jitter_turns_without_shear() -> None:
    # A disc stays a disc of its area in an image that is no square.
    i, j = torch.meshgrid(torch.arange(80.0), torch.arange(60.0), indexing="ij")
    disc = (((i - 39.5) ** 2 + (j - 29.5) ** 2) < 15**2).float()
    out = still(turn=45.0)(disc.expand(20, 1, 80, 60), torch.Generator().manual_seed(0))
    torch.testing.assert_close(out.sum((1, 2, 3)), disc.sum().expand(20), rtol=0.01, atol=0)
    assert (out - disc).abs().mean() < 0.02
