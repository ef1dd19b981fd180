"""The slow reference of the strategies: docs/host-rules.md, "Fixed-width quoter".

Data in: the market of an event, the contracts as they stand before any intent acts, when the gate last refused what
was asked for each (contract, buy side). Data out: intents, in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from serving.host.config_types import FixedWidth
from serving.host.reference.states import ContractState, Intent, Market, Side


def fixed_width(
    options: FixedWidth, tick_money: float, market: Market, contracts: list[ContractState],
    refused_ns: Mapping[tuple[int, bool], int],
) -> list[Intent]:  # fmt: skip
    """A bid and an ask around every contract's fair value."""
    asked: list[Intent] = []
    for place, contract in enumerate(contracts):
        if math.isnan(market.spot) or math.isnan(contract.fair):
            targets = (math.nan, math.nan)
        else:
            centre = contract.fair - options.skew_money_per_unit * contract.position
            targets = (
                math.floor((centre - options.half_width_money) / tick_money) * tick_money,
                math.ceil((centre + options.half_width_money) / tick_money) * tick_money,
            )
        for is_buy, target in zip((True, False), targets, strict=True):
            since_ns = refused_ns.get((place, is_buy))
            waits = since_ns is not None and market.event_ns - since_ns < options.retry_ns
            asked.extend(_one_side(options, place, contract, is_buy, target, waits))
    return asked


def _one_side(
    options: FixedWidth, place: int, contract: ContractState, is_buy: bool, target: float, waits: bool
) -> list[Intent]:
    side, working = (Side.BUY if is_buy else 0), contract.working(is_buy)
    if not target > 0:
        return [] if working is None else [Intent(place, side | Side.CANCEL)]
    if working is None:
        return [] if waits else [Intent(place, side | Side.NEW, target, options.quantity)]
    if abs(working.price - target) >= options.requote_money:
        return [Intent(place, side | Side.REPLACE, target, options.quantity)]
    return []
