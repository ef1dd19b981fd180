"""What the anchors say of every tenor and moneyness: a surface through their gaps.

In: the anchors' tenors, moneyness and gaps (today's volatility minus that of some law), the tenors and moneyness asked
for. Out: the gap there, volatility.

sqrt(tau) gap = level(tau) + profile(tau, x). The profile of an expiry with several anchors is linear in moneyness
between them, flat outside, and 0 at the money; between such expiries it is linear in ln(tau), flat outside. The level
takes what is left at the money, linear in ln(tau) between all anchored expiries, flat outside.

Invariants: the field passes through every anchor (those of one tenor and moneyness are averaged first); it is linear in
the gaps; with one anchor per tenor it is the term structure of docs/conventions.md, the same for every strike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.normal import Array


@dataclass(frozen=True)
class AnchorField:
    """`log_tau` [A] and `level` [A] of the anchored expiries; `profiles`: ln(tau), moneyness and values of those with
    several anchors. Levels and profiles are in units of sqrt(years) times volatility."""

    log_tau: Array
    level: Array
    profiles: tuple[tuple[float, Array, Array], ...]

    @classmethod
    def through(cls, tau: Array, moneyness: Array, gap: Array) -> AnchorField:
        """The field of anchors at `tau` [A] (years) and `moneyness` [A] with `gap` [A] (volatility)."""
        nodes = np.unique(tau)
        smiles = [_averaged(moneyness[tau == node], np.sqrt(node) * gap[tau == node]) for node in nodes]
        several = [
            (float(np.log(node)), *smile) for node, smile in zip(nodes, smiles, strict=True) if len(smile[0]) > 1
        ]
        profiles = tuple((at, x, y - np.interp(0.0, x, y)) for at, x, y in several)
        log_tau = np.log(nodes)
        level = [
            float(np.mean(y - _profile(profiles, at, x))) for at, (x, y) in zip(log_tau.tolist(), smiles, strict=True)
        ]
        return cls(log_tau, np.array(level), profiles)

    def at(self, tau: float, moneyness: Array) -> Array:
        """The gap [N] at one tenor (years) and `moneyness` [N], volatility; 0 where there is no anchor."""
        if not self.log_tau.size:
            return np.zeros_like(moneyness)
        at = float(np.log(tau))
        level = float(np.interp(at, self.log_tau, self.level))
        return np.asarray((level + _profile(self.profiles, at, moneyness)) / np.sqrt(tau))


def _averaged(moneyness: Array, values: Array) -> tuple[Array, Array]:
    """Distinct moneyness, ascending, with the mean of the values there."""
    distinct, place = np.unique(moneyness, return_inverse=True)
    return distinct, np.bincount(place, values) / np.bincount(place)


def _profile(profiles: tuple[tuple[float, Array, Array], ...], at: float, moneyness: Array) -> Array:
    """The profile at ln(tau) = `at`."""
    if not profiles:
        return np.zeros_like(moneyness)
    shares = np.interp(at, [node for node, _, _ in profiles], np.arange(len(profiles)))
    before = int(shares)
    after = min(before + 1, len(profiles) - 1)
    low, high = (np.interp(moneyness, *profiles[place][1:]) for place in (before, after))
    return np.asarray(low + (shares - before) * (high - low))
