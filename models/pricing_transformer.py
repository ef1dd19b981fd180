"""pricing_transformer: a causal transformer encoder over the market sequence, and the contract head.

Shapes: B snapshots, T steps, F step features, E width, H heads, L layers, W band, D context. In every layer a step
attends to itself and the W-1 steps before it, with a learned bias per head and distance (no absolute positions). So
the keys and values of the last W-1 steps are all a layer needs to know of the past: a ring of them, carried by `step`,
gives what `encode` gives, however long the sequence. The window is run from zero state (`window` semantics); its first
steps see fewer than W.

Sources: Vaswani et al. (2017); bias per distance after Raffel et al. (2020); bands after Beltagy et al. (2020); layer
norm first after Xiong et al. (2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.parts import Tensors
from models.pricing import PricingNet


@dataclass(frozen=True)
class PricingTransformerConfig:
    """Sizes; `step_features`, `contract_features` and `window` come from the feature spec; `heads` divides `width`."""

    step_features: int
    contract_features: int
    window: int
    width: int = 32
    heads: int = 4
    layers: int = 2
    band: int = 10
    context: int = 16
    head_width: int = 64
    dropout: float = 0.1


class BandedLayer(nn.Module):
    """One encoder layer: banded causal attention, then a feed-forward network, each around a residual."""

    def __init__(self, width: int, heads: int, band: int, dropout: float) -> None:
        super().__init__()
        assert width % heads == 0, "checked by the configuration"
        self.heads, self.band = heads, band
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.distance_bias = nn.Parameter(torch.zeros(heads, band))
        self.mix = nn.Linear(width, width)
        self.forward_norm = nn.LayerNorm(width)
        self.network = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def project(self, x_BTE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, [B, T, E] each."""
        query, key, value = self.query_key_value(self.attention_norm(x_BTE)).chunk(3, dim=-1)
        return query, key, value

    def attend(self, query_BTE: Tensor, key_BSE: Tensor, value_BSE: Tensor, bias_HTS: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed values [B, T, E] and weights [B, H, T, S]; `bias` is -inf where a step may not look."""
        query, key, value = (self._split(x) for x in (query_BTE, key_BSE, value_BSE))
        scores_BHTS = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias_HTS
        weights_BHTS = torch.softmax(scores_BHTS, dim=-1)
        mixed_BTE = (weights_BHTS @ value).transpose(1, 2).flatten(-2)
        return self.mix(mixed_BTE), weights_BHTS

    def _split(self, x_BTE: Tensor) -> Tensor:
        batch, steps, width = x_BTE.shape
        return x_BTE.view(batch, steps, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """The whole sequence: outputs [B, T, E] and weights [B, H, T, T]."""
        steps = torch.arange(x_BTE.shape[1], device=x_BTE.device)
        distance_TS = steps.unsqueeze(1) - steps.unsqueeze(0)
        hidden_TS = (distance_TS < 0) | (distance_TS >= self.band)
        bias_HTS = self.distance_bias[:, distance_TS.clamp(0, self.band - 1)].masked_fill(hidden_TS, float("-inf"))
        mixed_BTE, weights = self.attend(*self.project(x_BTE), bias_HTS)
        return self._forward_network(x_BTE + mixed_BTE), weights

    def step(self, x_11E: Tensor, keys_RE: Tensor, values_RE: Tensor, seen_1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The newest step: output [1, 1, E], and the rings of the R = W-1 last keys and values with it at their end."""
        query, key, value = self.project(x_11E)
        keys_WE, values_WE = torch.cat([keys_RE, key[0]]), torch.cat([values_RE, value[0]])
        distance_W = torch.arange(self.band - 1, -1, -1, device=x_11E.device)
        bias_HW = self.distance_bias.flip(1).masked_fill(distance_W > seen_1, float("-inf"))
        mixed_11E, _ = self.attend(query, keys_WE.unsqueeze(0), values_WE.unsqueeze(0), bias_HW.unsqueeze(1))
        return self._forward_network(x_11E + mixed_11E), keys_WE[1:], values_WE[1:]

    def _forward_network(self, x_BTE: Tensor) -> Tensor:
        out: Tensor = x_BTE + self.network(self.forward_norm(x_BTE))
        return out


class PricingTransformer(PricingNet):
    """Transformer encoder; see `PricingNet`."""

    def __init__(self, config: PricingTransformerConfig) -> None:
        super().__init__(config)
        self.config = config
        self.embed = nn.Linear(config.step_features, config.width)
        self.layers = nn.ModuleList(
            BandedLayer(config.width, config.heads, config.band, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, config.context)

    def _context(self, last_BE: Tensor) -> Tensor:
        return torch.tanh(self.project(self.norm(last_BE)))

    def _run(self, window_BTF: Tensor) -> tuple[Tensor, Tensor]:
        x_BTE = self.embed(window_BTF)
        weights = x_BTE
        for layer in self.layers:
            x_BTE, weights = layer(x_BTE)
        return x_BTE, weights

    def encode(self, window_BTF: Tensor) -> Tensor:
        return self._context(self._run(window_BTF)[0][:, -1])

    def attention(self, window_BTF: Tensor) -> Tensor:
        """Of the last layer, the last step's weights, averaged over the heads."""
        return self._run(window_BTF)[1][:, :, -1].mean(1)

    def step(self, x_1F: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """States: rings of keys and values [L, W-1, E], oldest first; seen [1], steps that stand in them (at most
        W-1)."""
        keys_LRE, values_LRE, seen_1 = states
        x_11E = self.embed(x_1F).unsqueeze(1)
        keys, values = [], []
        for place, layer in enumerate(self.layers):
            assert isinstance(layer, BandedLayer)
            x_11E, ring_of_keys, ring_of_values = layer.step(x_11E, keys_LRE[place], values_LRE[place], seen_1)
            keys.append(ring_of_keys)
            values.append(ring_of_values)
        seen = torch.clamp(seen_1 + 1.0, max=float(self.config.band - 1))
        return self._context(x_11E[:, 0]), torch.stack(keys), torch.stack(values), seen

    def step_tensors(self) -> tuple[Tensors, Tensors]:
        size = self.config
        ring = (size.layers, size.band - 1, size.width)
        names = (("keys", ring), ("values", ring), ("seen", (1,)))
        return names, tuple((f"{name}_out", shape) for name, shape in names)
