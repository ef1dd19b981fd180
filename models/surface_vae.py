"""surface_vae: a conditional variational autoencoder over implied-volatility surfaces on a fixed grid with a mask.

Shapes: B surfaces, G grid cells, M move features, Z latent, R regimes, S shape numbers. The surface is read as a change
from the one last seen (carried to now at sticky strike), in units of what a cell usually changes. The encoder sees the
cells that are known; the decoder completes all of them. The latent prior is a mixture, one Gaussian per regime, moved
by what the underlying did: so a surface that stays where it was although the underlying moved is as surprising as one
that jumps for no reason.

Semi-supervised: where a date has a label, its own component is the prior and the regime head learns from it; where it
has none, the regime is summed out under the head's own probabilities. The head is linear in a few numbers of the
completed surface's shape (known cells as they are), not in the latent: a regime lasts while a latent tells one day's
change, and a handful of labels fits a handful of weights. No gradient of the head's logits reaches encoder or decoder,
so completion doesn't pay for what the labels teach.

Invariants: volatilities are positive and within a factor e of the last seen; with zero weights in the last layer the
completed surface *is* the last seen one; untrained, every regime is as likely; units and means are buffers, so that a
host feeds volatilities.

Sources: Kingma & Welling (2014); conditional: Sohn, Lee & Yan (2015); semi-supervised: Kingma et al. (2014), model M2,
with a mixture prior as in Dilokthanakul et al. (2016); surfaces: Bergeron et al. (2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from models.parts import Part

SHARPNESS = 5.0  # of the regime head: its few weights move so many times as fast as the rest (docs/decisions/007)
SHAPE_REACH = 5.0  # deviations a shape number counts at most


@dataclass(frozen=True)
class SurfaceVAEConfig:
    """Sizes; `cells` and `moves` come from the grid, `regimes` from the labels."""

    cells: int
    moves: int
    regimes: int
    latent: int = 6
    width: int = 128
    dropout: float = 0.1
    shapes: int = 6  # numbers of the surface's shape that the regime head reads


class Known(NamedTuple):
    """What the net is given: volatilities (0 where unknown) and masks (1: known) [B, G], the underlying's move [B,
    M]."""

    surface: Tensor
    mask: Tensor
    last: Tensor  # filled: a number in every cell
    last_mask: Tensor
    move: Tensor


class Answer(NamedTuple):
    """What it makes of it; volatilities and their standard deviations are fractions."""

    completed: Tensor  # [B, G]
    deviation: Tensor  # [B, G]
    latent: Tensor  # [B, Z], its mean
    surprise: Tensor  # [B], KL divergence of the latent from its prior, nats
    regime: Tensor  # [B, R], probabilities


class Units(NamedTuple):
    """Means and deviations over the training dates: of cells, of their changes, of the move features."""

    level: Tensor  # [G], volatility
    level_deviation: Tensor  # [G]
    change_deviation: Tensor  # [G]
    move: Tensor  # [M]
    move_deviation: Tensor  # [M]


class Shape(NamedTuple):
    """The regime head's inputs: linear in the variance of all cells; means and deviations over the training dates."""

    weight: Tensor  # [S, G], per variance
    mean: Tensor  # [S]
    deviation: Tensor  # [S]


