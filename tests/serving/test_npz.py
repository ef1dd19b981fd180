"""What a hostile npz can cost: no memory beyond its size (other refusals: tests/contract/test_bundle_arrays.py)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from serving.errors import BundleError
from serving.npz import FREE_BYTES, MAX_RATIO, parse_npz
from tests.zip_bombs import bombs, npz_bytes_compressed


def peak_bytes(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_without_being_inflated(name: str) -> None:
    raw = bombs()[name]()

    def refused() -> None:
        with pytest.raises(BundleError, match=r"^bomb\.npz: "):
            parse_npz(raw, "bomb.npz")

    assert peak_bytes(refused) < 4 << 20


def test_what_compresses_well_is_read_up_to_the_limits() -> None:
    small = np.zeros((FREE_BYTES >> 4, 1))
    assert np.array_equal(parse_npz(npz_bytes_compressed(a=small), "x")["a"], small)
    large = np.zeros((FREE_BYTES >> 3, 1))
    noise = np.random.default_rng(0).normal(size=(2 * FREE_BYTES // MAX_RATIO) >> 3)
    assert set(parse_npz(npz_bytes_compressed(a=large, b=noise), "x")) == {"a", "b"}
    with pytest.raises(BundleError, match=r"x: 1 arrays, \d+ bytes unpacked; of \d+ bytes at most 1024 and \d+"):
        parse_npz(npz_bytes_compressed(a=large), "x")
