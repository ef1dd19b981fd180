"""What `make bench-host` runs a host with: a net of STAC's LSTM_A shape on tick features, its release, a chain, limits.

In: records of an underlying (serving/host/records.py). Out, below one folder: a bundle exported as `export` does it
(ONNX files of every part, safetensors, golden vectors), its signed and pulled release (benchmarks/host_release.py), a
chain of listed-like contracts around the records' prices, limits, and a TOML file for `strikeforge-host run --config`.
Shape: T 50 steps of F 100 columns (40 tick features and zeros), 2 layers of 100 units, context 16; the contracts' head
16-64-64-1. Invariants: weights are seeded and random, so volatilities are believable (the last seen, within a factor e)
and no more; scalers are fitted on the records given; the same records and seed give the same bundle, byte for byte.

Run: python -m benchmarks.host_bundle --to FOLDER --layout binance_l2 FILE ...
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save

import models
from benchmarks.engines_cases import CONTEXT, CONTRACT_FEATURES, HEAD_WIDTH, make_net
from benchmarks.host_release import Released, release
from models.pricing import PricingNet
from pipelines.onnx_export import export_member
from serving.bundle import Bundle, write_bundle
from serving.canonical import canonical_json, sha256_hex
from serving.engine import CONTEXT_TOLERANCE, IV_TOLERANCE
from serving.errors import DataError, run_command
from serving.host import tick_features as ticks
from serving.host.contracts import ContractTable, listed_chain, write_contracts
from serving.host.tick_features import TickSpec
from serving.manifest import Member, MemberFile

MODEL = "pricing_lstm"
LSTM_A = {"step_features": 100, "hidden": 100, "layers": 2, "window": 50}
STEP_NS = 1_000_000_000  # a market step: a second
WINDOWS, CONTRACTS, SPOTS = 4, 256, 64  # golden windows and contracts; mids that the contracts' scaler is fitted on
TOLERANCE = 1e-5  # float32 against float64, of contexts and volatilities
QUOTED = 8
WIDEST = 1.6  # standard deviations that strikes reach: a chain of 900 contracts or so
NATIVE = "native"

Records = npt.NDArray[Any]


@dataclass(frozen=True)
class HostFiles:
    """Everything a host needs, and what it was made of."""

    config: Path  # of strikeforge-host run
    directory: Path  # rings, board, control socket
    chain: Path
    limits: Path
    released: Released
    bundle: Bundle
    spec: TickSpec


def make_host(
    folder: Path,
    records: Records,
    precision: str = "fp32",
    *,
    step_ns: int = STEP_NS,
    semantics: str = "stateful",
    feed: str = 'kind = "external"',
    directory: Path | None = None,
) -> HostFiles:
    """All of it below `folder`; `feed` is the TOML of [feed], `directory` where rings go (default: `folder`/run)."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    rows = ticks.tick_rows(records, step_ns)
    mids = rows.closed_mid[rows.closed_mid > 0]
    if len(rows.closed) < LSTM_A["window"] + WINDOWS:
        needed = LSTM_A["window"] + WINDOWS
        raise DataError(
            f"the records close {len(rows.closed)} steps of {step_ns} ns; a bundle needs {needed}: give more"
        )
    reference = float(mids[0])
    chain = listed_chain(reference, quoted=QUOTED, widest=WIDEST)
    spec = fitted_spec(rows.closed, mids, chain, step_ns)
    bundle = make_bundle(folder / "bundle", rows.closed, float(mids[-1]), chain, spec, semantics, records)
    released = release(bundle, folder)
    chain_file, limits, config = folder / "chain.csv", folder / "limits.toml", folder / "host.toml"
    write_contracts(chain_file, chain)
    tick_money = 10.0 ** math.floor(math.log10(reference * 1e-5))  # 0.1 at 61,500
    limits.write_text(limits_text(reference, tick_money), encoding="utf-8")
    directory = directory or folder / "run"
    text = config_text(released, chain_file, limits, directory, reference, tick_money, precision, feed)
    config.write_text(text, encoding="utf-8")
    return HostFiles(config, directory, chain_file, limits, released, bundle, spec)


def fitted_spec(
    closed: npt.NDArray[np.float64], mids: npt.NDArray[np.float64], chain: ContractTable, step_ns: int
) -> TickSpec:
    """Scalers of the closed steps' rows, and of the chain's features at mids spread over the records."""
    spots = mids[np.unique(np.linspace(0, len(mids) - 1, SPOTS).astype(int))]
    contracts = np.concatenate([features(chain, float(spot)) for spot in spots])
    return TickSpec(
        step_ns, LSTM_A["window"], LSTM_A["step_features"], CONTRACT_FEATURES,
        ticks.fit_scaler(closed),
        ticks.fit_scaler(contracts, ticks.CONTRACT_FEATURES, ticks.UNSCALED),
    )  # fmt: skip


