"""The nets, bare torch: each file holds a net and its frozen configuration; no loop, no input or output.

`build(name, sizes)` is how every stage makes a net: the configuration's fields from a plain mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.pricing_lstm import PricingLSTM, PricingLSTMConfig

FAMILIES = {"pricing_lstm": (PricingLSTMConfig, PricingLSTM)}


def build(name: str, sizes: Mapping[str, Any]) -> PricingLSTM:
    """A net of the family `name`, with fresh weights."""
    config_class, net_class = FAMILIES[name]
    return net_class(config_class(**sizes))
