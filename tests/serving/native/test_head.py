"""The native contract head against models.ContractHead in float64, for every instruction set and precision.

Tolerances are computed, not recorded: `correction_error` carries every rounding the kernels may do (float32 sums, bf16
or int8 weights and activations, SiLU's stated error) through the net, once as a bound that no error may pass and once
as what independent roundings add up to.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.contract_head import ContractHead, ContractHeadConfig
from serving import native
from serving.errors import EngineError

reason = native.why_unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
ISAS = native.core().isas() if reason is None else ["portable"]
PRECISIONS = ("fp32", "bf16", "int8")
every_isa = pytest.mark.parametrize("isa", ISAS)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)

ROUND32 = 2.0**-24
ROUND_BF16 = 2.0**-8
# Activations are raised by what cutting takes on average, then cut: 1 / (2 ln 2) of 2^-8 up to 2 of it less that down.
CUT_BF16 = (2.0 - 0.5 / np.log(2.0)) * 2.0**-8
SILU_SLOPE = 1.0999  # the largest of x sigmoid(x)
SILU_ERROR = 4e-7  # times max(1, |x|): what the precise kernels state
QUICK_SILU_ERROR = 5e-4  # what the quick one states
SILU_OFFSET = 0.2785
VOLATILITY_ROUNDINGS = 12 * ROUND32  # products, the division, exp's 3e-7 / 2^-24 = 5


@dataclass(frozen=True)
class Sizes:
    """K, D, W of a head."""

    features: int
    context: int
    width: int


PRODUCTION = Sizes(16, 64, 64)
ODD = Sizes(13, 7, 24)
SIZES = [PRODUCTION, ODD, Sizes(3, 1, 1), Sizes(35, 40, 100), Sizes(17, 130, 32)]


def a_head(sizes: Sizes, seed: int = 0, trust: float = 0.75) -> ContractHead:
    """A head with random weights everywhere."""
    torch.manual_seed(seed)
    head = ContractHead(ContractHeadConfig(sizes.features, sizes.context, sizes.width)).eval()
    last = head.network[-1]
    assert isinstance(last, torch.nn.Linear)
    for layer in (head.linear, last):
        torch.nn.init.normal_(layer.weight, std=0.5)
        torch.nn.init.normal_(layer.bias, std=0.5)
    head.trust.fill_(trust)
    return head


def some_contracts(sizes: Sizes, count: int, seed: int = 1, scale: float = 1.0) -> tuple[Floats, Floats]:
    """Context [D] and contracts [N, K]; the unscaled columns are a volatility and 0 or 1."""
    rng = np.random.default_rng(seed)
    contracts = rng.normal(0.0, scale, (count, sizes.features)).astype(np.float32)
    contracts[:, 0] = rng.uniform(0.05, 0.9, count)
    contracts[:, 2] = rng.random(count) < 0.8
    return rng.normal(0.0, scale, sizes.context).astype(np.float32), contracts


def tensors_of(head: ContractHead) -> dict[str, Any]:
    return {f"head.{name}": tensor.numpy() for name, tensor in head.state_dict().items()}


def sizes_of(head: ContractHead) -> dict[str, float]:
    config = head.config
    return {"contract_features": config.contract_features, "context": config.context, "head_width": config.width}


def native_head(head: ContractHead, precision: str, isa: str) -> Any:
    return native.core().Head(sizes_of(head), tensors_of(head), precision, isa)


def volatilities(bound: Any, context: Floats, contracts: Floats) -> Floats:
    iv = np.full(len(contracts), -7.0, np.float32)
    bound.volatility(context, contracts, iv)
    return iv


def expected(head: ContractHead, context: Floats, contracts: Floats) -> Doubles:
    exact = copy.deepcopy(head).double()
    with torch.no_grad():
        known = torch.from_numpy(context).double().expand(len(contracts), -1)
        found: Doubles = exact(known, torch.from_numpy(contracts).double()).numpy()
    return found


def silu(x: Doubles) -> Doubles:
    return np.asarray(x / (1.0 + np.exp(-x)))


def correction_error(head: ContractHead, context: Floats, contracts: Floats, precision: str, worst: bool) -> Doubles:
    """Error of the correction [N] before trust and unit: its bound, or the size of independent roundings together."""
    state = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    x = contracts.astype(np.float64)
    known = np.tile(context.astype(np.float64), (len(x), 1))

    def over(weights: Doubles, errors: Doubles) -> Doubles:
        """Errors [N, K] of the inputs through weights [W, K]."""
        if worst:
            return np.asarray(errors @ np.abs(weights).T)
        return np.asarray(np.sqrt(errors**2 @ (weights**2).T))

    def sums(weights: Doubles, bias: Doubles, inputs: Doubles) -> Doubles:
        """Of adding in float32 in any order; AMX leaves out products of small pieces, up to four roundings of each."""
        return np.asarray((weights.shape[1] + 8) * ROUND32 * (np.abs(inputs) @ np.abs(weights).T + np.abs(bias)))

    def activated(y: Doubles, error: Doubles) -> Doubles:
        rounded = SILU_ERROR * np.maximum(1.0, np.abs(y))
        return np.asarray(SILU_SLOPE * error + rounded + (QUICK_SILU_ERROR if precision != "fp32" else 0.0))

    first, first_bias = state["network.0.weight"], state["network.0.bias"]
    own, share = first[:, : x.shape[1]], first[:, x.shape[1] :]
    y = x @ own.T + known @ share.T + first_bias
    error = sums(first, first_bias, np.concatenate([x, known], axis=1))
    if precision != "fp32":  # int8 may multiply the first layer in bf16
        error = error + over(own, np.abs(x) * ROUND_BF16) + over(x, np.abs(own) * ROUND_BF16).T
    error = activated(y, error)
    hidden = silu(y)
    second, second_bias = state["network.3.weight"], state["network.3.bias"]
    y = hidden @ second.T + second_bias
    through = over(second, error) + sums(second, second_bias, hidden)
    if precision == "bf16":
        through += over(second, np.abs(hidden) * CUT_BF16) + over(hidden, np.abs(second) * ROUND_BF16).T
    elif precision == "int8":
        weight_step = np.abs(second).max(axis=1, keepdims=True) / 127
        largest = np.maximum(hidden.max(axis=1, keepdims=True), 0.0) + QUICK_SILU_ERROR
        hidden_step = (largest + SILU_OFFSET) / 255
        through += over(second, np.broadcast_to(0.51 * hidden_step, hidden.shape))
        through += over(hidden, np.broadcast_to(0.51 * weight_step, second.shape)).T
    error = activated(y, through)
    last, linear = state["network.6.weight"], state["linear.weight"]
    bias = np.abs(state["network.6.bias"]) + np.abs(state["linear.bias"])
    both = np.concatenate([last, linear], axis=1)
    total = over(last, error) + sums(both, bias, np.concatenate([silu(y), x], axis=1))
    return np.asarray(total[:, 0])


def volatility_error(head: ContractHead, context: Floats, contracts: Floats, precision: str, worst: bool) -> Doubles:
    iv, prior = expected(head, context, contracts), contracts[:, 0].astype(np.float64)
    share = float(head.trust) * head.config.unit * np.abs(contracts[:, 2]) / prior
    relative = share * correction_error(head, context, contracts, precision, worst)
    return np.asarray(iv * (np.expm1(relative) + VOLATILITY_ROUNDINGS))


@every_isa
@every_precision
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["usual", "far"])
def test_equals_the_torch_head(sizes: Sizes, scale: float, precision: str, isa: str) -> None:
    head = a_head(sizes)
    context, contracts = some_contracts(sizes, 333, scale=scale)
    found = volatilities(native_head(head, precision, isa), context, contracts)
    error = np.abs(found - expected(head, context, contracts))
    assert np.all(error <= volatility_error(head, context, contracts, precision, worst=True))
    usual = volatility_error(head, context, contracts, precision, worst=False)
    assert np.sqrt(np.mean(error**2)) <= 2.0 * np.sqrt(np.mean(usual**2))


@every_isa
@every_precision
def test_without_trust_the_volatility_is_the_prior(precision: str, isa: str) -> None:
    context, contracts = some_contracts(PRODUCTION, 100)
    bound = native_head(a_head(PRODUCTION, trust=0.0), precision, isa)
    assert np.array_equal(volatilities(bound, context, contracts), contracts[:, 0])


@every_isa
@every_precision
def test_without_anchors_the_volatility_is_the_prior(precision: str, isa: str) -> None:
    context, contracts = some_contracts(PRODUCTION, 100)
    contracts[::2, 2] = 0.0
    contracts[1::2, 2] = 1.0
    found = volatilities(native_head(a_head(PRODUCTION), precision, isa), context, contracts)
    assert np.array_equal(found[::2], contracts[::2, 0])
    assert not np.any(found[1::2] == contracts[1::2, 0])


@every_isa
@every_precision
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_volatility_stays_within_a_factor_e_of_the_prior(sign: float, precision: str, isa: str) -> None:
    head = a_head(PRODUCTION)
    torch.nn.init.constant_(head.linear.bias, sign * 1e6)
    context, contracts = some_contracts(PRODUCTION, 50)
    contracts[:, 2] = 1.0
    found = volatilities(native_head(head, precision, isa), context, contracts)
    limit = contracts[:, 0].astype(np.float64) * np.exp(sign)
    assert np.all(np.abs(found - limit) <= VOLATILITY_ROUNDINGS * limit)


@every_isa
@every_precision
@settings(deadline=None, max_examples=15)
@given(data=st.data(), count=st.integers(0, 130), sizes=st.sampled_from(SIZES))
def test_a_contract_is_alone(isa: str, precision: str, data: st.DataObject, count: int, sizes: Sizes) -> None:
    """Order, neighbours and number of contracts don't change a bit of any answer; memory beyond isn't touched."""
    context, contracts = some_contracts(sizes, 130)
    bound = native_head(a_head(sizes), precision, isa)
    whole = volatilities(bound, context, contracts)
    order = np.array(data.draw(st.permutations(range(130))))[:count]
    room = np.full(count + 20, -7.0, np.float32)
    bound.volatility(context, contracts[order], room[:count])
    assert np.array_equal(room[:count], whole[order])
    assert np.all(room[count:] == -7.0)


@every_isa
@every_precision
@pytest.mark.parametrize("column", [0, 1, 2, 12])
def test_nan_stays_in_its_row(column: int, precision: str, isa: str) -> None:
    context, contracts = some_contracts(ODD, 60)
    bound = native_head(a_head(ODD), precision, isa)
    before = volatilities(bound, context, contracts)
    contracts[37, column] = np.nan
    after = volatilities(bound, context, contracts)
    assert np.isnan(after[37])
    assert np.array_equal(np.delete(after, 37), np.delete(before, 37))


@every_isa
@every_precision
def test_members_are_averaged(precision: str, isa: str) -> None:
    context, contracts = some_contracts(ODD, 77)
    bounds = [native_head(a_head(ODD, seed), precision, isa) for seed in range(3)]
    iv = np.full(77, np.nan, np.float32)
    for place, bound in enumerate(bounds):
        bound.volatility(context, contracts, iv, share=1 / 3, add=place > 0)
    mean = np.mean([volatilities(bound, context, contracts).astype(np.float64) for bound in bounds], axis=0)
    assert np.all(np.abs(iv - mean) <= 6 * ROUND32 * mean)


@every_isa
@every_precision
def test_nothing_is_allocated(precision: str, isa: str) -> None:
    context, contracts = some_contracts(PRODUCTION, 500)
    bound = native_head(a_head(PRODUCTION), precision, isa)
    iv = np.zeros(500, np.float32)
    bound.volatility(context, contracts, iv)
    before = native.core().allocation_count()
    for _ in range(10):
        bound.volatility(context, contracts, iv)
    assert native.core().allocation_count() == before


def test_refuses_weights_by_name() -> None:
    head = a_head(ODD)
    core, sizes = native.core(), sizes_of(head)
    for name in tensors_of(head):
        lacking = {key: value for key, value in tensors_of(head).items() if key != name}
        with pytest.raises(EngineError, match=name):
            core.Head(sizes, lacking)
        wrong = tensors_of(head) | {name: np.zeros((2, 3, 4), np.float32)}
        with pytest.raises(EngineError, match=rf"{name}.*\(2, 3, 4\)"):
            core.Head(sizes, wrong)
    with pytest.raises(EngineError, match=r"head\.network\.9\.weight"):
        core.Head(sizes, tensors_of(head) | {"head.network.9.weight": np.zeros((1,), np.float32)})


def test_refuses_sizes_by_name() -> None:
    head = a_head(ODD)
    for name in sizes_of(head):
        with pytest.raises(EngineError, match=name):
            native.core().Head({key: value for key, value in sizes_of(head).items() if key != name}, tensors_of(head))
    with pytest.raises(EngineError, match="contract_features"):  # the formula reads column 2
        native.core().Head(sizes_of(head) | {"contract_features": 2}, tensors_of(head))


def test_refuses_names_of_precisions_and_instruction_sets_it_hasnt() -> None:
    head = a_head(ODD)
    with pytest.raises(EngineError, match="no precision 'fp16'; there are fp32, bf16, int8"):
        native.core().Head(sizes_of(head), tensors_of(head), "fp16")
    with pytest.raises(EngineError, match="no instruction set 'mmx'; there are portable"):
        native.core().Head(sizes_of(head), tensors_of(head), "fp32", "mmx")


def test_refuses_arrays_by_name() -> None:
    context, contracts = some_contracts(ODD, 9)
    bound = native_head(a_head(ODD), "fp32", "portable")
    iv = np.zeros(9, np.float32)
    with pytest.raises(EngineError, match="context"):
        bound.volatility(context[:-1], contracts, iv)
    with pytest.raises(EngineError, match="contracts"):
        bound.volatility(context, np.ascontiguousarray(contracts[:, 1:]), iv)
    with pytest.raises(EngineError, match="iv"):
        bound.volatility(context, contracts, iv[:-1])
    with pytest.raises(TypeError):  # a copy would be written to instead
        bound.volatility(context, contracts, np.zeros(18, np.float32)[::2])
