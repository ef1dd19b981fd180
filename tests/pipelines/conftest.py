"""One whole run on the tiny market, made once per session and read by many tests. Nobody writes into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.config import Config, load_config
from tests.pipelines import market


@dataclass(frozen=True)
class TinyRun:
    """A finished run: its configuration, the overrides that gave it, and its folder."""

    cfg: Config
    overrides: list[str]
    quotes: Path

    def of(self, family: str, *more: str) -> Config:
        """The configuration of another family on the same features, in the same folder."""
        return load_config(market.overrides(self.out.parent, self.quotes, *more, family=family))

    @property
    def out(self) -> Path:
        """OUT of the run."""
        return self.cfg.folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """ingest, features, train, evaluate through pipelines.run."""
    from pipelines import run

    folder = tmp_path_factory.mktemp("tiny-run")
    quotes = market.write(market.market(), folder / "quotes.parquet")
    overrides = market.overrides(folder, quotes)
    cfg = load_config(overrides)
    run.run(cfg)
    return TinyRun(cfg, overrides, quotes)
