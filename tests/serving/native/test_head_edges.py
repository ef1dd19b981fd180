"""The native contract head where padding and rounding could show: narrow nets, tiles of every size, tiny weights, NaN.

How near it comes to torch's is test_head.py's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.serving.native.test_head import (
    ODD,
    PRODUCTION,
    Sizes,
    a_head,
    every_isa,
    every_precision,
    native_head,
    pytestmark,
    some_contracts,
    volatilities,
)

__all__ = ["pytestmark"]


@every_isa
@every_precision
@pytest.mark.parametrize("width", [1, 4, 5, 9, 17, 33])
def test_every_tile_answers_the_same_whatever_the_width(width: int, precision: str, isa: str) -> None:
    """Widths are padded to whole vectors; a tile of one, two or three vectors gives each contract the same bits."""
    sizes = Sizes(3, 1, width)
    context, contracts = some_contracts(sizes, 48)
    bound = native_head(a_head(sizes), precision, isa)
    whole = volatilities(bound, context, contracts)
    for count in (1, 8, 16, 17, 24, 32, 33):
        assert np.array_equal(volatilities(bound, context, contracts[:count]), whole[:count]), count


@every_isa
@every_precision
@pytest.mark.parametrize("size", [1e-45, 1e-44, 2.6e-43, 1e-38, 1e-31])
def test_weights_near_nothing_are_nothing(size: float, precision: str, isa: str) -> None:
    """Weight decay leaves rows of subnormal numbers, of which no scale can be made: they count for zero."""
    head = a_head(ODD)
    second = head.network[3]
    assert isinstance(second, torch.nn.Linear)
    with torch.no_grad():
        second.weight[5] = 0.0
        context, contracts = some_contracts(ODD, 50)
        without = volatilities(native_head(head, precision, isa), context, contracts)
        second.weight[5] = torch.linspace(-size, size, ODD.width)
    assert np.array_equal(volatilities(native_head(head, precision, isa), context, contracts), without)


@every_isa
@every_precision
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sizes", [PRODUCTION, ODD], ids=str)
def test_a_context_that_is_no_number_prices_nothing(sizes: Sizes, bad: float, precision: str, isa: str) -> None:
    """A net that was fed NaN says so until it is reset: bytes have no NaN, and must not make numbers of it."""
    context, contracts = some_contracts(sizes, 100)
    bound = native_head(a_head(sizes), precision, isa)
    before = volatilities(bound, context, contracts)
    spoiled = context.copy()
    spoiled[1] = bad
    assert np.isnan(volatilities(bound, spoiled, contracts)).all()
    assert np.array_equal(volatilities(bound, context, contracts), before)
