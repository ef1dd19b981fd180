"""Everything a host's loop is made of, found, verified and opened, before the first record is read.

In: the configuration. Out: `Parts`: the release, its engine held to what it must answer, the tick features, the
contracts, the limits. Invariants: a bundle is used only if a release names it and every byte was verified; an expired
release isn't started with; what nobody vouches for runs only where the configuration says `development`.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from serving.engines.native import NativeEngine
from serving.errors import TrustError
from serving.host.config_types import ChainConfig, HostConfig
from serving.host.contracts import ContractTable, read_contracts
from serving.host.limits import Limits, read_numbered_limits
from serving.host.loop import loop_isa, tick_spec_of
from serving.host.tick_features import TickSpec
from serving.released import Released, refuse_expired, resolve
from serving.warm import open_verified_engine


@dataclass(frozen=True)
class Parts:
    """What the loop is built from."""

    released: Released
    engine: NativeEngine
    spec: TickSpec
    contracts: ContractTable
    limits: Limits
    limits_serial: int


def assembled(config: HostConfig, stack: ExitStack) -> Parts:
    """Open all of it; the release isn't removed before the stack unwinds."""
    limits, serial = read_numbered_limits(config.risk.limits, config.risk.public_key)
    chain = config.chain
    contracts = read_contracts(chain.file, chain.reference_price, quoted=chain.quoted, at=session_time(chain))
    released = _released(config, stack)
    spec = tick_spec_of(released.bundle)
    warm = open_verified_engine(
        released.bundle, released.packs, config.model.engine, config.model.precision, probe=False, isa=loop_isa()
    )
    assert isinstance(warm.engine, NativeEngine)
    return Parts(released, warm.engine, spec, contracts, limits, serial)


def session_time(chain: ChainConfig) -> datetime | None:
    """From when expiries are counted; None where the chain's file has times to expiry itself."""
    return datetime.now(UTC) if chain.at == "start" else chain.at


def _released(config: HostConfig, stack: ExitStack) -> Released:
    asked = argparse.Namespace(folder=config.model.folder, model=config.model.model, channel=config.model.channel)
    released = resolve(asked, stack)
    if released.note and not config.model.development:
        raise TrustError(
            f"{config.model.folder}: {config.model.model} {config.model.channel} is {released.note}; pull a signed "
            "release, or set [model] development = true to try this one"
        )
    refuse_expired(released)
    return released
