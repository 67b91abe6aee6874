"""PDSN on a GPU (``make gpu-check``)."""

from __future__ import annotations

import pytest
import torch

from occfast.pdsn import UNet, build_dictionary, difference_labels, identify, match, segment, train_generators
from tests.pdsn.test_identify import bands, problem
from tests.pdsn.test_segmentation import faces
from tests.pdsn.toys import toy_base, toy_images, toy_regions

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("soft", [False, True])
def test_matching_equals_the_cpu_to_the_bit(soft):
    gallery, labels, probes, (masks, group) = problem(soft)
    here = match(gallery, labels, probes, (masks, group), k=70)
    there = match(gallery.cuda(), labels.cuda(), probes.cuda(), (masks.cuda(), group.cuda()), k=70)
    assert torch.equal(here.neighbors, there.neighbors.cpu()) and torch.equal(here.labels, there.labels.cpu())
    assert torch.equal(here.similarities, there.similarities.cpu())


def test_every_step_on_the_device():
    base, (images, labels) = toy_base().cuda(), toy_images(each=6)
    quick = dict(epochs=3, batch_size=9, progress=False)
    generators = train_generators(base, toy_regions(), images, labels, **quick)
    assert all(parameter.is_cuda for parameter in generators.parameters())
    dictionary = build_dictionary(base, toy_regions(), [(images, labels)], generators=generators, progress=False)
    probes, occlusion = bands(toy_images(each=4, seed=5)[0])
    there = identify(base, dictionary, images, labels, probes, occlusion)
    here = identify(base.cpu(), dictionary, images, labels, probes, occlusion)
    torch.testing.assert_close(there.similarities.cpu(), here.similarities, rtol=0, atol=1e-4)


def test_images_may_live_on_the_device():
    base, (images, labels) = toy_base().cuda(), toy_images(each=6)
    quick = dict(epochs=2, batch_size=9, progress=False)
    a = train_generators(base, toy_regions(), images, labels, **quick)
    b = train_generators(base, toy_regions(), images.cuda(), labels.cuda(), **quick)
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(tensor, b.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_labels_by_cupy_equal_scikit_image():
    pytest.importorskip("cupyx")
    clean, covered, _ = faces(6, 0)
    here, there = difference_labels(clean, covered), difference_labels(clean.cuda(), covered.cuda())
    assert there.is_cuda and torch.equal(here, there.cpu())


def test_segments_on_the_device():
    network, (_, covered, _) = UNet(1, width=0.05).eval(), faces(4, 0)
    assert (segment(network, covered) == segment(network.cuda(), covered).cpu()).double().mean() > 0.999
