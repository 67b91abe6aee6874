"""Mask generators on a base whose receptive fields are known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from occfast import DataError, LargeMarginCosine
from occfast.models import PaperNet, iresnet18, resnet18
from occfast.pdsn import Base, Generators, MaskGenerator, as_base, build_dictionary, grid, pdsn_loss, train_generators
from occfast.pdsn.generator import cover
from tests.pdsn.toys import CHANNELS, DIRTY, SIZE, toy_base, toy_images, toy_regions

QUICK = dict(epochs=25, patience=25, batch_size=30, learning_rate=0.02, progress=False)


@pytest.fixture(scope="module")
def base() -> Base:
    return toy_base()


@pytest.fixture(scope="module")
def generators(base):
    return train_generators(base, toy_regions(), *toy_images(), **QUICK)


def test_learns_the_dirty_features(base, generators):
    """Every feature that the band corrupts gets a lower mean mask than every feature of the other rows."""
    images, labels = toy_images(seed=1)
    dictionary = build_dictionary(base, toy_regions(), [(images, labels)], generators=generators, progress=False)
    for k, rows in enumerate(DIRTY):
        dirty = torch.zeros(CHANNELS, 4, 3, dtype=torch.bool)
        dirty[:, rows] = True
        # A feature that never fires differs nowhere: no pair can tell that it is dirty.
        clean = base.all_maps(images)
        covered = base.all_maps(cover(images, toy_regions().boxes[k].expand(len(images), 4), torch.rand(len(images))))
        alive = ((clean - covered).abs().mean(0) > 0.02) == dirty
        mean = dictionary.means[k]
        assert mean[dirty & alive].max() < mean[~dirty & alive].min(), dictionary.regions.names[k]
        share = 100 * dirty.double().mean().item()
        kept = dictionary.with_percentile(share).masks[k]
        assert (kept[alive] == ~dirty[alive]).double().mean() > 0.98


def test_masking_helps_the_covered_images(base, generators):
    images, labels = toy_images(seed=2)
    regions = toy_regions()
    dictionary = build_dictionary(base, regions, [(images, labels)], generators=generators, progress=False)
    clean = base.all_maps(images)
    for k in range(3):
        covered = base.all_maps(cover(images, regions.boxes[k].expand(len(images), 4), torch.ones(len(images))))
        before = F.cosine_similarity(clean.flatten(1), covered.flatten(1)).mean()
        mask = dictionary.masks[k]
        after = F.cosine_similarity((clean * mask).flatten(1), (covered * mask).flatten(1)).mean()
        assert after > before + 0.05


def test_the_generator_is_the_papers():
    m = MaskGenerator(CHANNELS)
    assert [type(layer) for layer in m] == [nn.Conv2d, nn.PReLU, nn.BatchNorm2d, nn.Sigmoid]
    x = torch.rand(3, CHANNELS, 4, 3)
    assert m(x).shape == x.shape and m(x).min() > 0 and m(x).max() < 1


def test_loss_by_hand(base):
    images, labels = toy_images(each=2)
    clean = base.all_maps(images)
    covered = base.all_maps(1 - images)
    masks = torch.rand_like(clean)
    loss = pdsn_loss(base, masks, clean, covered, labels, 7.0)
    mae = (masks * clean - masks * covered).abs().mean()
    a = F.cross_entropy(base.head(base.tail(masks * clean)), labels)
    b = F.cross_entropy(base.head(base.tail(masks * covered)), labels)
    torch.testing.assert_close(loss.difference, mae)
    torch.testing.assert_close(loss.classification, (a + b) / 2)
    torch.testing.assert_close(loss.total, (a + b) / 2 + 7 * mae)


def test_the_margin_is_the_heads_own(base):
    images, labels = toy_images(each=2)
    head = LargeMarginCosine(CHANNELS * 12, 5, scale=8.0, margin=0.35)
    cosine = Base(base.trunk, base.tail, head)
    maps = cosine.all_maps(images)
    with torch.no_grad():
        torch.testing.assert_close(cosine.logits(maps, labels), head(maps.flatten(1), labels))
        torch.testing.assert_close(cosine.logits(maps), head(maps.flatten(1)))


def test_the_base_stays_as_it_was(base):
    base.train()  # the caller's mode; statistics must not move all the same
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    train_generators(base, toy_regions(), *toy_images(each=6), **{**QUICK, "epochs": 2, "batch_size": 9})
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert base.training and all(p.requires_grad and p.grad is None for p in base.parameters())
    base.eval()


def test_each_region_has_its_own_generator():
    torch.manual_seed(0)
    bank = Generators(toy_regions(), CHANNELS).eval()
    x, region = torch.rand(7, CHANNELS, 4, 3), torch.tensor([2, 0, 1, 1, 2, 2, 0])
    out = bank(x, region)
    for k in range(7):
        torch.testing.assert_close(out[k], bank.each[region[k]](x[k : k + 1])[0])


def test_same_seed_same_bits_and_the_seed_matters(base):
    data = toy_images(each=6)
    few = {**QUICK, "epochs": 3, "batch_size": 9}
    a, b, c = (train_generators(base, toy_regions(), *data, **few, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(a.state_dict()[name], tensor) for name, tensor in b.state_dict().items())
    assert any(not torch.equal(a.state_dict()[name], tensor) for name, tensor in c.state_dict().items())


def test_resumed_equals_uninterrupted(base, tmp_path):
    data, few = toy_images(each=6), {**QUICK, "epochs": 5, "batch_size": 9}
    whole = train_generators(base, toy_regions(), *data, **few)
    path = tmp_path / "generators.pt"

    class Killed(Exception):
        pass

    def kill(epoch):
        if epoch.number == 3:
            raise Killed

    with pytest.raises(Killed):
        train_generators(base, toy_regions(), *data, **few, checkpoint=path, checkpoint_every=0, on_epoch=kill)
    assert path.exists()
    seen = []
    resumed = train_generators(base, toy_regions(), *data, **few, checkpoint=path, on_epoch=seen.append)
    assert seen[0].number == 3 and len(resumed.history) == 5  # epoch 2 was the last that was written
    assert not path.exists()
    assert all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in resumed.state_dict().items())
    assert [e.loss for e in whole.history] == [e.loss for e in resumed.history]


def test_a_checkpoint_of_something_else_is_refused(base, tmp_path):
    data, few = toy_images(each=6), {**QUICK, "batch_size": 9}
    path = tmp_path / "generators.pt"

    def kill(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_generators(base, toy_regions(), *data, **few, checkpoint=path, checkpoint_every=0, on_epoch=kill)
    with pytest.raises(ValueError, match=r"another training, which differs in seed"):
        train_generators(base, toy_regions(), *data, **few, checkpoint=path, seed=1)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="damaged"):
        train_generators(base, toy_regions(), *data, **few, checkpoint=path)


def test_stops_when_nothing_gets_better(base):
    data = toy_images(each=6)
    found = train_generators(
        base, toy_regions(), *data, **{**QUICK, "epochs": 60, "patience": 2, "learning_rate": 1e-7}
    )
    assert 3 <= len(found.history) < 20


def test_saved_and_loaded(base, generators, tmp_path):
    path = generators.save(tmp_path / "g.pt")
    again = Generators.load(path)
    assert again.base == base.fingerprint() and again.regions.to_json() == generators.regions.to_json()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in generators.state_dict().items())
    assert len(again.history) == len(generators.history)
    content = torch.load(path)
    torch.save({**content, "state": {k: v.to(torch.complex64) for k, v in content["state"].items()}}, path)
    with pytest.raises(DataError, match="has dtype complex64, expected float32"):
        Generators.load(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError):
        Generators.load(path)


def test_cover_is_a_block_of_one_gray():
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    box = torch.tensor([[0, 0, 4, 12], [5, 2, 9, 7]])
    out = cover(images, box, torch.tensor([0.25, 1.0]))
    assert bool((out[0, :, :4] == 0.25).all()) and bool((out[1, :, 5:9, 2:7] == 1).all())
    torch.testing.assert_close(out[0, :, 4:], images[0, :, 4:] / 255)


def test_networks_of_the_package_are_cut():
    net = resnet18(4, channels=1, width=4).eval()
    base, x = as_base(net, mean=0.0, std=1.0), torch.rand(2, 1, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(base(x), net(x))
        torch.testing.assert_close(base.maps(x), net.maps(x))
    paper = PaperNet(4, width=0.1).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            as_base(paper, mean=0.0, std=1.0)(torch.ones(1, 1, 100, 100)), paper(torch.ones(1, 1, 100, 100))
        )
    embedding = iresnet18(channels=1, width=4, size=(64, 48), feature_size=16).eval()
    with torch.no_grad():
        cut = as_base(embedding, mean=0.0, std=1.0)
        torch.testing.assert_close(cut(x), embedding(x))
        torch.testing.assert_close(cut.maps(x), embedding.maps(x))
    with pytest.raises(TypeError, match=r"Base\(trunk, tail, head\)"):
        as_base(nn.Linear(2, 2))


def test_maps_are_twice_as_large_without_the_first_pooling():
    x = torch.rand(1, 3, 128, 96)
    with torch.no_grad():
        assert resnet18(None, width=4).maps(x).shape == (1, 32, 4, 3)
        assert resnet18(None, width=4, stem_pool=False).maps(x).shape == (1, 32, 8, 6)


def test_fingerprint_tells_weights_statistics_and_layers():
    def make() -> Base:
        torch.manual_seed(0)
        return as_base(resnet18(4, channels=1, width=4))

    a, b = make(), make()
    assert a.fingerprint() == b.fingerprint()
    b.trunk.bn1.running_mean += 1e-3
    assert a.fingerprint() != b.fingerprint()
    c = make()
    c.trunk.maxpool = nn.Identity()
    assert a.fingerprint() != c.fingerprint() and a.fingerprint() != as_base(resnet18(4), std=0.25).fingerprint()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(batch_size=2), "batch_size"),
        (dict(weight=-1.0), "weight"),
        (dict(epochs=0), "epochs"),
        (dict(patience=0), "patience"),
        (dict(intensity=(0.8, 0.2)), "intensity"),
        (dict(kernel=2), "kernel"),
        (dict(seed=-1), "seed"),
    ],
)
def test_bad_settings(base, change, match):
    with pytest.raises(ValueError, match=match):
        train_generators(base, toy_regions(), *toy_images(each=2), **{**QUICK, **change})


def test_bad_data(base):
    images, labels = toy_images(each=2)
    with pytest.raises(ValueError, match="images"):
        train_generators(base, grid(3, 3, (20, 20)), images, labels, **QUICK)
    with pytest.raises(ValueError, match="labels"):
        train_generators(base, toy_regions(), images, labels[:-1], **QUICK)
    with pytest.raises(TypeError, match="int64"):
        train_generators(base, toy_regions(), images, labels.float(), **QUICK)
    with pytest.raises(ValueError, match="without"):
        train_generators(Base(base.trunk, base.tail), toy_regions(), images, labels, **QUICK)
    with pytest.raises(TypeError, match="uint8 or floating"):
        train_generators(base, toy_regions(), images.long(), labels, **QUICK)
