"""The nets, bare torch: each file holds a net and its frozen configuration; no loop, no input or output.

`build(name, sizes)` is how every stage makes a net: the configuration's fields from a plain mapping. A net names its
`task` (what it is trained for: pipelines/tasks/) and gives its `parts` (what of it runs on a host).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.pricing_lstm import PricingLSTM, PricingLSTMConfig
from models.pricing_transformer import PricingTransformer, PricingTransformerConfig
from models.surface_vae import SurfaceVAE, SurfaceVAEConfig

Net = PricingLSTM | PricingTransformer | SurfaceVAE

FAMILIES: Mapping[str, tuple[type[Any], type[Net]]] = {
    "pricing_lstm": (PricingLSTMConfig, PricingLSTM),
    "pricing_transformer": (PricingTransformerConfig, PricingTransformer),
    "surface_vae": (SurfaceVAEConfig, SurfaceVAE),
}


def build(name: str, sizes: Mapping[str, Any]) -> Net:
    """A net of the family `name`, with fresh weights."""
    config_class, net_class = FAMILIES[name]
    return net_class(config_class(**sizes))
