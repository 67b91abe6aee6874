"""Deletion and insertion curves against their definition."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

import occfast
from occfast.sweep import Curves, deletion_insertion

matplotlib.use("Agg")


def test_equals_the_definition(tiny_net, faces, labels):
    net, images = tiny_net.double(), faces.double()
    saliency = np.random.default_rng(0).random((6, 17, 14))
    found = deletion_insertion(net, images, labels, saliency, steps=7, fill=0.4, batch_size=5)
    assert found.deletion.shape == found.insertion.shape == (6, 8) and found.score == "probability"
    np.testing.assert_allclose(found.fractions, np.arange(8) / 7)
    with torch.no_grad():
        for n, image in enumerate(images):
            order = np.argsort(-saliency[n].ravel())
            for step in range(8):
                first = torch.zeros(17 * 14, dtype=torch.bool)
                first[torch.from_numpy(order[: round(step * 238 / 7)].copy())] = True
                first = first.view(17, 14)
                for curve, copy in (
                    (found.deletion, torch.where(first, torch.tensor(0.4, dtype=torch.float64), image)),
                    (found.insertion, torch.where(first, image, torch.tensor(0.4, dtype=torch.float64))),
                ):
                    expected = net(copy[None]).softmax(1)[0, labels[n]]
                    assert curve[n, step] == pytest.approx(float(expected), abs=1e-12)
    np.testing.assert_allclose(found.deletion_auc, trapezoid(found.deletion, found.fractions, axis=1))
    np.testing.assert_allclose(found.insertion_auc, trapezoid(found.insertion, found.fractions, axis=1))
    np.testing.assert_allclose(found.deletion[:, 0], found.insertion[:, -1])
    assert found.plot().get_legend() is not None and "deletion" in repr(found)


def test_a_map_orders_pixels_by_each_images_own_scores(tiny_net, faces, labels):
    m = occfast.occlusion_map(tiny_net, faces, labels, (5, 5), score="probability_drop", progress=False)
    whole = deletion_insertion(tiny_net, faces, labels, m, steps=10)
    own = np.stack([m.every_pixel(k) for k in range(6)])
    assert np.array_equal(whole.deletion, deletion_insertion(tiny_net, faces, labels, own, steps=10).deletion)
    mean = deletion_insertion(tiny_net, faces, labels, m.values, steps=10)
    assert not np.array_equal(whole.deletion, mean.deletion)
    # Its order is better than the reverse.
    back = deletion_insertion(tiny_net, faces, labels, -own, steps=10)
    assert whole.deletion_auc.mean() < back.deletion_auc.mean() and isinstance(back, Curves)


def test_scores_and_equal_pixels(tiny_net, faces, labels):
    flat = np.zeros((17, 14))
    one, again, other = (
        deletion_insertion(tiny_net, faces, labels, flat, steps=5, score="output", seed=seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(one.deletion, again.deletion) and not np.array_equal(one.deletion, other.deletion)
    np.testing.assert_allclose(one.deletion[:, -1], one.insertion[:, 0], rtol=1e-6)
    similar = deletion_insertion(tiny_net, faces, None, flat, steps=3, score="similarity")
    np.testing.assert_allclose(similar.deletion[:, 0], 1.0, rtol=1e-6)
    for size in (1, 2, 4):
        batches = [(part, None) for part in faces.split(size)]
        assert np.array_equal(
            deletion_insertion(tiny_net, batches, None, flat, steps=3, score="similarity").deletion, similar.deletion
        )

    def margin(outputs, labels):
        own = outputs.gather(1, labels[:, None])[:, 0]
        return own - outputs.scatter(1, labels[:, None], -torch.inf).amax(1)

    found = deletion_insertion(tiny_net, faces, labels, flat, steps=3, score=margin, fill="blur")
    assert found.score == "margin" and (found.deletion[:, 0] > 0).all()  # the labels are the network's own


BAD = {
    "saliency": (dict(saliency="map"), TypeError, r"saliency: expected a map or numbers \[H, W\]"),
    "size": (dict(saliency=np.zeros((5, 5))), ValueError, "saliency: expected finite numbers for 17x14 pixels"),
    "count": (dict(saliency=np.zeros((2, 17, 14))), ValueError, "saliency: expected one map for each image, got 2"),
    "steps": (dict(steps=0), ValueError, "steps: expected an int of at least 1"),
    "score": (dict(score="loss"), ValueError, "score: expected one of 'probability'"),
    "labels": (dict(labels=None), ValueError, r"labels: expected int64 \[N\] for score='probability'"),
    "range": (dict(labels=torch.full((6,), 9)), ValueError, r"labels: expected classes in \[0, 5\), got 9"),
    "values": (dict(score=lambda o, y: o), ValueError, "score: expected finite numbers, one for each output"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tiny_net, faces, labels, name):
    change, error, message = BAD[name]
    given = dict(labels=labels, saliency=np.zeros((17, 14)), steps=2) | change
    with pytest.raises(error, match=message):
        deletion_insertion(tiny_net, faces, **given)


def test_a_fill_for_each_image_has_as_many_rows_as_images(tiny_net, faces, labels):
    with pytest.raises(ValueError, match="fill: expected one for each image, got 7 for 6"):
        deletion_insertion(tiny_net, faces, labels, np.zeros((17, 14)), fill=torch.zeros(7, 1, 1, 1))


def test_a_score_function_takes_outputs_of_any_shape(faces):
    def mean(outputs, labels):
        return outputs.mean((1, 2, 3))

    found = deletion_insertion(lambda x: x * 2, faces, None, np.zeros((17, 14)), steps=2, score=mean)
    want = 2 * faces.double().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(found.deletion[:, 0], want, rtol=1e-6)
    alone = deletion_insertion(
        lambda x: x.mean((1, 2, 3)), faces, None, np.zeros((17, 14)), steps=2, score=lambda o, _: o
    )
    np.testing.assert_allclose(2 * alone.deletion, found.deletion, rtol=1e-5, atol=1e-7)
