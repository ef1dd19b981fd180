"""Black-76 over arrays: shapes, input without meaning, the caller's own arrays, and which implementation runs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from serving import black76, native
from serving.black76 import OUTPUTS, Valuation, implied_volatility, price, value, value_into
from serving.errors import EngineError
from tests.serving.options import CHOOSE, EPSILON, IMPLEMENTATIONS, grid, implementation

__all__ = ["implementation"]  # fixtures


def test_scalars_broadcasting_and_nothing() -> None:
    alone = value(100.0, 95.0, 0.5, 0.2, 0.98, -1.0)
    table = value(np.array([[100.0], [101.0]]), [95.0, 100.0, 105.0], 0.5, 0.2, 0.98, -1)
    for name in OUTPUTS:
        assert np.shape(getattr(alone, name)) == ()
        assert getattr(table, name).shape == (2, 3)
        assert getattr(table, name)[0, 0] == getattr(alone, name)
    empty = value([], 100.0, 1.0, 0.2, 1.0, 1.0)
    assert all(getattr(empty, name).shape == (0,) for name in OUTPUTS)
    assert value(np.zeros((0, 3)) + 1.0, 100.0, 1.0, 0.2, 1.0, 1.0).price.shape == (0, 3)


BAD = [
    (place, bad)
    for place, values in enumerate([
        (0.0, -1.0, np.nan, np.inf), (0.0, -1.0, np.nan, np.inf), (-1e-9, np.nan, np.inf), (-1e-9, np.nan, np.inf),
        (0.0, -0.5, np.nan, np.inf), (0.0, 2.0, -0.5, np.nan),
    ])
    for bad in values
]  # fmt: skip


@pytest.mark.parametrize(("place", "bad"), BAD)
def test_bad_input_is_nan_and_spoils_no_neighbour(place: int, bad: float) -> None:
    columns = np.tile(np.array([[100.0], [95.0], [0.5], [0.2], [0.98], [1.0]]), 3)
    good = value(*columns[:, 0])
    columns[place, 1] = bad
    worth: Valuation = value(*columns)
    for name in OUTPUTS:
        assert np.isnan(getattr(worth, name)[1])
        assert (getattr(worth, name)[[0, 2]] == getattr(good, name)).all()


def test_edges_of_the_numbers_stay_finite() -> None:
    """Every positive finite input has a finite, bounded price, and no Greek is NaN: no 0 times infinity inside."""
    sizes = np.array([1e-290, 1e-3, 1.0, 1e3, 1e100])
    f, k = (column.ravel() for column in np.meshgrid(sizes, sizes))
    for deviation in (1e-300, 1e-9, 1.0, 50.0, 1e150):
        for w in (1.0, -1.0):
            worth = value(f, k, 1.0, deviation, 0.9, w)
            assert (worth.price >= 0.0).all()
            assert (worth.price <= 0.9 * (f if w > 0 else k) * (1 + 4 * EPSILON)).all()
            for name in ("delta", "vega", "theta", "rho", "vanna", "volga"):
                assert not np.isnan(getattr(worth, name)).any(), name


def test_value_into_writes_what_value_returns_and_nothing_else(implementation: str) -> None:
    columns = [np.ascontiguousarray(column) for column in grid()]
    whole = value(*columns)
    for names in (("price",), ("vega", "delta"), OUTPUTS):
        own = {name: np.full(len(columns[0]), -7.0) for name in names}
        value_into(*columns, **own)
        for name in names:
            assert np.array_equal(own[name], getattr(whole, name)), name
    columns[4] = np.array([0.97])  # one for all
    expected, found = value(*columns).theta, np.empty(len(columns[0]))
    value_into(*columns, theta=found)
    assert np.array_equal(found, expected)
    if implementation != "numpy":
        before = native.core().allocation_count()
        value_into(*columns, theta=found)
        assert native.core().allocation_count() == before


def test_an_output_may_be_an_inputs_own_array() -> None:
    columns = [np.ascontiguousarray(column) for column in grid()]
    expected = price(*columns)
    value_into(*columns, price=columns[3])
    assert np.array_equal(columns[3], expected)


@pytest.mark.parametrize(
    ("name", "array"),
    [("strike", np.ones(2)), ("price", np.ones(3, dtype=np.float32)), ("delta", np.ones((3, 1))),
     ("vega", np.ones(6)[::2]), ("tau", np.ones(3, dtype=np.int64)), ("rho", np.ones(4)), ("volga", np.array(1.0)),
     ("forward", np.array(1.0)), ("strike", np.ones(3, ">f8")), ("vanna", np.zeros(25, np.uint8)[1:].view(np.float64)),
     ("discount", np.zeros(25, np.uint8)[1:].view(np.float64))],
)  # fmt: skip
def test_value_into_refuses_by_name(name: str, array: np.ndarray) -> None:
    inputs = dict.fromkeys(("forward", "strike", "tau", "volatility", "discount", "right"), np.ones(3))
    outputs = {"theta": np.ones(3)}
    (inputs if name in inputs else outputs)[name] = array
    with pytest.raises(ValueError, match=f"value_into: {name}: expected contiguous float64"):
        value_into(**outputs, **inputs)


def test_value_into_refuses_what_is_no_array() -> None:
    with pytest.raises(ValueError, match="value_into: price: expected a NumPy array, found list"):
        value_into(*[np.ones(3)] * 6, price=[0.0] * 3)  # type: ignore[arg-type]


def test_any_memory_is_read() -> None:
    """Strides, the other byte order, bytes at odd addresses, read-only memory: one value."""
    strikes = np.linspace(90.0, 110.0, 5)
    odd = np.zeros(5 * 8 + 1, np.uint8)[1:].view(np.float64)
    odd[:] = strikes
    frozen = strikes.copy()
    frozen.flags.writeable = False
    expected = price(100.0, strikes, 0.5, 0.2, 0.98, 1.0)
    for one in (strikes[::-1][::-1], np.repeat(strikes, 2)[::2], strikes.astype(">f8"), odd, frozen):
        assert np.array_equal(price(100.0, one, 0.5, 0.2, 0.98, 1.0), expected)
    assert price(100.0, odd[:1], 0.5, 0.2, 0.98, 1.0) == expected[0]
    found, _ = implied_volatility(expected, 100.0, odd, 0.5, 0.98, 1.0)
    assert np.allclose(found, 0.2, rtol=1e-9, atol=0.0)


def test_value_into_refuses_what_it_may_not_write() -> None:
    frozen = np.ones(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"value_into: vega: .* not writeable"):
        value_into(*[frozen] * 6, vega=frozen)


def test_value_into_wants_an_output() -> None:
    with pytest.raises(ValueError, match="no output is wanted"):
        value_into(*[np.ones(3)] * 6)


@pytest.fixture
def undecided(implementation: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """`_core` as it is, deciding anew."""
    fresh = functools.cache(CHOOSE)
    monkeypatch.setattr(black76, "_core", fresh)
    monkeypatch.delenv(black76.CHOICE, raising=False)
    return monkeypatch


def test_without_the_native_core_numpy_runs_and_says_so(undecided: pytest.MonkeyPatch) -> None:
    undecided.setattr(native, "why_unavailable", lambda: "not built")
    assert black76.implementation() == "numpy"
    assert price(100.0, 100.0, 1.0, 0.0, 1.0, 1.0) == 0.0


def test_the_native_core_runs_where_it_is(undecided: pytest.MonkeyPatch) -> None:
    if len(IMPLEMENTATIONS) == 1:
        pytest.skip(f"no native core: {native.why_unavailable()}")
    assert black76.implementation() == f"native_{native.core().choose_isa()}"


def test_numpy_can_be_asked_for(undecided: pytest.MonkeyPatch) -> None:
    undecided.setenv(black76.CHOICE, "numpy")
    assert black76.implementation() == "numpy"


def test_native_asked_for_and_absent_is_an_error(undecided: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError("no such file")

    undecided.setattr(native, "_load", absent)
    undecided.setenv(black76.CHOICE, "native")
    with pytest.raises(EngineError, match="native core isn't here"):
        price(100.0, 100.0, 1.0, 0.2, 1.0, 1.0)
    undecided.setenv(black76.CHOICE, "fortran")
    with pytest.raises(EngineError, match="no implementation 'fortran'"):
        black76.implementation()