def make_bundle(
    folder: Path, closed: npt.NDArray[np.float64], spot: float, chain: ContractTable, spec: TickSpec,
    semantics: str, records: Records,
) -> Bundle:  # fmt: skip
    """The net exported, with golden vectors of the records' last windows."""
    net = make_net(MODEL, LSTM_A)
    onnx, roles = export_member(cast(models.Net, net), "member-0")
    weights = "member-0/weights.safetensors"
    sizes = {
        **LSTM_A,
        "contract_features": CONTRACT_FEATURES,
        "context": CONTEXT,
        "head_width": HEAD_WIDTH,
        "dropout": 0.1,
    }
    golden = golden_arrays(spec.scale(closed)[0], padded(features(chain, spot), spec))
    config = {"bench": "host", "sizes": sizes, "semantics": semantics, "step_ns": spec.step_ns}
    return write_bundle(
        folder, model=MODEL, model_config=sizes, members=[Member({**roles, "weights": MemberFile(weights)})],
        files={**onnx, weights: save(net.state_dict()), "golden.npz": _npz(golden)}, feature_spec=spec.to_json(),
        semantics=semantics, tolerances={IV_TOLERANCE: TOLERANCE, CONTEXT_TOLERANCE: TOLERANCE},
        data_sha256=sha256_hex(records.tobytes()), config_sha256=sha256_hex(canonical_json(config)),
    )  # fmt: skip


@torch.no_grad()
def golden_arrays(steps: npt.NDArray[np.float32], contracts: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """The last windows, contracts spread over the chain, and what the net answers in float64."""
    length = LSTM_A["window"]
    window = np.stack([steps[end - length : end] for end in range(len(steps), len(steps) - WINDOWS, -1)])
    contracts = contracts[np.unique(np.linspace(0, len(contracts) - 1, CONTRACTS).astype(int))]
    net: PricingNet = make_net(MODEL, LSTM_A).double()
    context = net.encode(torch.from_numpy(window).double())
    volatility = net.head(context[:1].expand(len(contracts), -1), torch.from_numpy(contracts).double()).numpy()
    volatility = volatility.astype(np.float32)
    return {"window": window, "contracts": contracts, "context-0": context.numpy().astype(np.float32),
            "iv-0": volatility, "iv": volatility}  # fmt: skip


def features(chain: ContractTable, spot: float) -> npt.NDArray[np.float64]:
    """The contracts' eight known columns under a spot, unscaled [N, 8]: docs/host-rules.md, "Contracts"."""
    root = np.sqrt(chain.tau_years)
    moneyness = np.clip(np.log(chain.strike / (chain.carry * spot)) / root, -1.0, 1.0)
    move = np.log(spot / chain.reference_spot) / root
    columns = (chain.last_volatility, root, np.ones_like(root), moneyness, moneyness**2, move, move * moneyness)
    return np.stack([*columns, chain.right], axis=1)


def padded(rows: npt.NDArray[np.float64], spec: TickSpec) -> npt.NDArray[np.float32]:
    """The contracts' features as the head takes them: scaled, then zeros."""
    out = np.zeros((len(rows), spec.padded_contract_columns), np.float32)
    out[:, : rows.shape[1]] = spec.contract_scaler(rows)
    return out


def limits_text(price: float, tick_money: float) -> str:
    """Limits in proportion to the underlying's price: wide, so that the bench's quoter mostly passes; a move of two
    hundredths of a percent within a second pauses it, so that states change too."""
    return f"""# of a bench: python -m benchmarks.host_bundle
serial = 1
collar_money = {price / 100!r}
collar_share = 0.1
order_quantity = 10
order_rate_count = 16384
order_rate_window_ns = 1_000_000_000
position_quantity = 1000
notional_money = {price * 10_000!r}
delta = 5000
gamma = {1e7 / price!r}
vega = {price * 1000!r}
loss_money = {price * 100!r}
drawdown_money = {price * 100!r}
market_move_share = 0.0002
market_move_window_ns = 1_000_000_000
market_move_pause_ns = 10_000_000
stale_book_ns = 60_000_000_000
anomaly_score = 8.0
clipped_share = 0.5
reject_burst_count = 1000
multiplier = 1
tick_money = {tick_money!r}
"""


def config_text(
    released: Released, chain: Path, limits: Path, directory: Path, reference: float, tick_money: float, precision: str,
    feed: str,
) -> str:  # fmt: skip
    """The host's configuration: eight contracts quoted at a fixed width."""
    return f"""# strikeforge-host run --config host.toml
directory = "{directory}"

[model]
folder = "{released.pulled}"
model = "{MODEL}"
engine = "{NATIVE}"
precision = "{precision}"
development = true

[feed]
{feed}

[chain]
file = "{chain}"
reference_price = {reference!r}
quoted = {QUOTED}

[strategy]
kind = "fixed_width"
half_width_money = {20 * tick_money!r}
quantity = 1.0
requote_money = {2 * tick_money!r}
skew_money_per_unit = {tick_money!r}

[risk]
limits = "{limits}"

[loop]
poll = "busy"
"""


def _npz(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def main(argv: Sequence[str]) -> int:
    """Make a host of recorded ticks; print what to run."""
    from serving.feeds.layouts import read_tape

    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_bundle")
    parser.add_argument("--to", type=Path, required=True, help="folder to fill")
    parser.add_argument("--layout", default="binance_l2", help="whose files these are (serving/feeds/layouts.py)")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args(argv)
    named = ", ".join(f'"{file.absolute()}"' for file in arguments.files)
    feed = f'kind = "replay"\nlayout = "{arguments.layout}"\nfiles = [{named}]\npace = "original"'
    records = read_tape(arguments.layout, arguments.files).records
    made = make_host(arguments.to, records, arguments.precision, feed=feed)
    sys.stdout.write(f"bundle {made.bundle.sha256}\nstrikeforge-host run --config {made.config}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