class SurfaceVAE(nn.Module):
    """Known -> Answer."""

    task: ClassVar[str] = "surface"
    unit_level: Tensor
    unit_level_deviation: Tensor
    unit_change_deviation: Tensor
    unit_move: Tensor
    unit_move_deviation: Tensor
    shape_weight: Tensor
    shape_mean: Tensor
    shape_deviation: Tensor

    def __init__(self, config: SurfaceVAEConfig) -> None:
        super().__init__()
        self.config = config
        sizes = {"level": config.cells, "level_deviation": config.cells, "change_deviation": config.cells,
                 "move": config.moves, "move_deviation": config.moves}  # fmt: skip
        for name, size in sizes.items():
            self.register_buffer(f"unit_{name}", torch.zeros(size) if name in ("level", "move") else torch.ones(size))
        self.register_buffer("shape_weight", torch.full((config.shapes, config.cells), 1.0 / config.cells))
        self.register_buffer("shape_mean", torch.zeros(config.shapes))
        self.register_buffer("shape_deviation", torch.ones(config.shapes))
        condition = config.cells + 1 + config.moves
        self.encoder = _network(2 * config.cells + condition, config.width, 2 * config.latent, config.dropout)
        self.decoder = _network(config.latent + condition, config.width, 2 * config.cells, config.dropout)
        self.regime = nn.Linear(config.shapes, config.regimes)
        self.center = nn.Parameter(torch.randn(config.regimes, config.latent))
        self.pull = nn.Linear(config.moves, config.latent, bias=False)
        last = self.decoder[-1]
        assert isinstance(last, nn.Linear)
        for layer in (last, self.regime):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def set_units(self, units: Units) -> None:
        """Set the buffers; before training, from training dates."""
        for name, values in units._asdict().items():
            getattr(self, f"unit_{name}").copy_(values)

    def set_shape(self, shape: Shape) -> None:
        """Set what the regime head reads; before training, from training dates."""
        for name, values in shape._asdict().items():
            getattr(self, f"shape_{name}").copy_(values)

    def condition(self, known: Known) -> tuple[Tensor, Tensor]:
        """What stands for the surface where nothing else is known [B, G], and what conditions the net [B, G + 1 +
        M]."""
        seen_B1 = (known.last_mask.sum(-1, keepdim=True) > 0).to(known.last.dtype)
        base = seen_B1 * known.last + (1.0 - seen_B1) * self.unit_level
        level = (base - self.unit_level) / self.unit_level_deviation
        move = (known.move - self.unit_move) / self.unit_move_deviation
        return base, torch.cat([torch.clamp(level, -5.0, 5.0), seen_B1, torch.clamp(move, -5.0, 5.0)], dim=-1)

    def encode(self, known: Known, base: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent, [B, Z] each."""
        change = known.mask * torch.clamp((known.surface - base) / self.unit_change_deviation, -10.0, 10.0)
        mean, log_variance = self.encoder(torch.cat([change, known.mask, condition], dim=-1)).chunk(2, dim=-1)
        return mean, torch.clamp(log_variance, -8.0, 4.0)

    def decode(self, latent: Tensor, base: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Volatility and its standard deviation, [B, G] each."""
        change, spread = self.decoder(torch.cat([latent, condition], dim=-1)).chunk(2, dim=-1)
        volatility = base * torch.exp(torch.clamp(change * self.unit_change_deviation / base, -1.0, 1.0))
        return volatility, self.unit_change_deviation * torch.exp(torch.clamp(spread, -5.0, 3.0))

    def regime_logits(self, known: Known, completed: Tensor) -> Tensor:
        """Of each regime, [B, R]; no gradient reaches `completed` [B, G]."""
        volatility = known.mask * known.surface + (1.0 - known.mask) * completed.detach()
        shape = (volatility**2 @ self.shape_weight.T - self.shape_mean) / self.shape_deviation
        logits_BR: Tensor = SHARPNESS * self.regime(torch.clamp(shape, -SHAPE_REACH, SHAPE_REACH))
        return logits_BR

    def surprise(self, mean: Tensor, log_variance: Tensor, condition: Tensor) -> Tensor:
        """KL divergence from each regime's prior, [B, R], nats."""
        pulled_BZ = self.pull(condition[:, -self.config.moves :])
        distance_BRZ = mean.unsqueeze(1) - (self.center + pulled_BZ.unsqueeze(1))
        spread_BRZ = (log_variance.exp() - log_variance - 1.0).unsqueeze(1)
        divergence_BR: Tensor = 0.5 * (spread_BRZ + distance_BRZ**2).sum(-1)
        return divergence_BR

    def forward(self, known: Known) -> Answer:
        """The answer at the latent's mean."""
        base, condition = self.condition(known)
        mean, log_variance = self.encode(known, base, condition)
        volatility, deviation = self.decode(mean, base, condition)
        regime = torch.softmax(self.regime_logits(known, volatility), dim=-1)
        surprise = (regime * self.surprise(mean, log_variance, condition)).sum(-1)
        return Answer(volatility, deviation, mean, surprise, regime)

    def loss(self, known: Known, target: Tensor, mask: Tensor, label: Tensor, kl_weight: float, regime_weight: float,
             labelled_share: float) -> Tensor:  # fmt: skip
        """Negative evidence bound per known cell, of the cells `mask` of `target` [B, G] (in units of the usual
        change).

        `label` [B] is a regime or -1. `labelled_share`, of all training dates, keeps the supervised term's weight the
        same however few labels there are.
        """
        base, condition = self.condition(known)
        mean, log_variance = self.encode(known, base, condition)
        latent = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        volatility, deviation = self.decode(latent, base, condition)
        miss = (volatility - target) / deviation
        scale = torch.log(deviation / self.unit_change_deviation)
        cells_B = mask.sum(-1).clamp(min=1.0)
        likelihood_B = (mask * (0.5 * miss**2 + scale)).sum(-1) / cells_B
        logits_BR = self.regime_logits(known, volatility)
        log_share_BR = torch.log_softmax(logits_BR, dim=-1)
        given_BR = nn.functional.one_hot(label.clamp(min=0), self.config.regimes).to(mean.dtype)
        labelled_B = (label >= 0).to(mean.dtype)
        weight_BR = labelled_B.unsqueeze(1) * given_BR + (1.0 - labelled_B).unsqueeze(1) * log_share_BR.exp()
        regime_kl_B = (1.0 - labelled_B) * (log_share_BR.exp() * (log_share_BR + math.log(self.config.regimes))).sum(-1)
        kl_B = (weight_BR * self.surprise(mean, log_variance, condition)).sum(-1) + regime_kl_B
        cross_entropy_B = -(given_BR * log_share_BR).sum(-1) * labelled_B / max(labelled_share, 1e-6)
        total: Tensor = (likelihood_B + kl_weight * kl_B / cells_B + regime_weight * cross_entropy_B).mean()
        return total

    def parts(self) -> list[Part]:
        """The whole net in one file, for any number of surfaces at once."""
        size = self.config
        grid = (None, size.cells)
        inputs = (("surface", grid), ("mask", grid), ("last", grid), ("last_mask", grid), ("move", (None, size.moves)))
        outputs = (("completed", grid), ("deviation", grid), ("latent", (None, size.latent)), ("surprise", (None,)),
                   ("regime", (None, size.regimes)))  # fmt: skip
        return [Part("surface", _Whole(self), inputs, outputs)]


def _network(inputs: int, width: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.SiLU(),
        nn.Linear(width, outputs),
    )  # fmt: skip


class _Whole(nn.Module):
    def __init__(self, net: SurfaceVAE) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, surface: Tensor, mask: Tensor, last: Tensor, last_mask: Tensor, move: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        answer: Answer = self.net(Known(surface, mask, last, last_mask, move))
        return answer.completed, answer.deviation, answer.latent, answer.surprise, answer.regime
