"""The torch layer is the host's Black-76: same prices, Greeks by automatic differentiation, within bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.black76 import black76_greeks, black76_price
from serving import black76

NAMES = ("forward", "strike", "tau", "volatility", "discount", "right")


def options(seed: int = 0, count: int = 2000) -> tuple[Tensor, ...]:
    """float64, strikes within four deviations of the forward."""
    rng = np.random.default_rng(seed)
    forward, tau = np.exp(rng.uniform(0, 8, count)), rng.uniform(2 / 365, 3, count)
    volatility = rng.uniform(0.05, 1.5, count)
    strike = forward * np.exp(volatility * np.sqrt(tau) * rng.uniform(-4, 4, count))
    columns = (forward, strike, tau, volatility, rng.uniform(0.7, 1.05, count), rng.choice([-1.0, 1.0], count))
    return tuple(torch.from_numpy(column) for column in columns)


def test_price_and_greeks_equal_the_hosts() -> None:
    """To 1e-12 of the forward's size; both sides are float64, written apart."""
    columns = options()
    host = black76.value(*(column.numpy() for column in columns))
    forward, _, tau, volatility, _, _ = (column.numpy() for column in columns)
    ours = {name: tensor.numpy() for name, tensor in black76_greeks(*columns).items()}
    units = {
        "price": forward, "delta": 1.0, "gamma": 1.0 / (forward * volatility * np.sqrt(tau)),
        "vega": forward * np.sqrt(tau), "theta": forward * (volatility / np.sqrt(tau) + 1.0 / tau),
    }  # fmt: skip
    for name, unit in units.items():
        assert (np.abs(ours[name] - getattr(host, name)) <= 1e-12 * unit).all(), name
    assert np.abs(black76_price(*columns).numpy() - host.price).max() <= 1e-12 * forward.max()


def test_greeks_equal_central_differences() -> None:
    columns = dict(zip(NAMES, options(1, 300), strict=True))
    forward, tau, volatility = columns["forward"], columns["tau"], columns["volatility"]
    rate = -torch.log(columns["discount"]) / tau
    found = black76_greeks(**columns)

    def price(**changed: Tensor) -> Tensor:
        now = columns | changed
        return black76_price(**(now | {"discount": torch.exp(-rate * now["tau"])}))

    h = 1e-5
    for name, wanted, unit in (
        ("forward", "delta", forward), ("volatility", "vega", volatility), ("tau", "theta", -tau),
    ):  # fmt: skip
        up, down = (price(**{name: columns[name] * (1 + sign * h)}) for sign in (1, -1))
        slope = (up - down) / (2 * h * unit)
        assert torch.allclose(found[wanted], slope, rtol=1e-5, atol=1e-7 * float((forward / unit.abs()).max()))
    step = 1e-3 * volatility * tau.sqrt() * forward
    second = (price(forward=forward + step) - 2 * price() + price(forward=forward - step)) / step**2
    assert torch.allclose(found["gamma"] * step / 1e-3, second * step / 1e-3, rtol=1e-4, atol=1e-5)


def test_greeks_keep_their_identities() -> None:
    forward, strike, tau, volatility, discount, right = options(2)
    found = black76_greeks(forward, strike, tau, volatility, discount, right)
    other = black76_greeks(forward, strike, tau, volatility, discount, -right)
    rate = -torch.log(discount) / tau
    decay = 0.5 * volatility**2 * forward**2 * found["gamma"]
    size = forward * (volatility / tau.sqrt() + rate.abs())
    assert ((found["theta"] + decay - rate * found["price"]).abs() <= 1e-11 * size).all()
    assert torch.allclose(found["vega"], forward**2 * found["gamma"] * volatility * tau, rtol=1e-9, atol=1e-12)
    parity = right * (found["price"] - other["price"]) - discount * (forward - strike)
    assert (parity.abs() <= 1e-13 * (forward + strike)).all()
    assert torch.allclose(right * (found["delta"] - other["delta"]), discount, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "room"), [(torch.float64, 1e-14), (torch.float32, 1e-5)])
def test_prices_lie_within_bounds_for_any_positive_volatility(dtype: torch.dtype, room: float) -> None:
    forward, strike, tau, _, discount, right = (column.to(dtype) for column in options(3, 500))
    for volatility in (1e-6, 1e-3, 0.2, 5.0, 100.0):
        price = black76_price(forward, strike, tau, torch.full_like(forward, volatility), discount, right)
        slack = room * (forward + strike)
        assert torch.isfinite(price).all()
        assert (price >= discount * torch.clamp(right * (forward - strike), min=0.0) - slack).all()
        assert (price <= discount * torch.where(right > 0, forward, strike) + slack).all()


def test_inputs_are_left_alone_and_nothing_stays_attached() -> None:
    columns = options(4, 10)
    before = [column.clone() for column in columns]
    found = black76_greeks(*columns)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(columns, before, strict=True))
    assert not any(tensor.requires_grad for tensor in found.values())


def test_a_loss_in_prices_reaches_the_volatility() -> None:
    forward, strike, tau, volatility, discount, right = options(5, 50)
    volatility = volatility.clone().requires_grad_(True)
    black76_price(forward, strike, tau, volatility, discount, right).sum().backward()
    vega = black76.value(*(c.detach().numpy() for c in (forward, strike, tau, volatility, discount, right))).vega
    assert volatility.grad is not None
    assert np.allclose(volatility.grad.numpy(), vega, rtol=1e-9)
