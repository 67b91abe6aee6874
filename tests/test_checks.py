"""Errors about arguments stay one readable line, whatever was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from occfast import checks

PICTURE = torch.zeros(2, 3, 64, 64)


@pytest.mark.parametrize(
    "check",
    [checks.pair, checks.number, checks.integer, checks.flag, checks.memory, checks.seed],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("value", [PICTURE, PICTURE.numpy(), [PICTURE] * 2, {"images": list(range(10_000))}])
def test_an_array_in_the_wrong_place_is_named_not_printed(check: Callable[..., Any], value: object) -> None:
    with pytest.raises(TypeError, match=r"^size: expected") as caught:
        check(value, "size")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_small_values_are_shown_as_they_are() -> None:
    for value in (3, "a", (1, 2), np.array([1, 2]), torch.tensor([1.5]), None):
        assert checks.shown(value) == repr(value)
    assert checks.shown(PICTURE) == "a Tensor of [2, 3, 64, 64]"
    assert checks.shown(np.zeros((4, 4))) == "a ndarray of [4, 4]"
