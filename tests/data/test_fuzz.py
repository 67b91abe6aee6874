"""No file makes a parser do anything but read it or raise DataError; ``python -m tests.fuzz`` looks for longer."""

from __future__ import annotations

import contextlib
import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import mutate
from tests.fuzz.parsers import targets

TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_read(name: str, tmp_path) -> None:
    read = 0
    for content in TARGETS[name].seeds:
        try:
            TARGETS[name].parse(content, tmp_path)
            read += 1
        except TARGETS[name].errors:
            continue
    assert read >= (1 if name in ("bin", "rec") else len(TARGETS[name].seeds))  # those have seeds that go deep and fail


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**64))
def test_mutated_files(name: str, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    target, chance = TARGETS[name], random.Random(seed)
    content = target.mutate(chance, chance.choice(target.seeds), target.seeds, mutate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(*target.errors):
            target.parse(content, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=20)
@given(content=st.binary(max_size=60))
def test_any_bytes(name: str, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(*TARGETS[name].errors):
            TARGETS[name].parse(content, tmp_path_factory.getbasetemp())
