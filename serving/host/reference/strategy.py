"""The slow reference of the strategies: docs/host-rules.md, "Fixed-width quoter".

Data in: the market of an event and the contracts as they stand before any intent acts. Data out: intents, in order.
"""

from __future__ import annotations

import math

from serving.host.loop import FixedWidth
from serving.host.reference.states import ContractState, Intent, Market, Side


def fixed_width(options: FixedWidth, tick_money: float, market: Market, contracts: list[ContractState]) -> list[Intent]:
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
            asked.extend(_one_side(options, place, contract, is_buy, target))
    return asked


def _one_side(options: FixedWidth, place: int, contract: ContractState, is_buy: bool, target: float) -> list[Intent]:
    side, working = (Side.BUY if is_buy else 0), contract.working(is_buy)
    if not target > 0:
        return [] if working is None else [Intent(place, side | Side.CANCEL)]
    if working is None:
        return [Intent(place, side | Side.NEW, target, options.quantity)]
    if abs(working.price - target) >= options.requote_money:
        return [Intent(place, side | Side.REPLACE, target, options.quantity)]
    return []
