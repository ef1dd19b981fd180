"""What a surface would be under three laws of how it moves with the underlying, each made to meet the anchors.

In: the surface last seen (smoothed), the underlying now, the anchors. Out: `Laws`, volatilities [N] of an expiry's
strikes under each of

    sticky strike      sigma(K) = last(K)
    sticky moneyness   sigma(x) = last(x),           x = ln(K/F) / sqrt(tau), F the forward of now
    scaled smile       sigma(x) = s last(x / s),     s = volatility at the money now over that last seen

plus what the anchors quote beyond it (serving/anchor_field.py). Markets lie between them; the nets learn where, from
the first, which is their prior. Sources: E. Derman, "Regimes of volatility" (1999), for the first two; the third keeps
a smile the same function of standard deviations.

Invariants: every law gives an anchor its own volatility of now; without anchors the surface only moves, by its law; on
a flat surface they are all the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from serving.anchor_field import AnchorField
from serving.last_seen import Anchor, LastSeen, LastSmile, forward_deviation
from serving.normal import Array
from serving.surface import ExpiryKey

SMALLEST_LEVEL = 0.02  # volatility at the money that a scaled smile may come down to; one seen lower stays there
FARTHEST = 100.0  # of moneyness: every smile is flat long before, and exponentials don't overflow


class Laws(NamedTuple):
    """Volatilities [N] under each law, and the anchors' field [N] that the first one holds."""

    sticky_strike: Array
    sticky_moneyness: Array
    scaled: Array
    shift: Array


class LawsOfMotion:
    """The laws at one time, ready for any expiry."""

    def __init__(self, last: LastSeen, anchors: list[Anchor], spot: float) -> None:
        self.last, self.spot = last, spot
        self.deviation = forward_deviation(anchors)
        tau = np.array([anchor.tau for anchor in anchors])
        now = np.array([anchor.volatility for anchor in anchors])
        self._x = np.array([self._moneyness(a.key, np.array([a.strike]), a.tau)[0] for a in anchors])
        smiles = [last.smiles[anchor.key] for anchor in anchors]
        strikes = [np.array([anchor.strike]) for anchor in anchors]
        stuck = np.array([smile.smooth_at(at)[0] for smile, at in zip(smiles, strikes, strict=True)])
        moved = np.array([s.smooth_at_moneyness(self._x[[place]])[0] for place, s in enumerate(smiles)])
        self._stuck = AnchorField.through(tau, self._x, now - stuck)
        self._moved = AnchorField.through(tau, self._x, now - moved)
        scaled = np.array([self._scale(s, a.tau, self._x[[place]])[0]
                           for place, (s, a) in enumerate(zip(smiles, anchors, strict=True))])  # fmt: skip
        self._scaled = AnchorField.through(tau, self._x, now - scaled)

    def forward(self, key: ExpiryKey) -> float:
        """The forward of now: the carried one, put right by what the anchors' pairs say of all forwards."""
        return self.last.carried_forward(key, self.spot) * float(np.exp(self.deviation))

    def at(self, key: ExpiryKey, strike: Array, tau: float) -> Laws:
        """Volatilities of an expiry's strikes; KeyError where the expiry wasn't seen."""
        smile, x = self.last.smiles[key], self._moneyness(key, strike, tau)
        shift = self._stuck.at(tau, x)
        return Laws(
            smile.smooth_at(strike) + shift,
            smile.smooth_at_moneyness(x) + self._moved.at(tau, x),
            self._scale(smile, tau, x) + self._scaled.at(tau, x),
            shift,
        )

    def _moneyness(self, key: ExpiryKey, strike: Array, tau: float) -> Array:
        return np.asarray(np.log(strike / self.forward(key)) / np.sqrt(tau))

    def _scale(self, smile: LastSmile, tau: float, x: Array) -> Array:
        at_the_money = np.zeros(1)
        level = float(smile.smooth_at_moneyness(at_the_money)[0])
        now = max(level + float(self._moved.at(tau, at_the_money)[0]), min(level, SMALLEST_LEVEL))
        scale = now / level
        return scale * smile.smooth_at_moneyness(np.clip(x / scale, -FARTHEST, FARTHEST))
