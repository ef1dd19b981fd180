"""An uneven path of prices up to the chain of test_surface.py, and short names for what features are made of."""

from __future__ import annotations

import datetime

import numpy as np

from serving.features import STEP_FEATURES, Contracts, Path
from serving.last_seen import AnchorTarget
from serving.surface import Quotes
from tests.serving.test_last_seen import DAY
from tests.serving.test_surface import SPOT, TS

STEPS = 80
SEVERAL = (AnchorTarget(22, -0.2), AnchorTarget(22, 0.1), AnchorTarget(50, 0.1), AnchorTarget(113, -0.3),
           AnchorTarget(113))  # fmt: skip


def uneven_path(count: int = STEPS, seed: int = 0) -> Path:
    """Weekdays with holidays and odd hours, ending at the snapshot of `now`."""
    rng = np.random.default_rng(seed)
    gaps = rng.choice([0.25, 1.0, 1.0, 1.0, 3.0, 4.0], count - 1)
    days = np.r_[0.0, -np.cumsum(gaps)][::-1]
    ts = TS + DAY + (days * 86400e9).astype("timedelta64[ns]")
    return Path(ts, SPOT * np.exp(np.cumsum(rng.normal(0, 0.012, count))))


def by_name(step: np.ndarray) -> dict[str, float]:
    return dict(zip(STEP_FEATURES, step.tolist(), strict=True))


def contracts_of(quotes: Quotes) -> Contracts:
    return Contracts(quotes.root, quotes.expiry, quotes.strike, quotes.right)


def weekdays_between(first: datetime.date, last: datetime.date) -> int:
    """Mondays to Fridays from `first`, included, to `last`, excluded."""
    return sum((first + datetime.timedelta(days=k)).weekday() < 5 for k in range((last - first).days))
