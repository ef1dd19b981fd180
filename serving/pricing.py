"""The host's recipe: what every contract of a chain is worth now, with Greeks.

Data in: an `Engine`, the bundle's `FeatureSpec`, the chain's past snapshots, the underlying's path and the quotes of
now (the anchors'). Data out: `PricedChain`, arrays of one length, a row for each contract of the last snapshot (in the
order of first appearance) and after them for those that only quote now.

The encoder reads one step per snapshot: the path up to it, the surface last seen before it, its anchors. In `window`
semantics only the last T-1 closed steps count, so only the last T snapshots are looked at; in `stateful` semantics all
of them are.

Invariants: no contract is dropped, each has a status; nothing at now but the underlying's price and the quotes at the
anchors' strikes is read; prices respect their bounds because Black-76 makes them, and an American price is
Black-76's plus the early exercise premium at the same volatility (serving/american.py), never below exercise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from serving import black76
from serving.american import exercise_premium
from serving.bundle import Bundle
from serving.engine import Engine, EngineInfo, Floats
from serving.errors import BundleError, DataError
from serving.features import RV_HORIZONS, Contracts, ContractTable, FeatureSpec, Path, contract_table, market_step
from serving.last_seen import Anchor, LastSeen, find_anchors, forward_deviation, last_seen
from serving.manifest import Manifest
from serving.normal import Array
from serving.quotes import is_split
from serving.surface import DAYS_PER_YEAR, Bools, ExpiryKey, Quotes, Texts, Times, build_surface

OK = "ok"
OUTSIDE_TRAINING_RANGE = "outside_training_range"  # priced, but the expiry's last smile lay outside the scored range
EXPIRY_NOT_SEEN = "expiry_not_seen"  # no usable smile of that expiry in the last snapshot
EXPIRED = "expired"  # the expiry's date is over or is today
MODEL_REFUSED = "model_refused"  # the net's volatility isn't a positive number
STATUSES = (OK, OUTSIDE_TRAINING_RANGE, EXPIRY_NOT_SEEN, EXPIRED, MODEL_REFUSED)
PRICED = (OK, OUTSIDE_TRAINING_RANGE)
HISTORY_STEPS = max(RV_HORIZONS) + 1  # path prices the longest feature needs
FAR_FORWARD = 0.005  # log distance of the anchors' forwards from the carried ones that is worth a word


@dataclass(frozen=True)
class PricedChain:
    """Fair values; arrays of one length, NaN where the status says that there is none.

    `tau` years, `forward`, `price` money; volatilities fractions per square root of a year. `delta` and `gamma` are
    with respect to the underlying's spot price: the forward moves with it, dF/dS = F/S, so they are Black-76's
    derivatives in the forward times F/S and (F/S)^2. `vega` money per 1.00 of volatility; `theta` money per year at
    constant forward. The Greeks of American contracts are those of their European part; `early_exercise` is the premium
    that their price holds besides, money, 0 for European ones.
    """

    ts: np.datetime64
    spot: float
    last_ts: np.datetime64  # of the snapshot that was last seen
    anchors: tuple[Anchor, ...]
    notes: tuple[str, ...]  # what a reader of the numbers should know
    root: Texts
    expiry: Times
    strike: Array
    right: Array  # +1 call, -1 put
    tau: Array
    forward: Array
    discount: Array
    last_volatility: Array
    volatility: Array
    price: Array
    early_exercise: Array
    delta: Array
    gamma: Array
    vega: Array
    theta: Array
    status: Texts

    def __len__(self) -> int:
        return len(self.strike)

    def counts(self) -> dict[str, int]:
        """Number of contracts per status, all statuses."""
        return {status: int((self.status == status).sum()) for status in STATUSES}


def is_of_ticks(manifest: Manifest) -> bool:
    """Whether the net's steps are computed from ticks (serving/host/tick_features.py), by the loop of a host."""
    return manifest.feature_spec.get("kind") == "tick"


def refuse_ticks(bundle: Bundle) -> None:
    """BundleError for a net that reads ticks: no chain of quotes gives its inputs."""
    if is_of_ticks(bundle.manifest):
        raise BundleError(
            f"manifest.json: bundle {bundle.sha256} of {bundle.manifest.model} reads ticks (feature_spec kind 'tick'), "
            "not snapshots of a chain: it answers in strikeforge-host run --config C"
        )


def feature_spec(bundle: Bundle) -> FeatureSpec:
    """The bundle's feature spec, checked to be usable by this code; BundleError otherwise."""
    refuse_ticks(bundle)
    try:
        spec = FeatureSpec.from_json(dict(bundle.manifest.feature_spec))
    except DataError as error:
        raise BundleError(f"manifest.json: {error}") from error
    for name, scaler, width in (
        ("step_scaler", spec.step_scaler, len(spec.step_features)),
        ("contract_scaler", spec.contract_scaler, len(spec.contract_features)),
    ):
        if not len(scaler.mean) == len(scaler.deviation) == width:
            raise BundleError(
                f"manifest.json: feature_spec.{name} has {len(scaler.mean)} means and {len(scaler.deviation)} "
                f"deviations for {width} features"
            )
    return spec


def price_chain(engine: Engine, spec: FeatureSpec, chain: Sequence[Quotes], path: Path, now: Quotes) -> PricedChain:
    """Price every contract; `chain` ascending in time and before `now`. Resets the engine."""
    info = engine.info()
    _check_inputs(info, spec, chain, now)
    used, unusable = usable_snapshots(chain, spec, info)
    _refuse_split([*(quotes for quotes, _ in used), now])
    path, notes = complete_path(path, [quotes for quotes in chain if quotes.ts not in unusable], now)
    if unusable:
        notes.append(f"{len(unusable)} snapshots without a usable smile were passed over, as in training")
    if len(used) < spec.window and info.semantics == "window":
        notes.append(f"{len(used)} snapshots for a window of {spec.window} steps: the rest is zeros")
    last = _feed(engine, spec, used, path, skip_first=len(used) == spec.window and info.semantics == "window")
    anchors = find_anchors(now, last, spec.anchors)
    if len(anchors) < len(spec.anchors):
        notes.append(f"{len(anchors)} of {len(spec.anchors)} anchors quote now")
    off = forward_deviation(anchors)
    if abs(off) > FAR_FORWARD:
        notes.append(f"the anchors' calls and puts put every forward {100 * off:+.2f} % off the carried one: is the "
                     f"underlying's price of now ({now.spot:g}) right, and are theirs?")  # fmt: skip
    context = np.zeros(info.context_size, np.float32)
    engine.evaluate(spec.step_scaler(market_step(path, last, anchors)), context)
    contracts, american = _contracts_and_style(used[-1][0], now)
    if american.any():
        notes.append("American contracts: prices hold the early exercise premium, Greeks are of the European part")
    return _price(engine, spec, contracts, american, context, last, anchors, now, notes)


def usable_snapshots(
    chain: Sequence[Quotes], spec: FeatureSpec, info: EngineInfo
) -> tuple[list[tuple[Quotes, LastSeen]], set[np.datetime64]]:
    """The snapshots that count, with what was seen in them, and the times of those that don't.

    Training passes over snapshots without a smile in the scored range. In `window` semantics no more than the last T
    that count are looked for. DataError where none does.
    """
    wanted = len(chain) if info.semantics == "stateful" else spec.window
    used: list[tuple[Quotes, LastSeen]] = []
    unusable: set[np.datetime64] = set()
    for quotes in reversed(chain):
        if len(used) == wanted:
            break
        seen = last_seen(build_surface(quotes))
        if seen.usable:
            used.insert(0, (quotes, seen))
        else:
            unusable.add(quotes.ts)
    if not used:
        raise DataError(
            f"no snapshot of the chain has a usable smile ({len(chain)} looked at): calls and puts with two-sided "
            "quotes within 5 % of spot are needed, expiring in 5 days to a year"
        )
    return used, unusable


def _check_inputs(info: EngineInfo, spec: FeatureSpec, chain: Sequence[Quotes], now: Quotes) -> None:
    wanted = (spec.window, len(spec.step_features), len(spec.contract_features))
    found = (info.window_steps, info.step_features, info.contract_features)
    if wanted != found:
        raise BundleError(
            f"bundle {info.bundle_sha256}: its feature spec has (steps, step features, contract features) {wanted}, "
            f"its nets take {found}"
        )
    if not chain:
        raise DataError("the chain has no snapshot: at least one before now is needed")
    times = [quotes.ts for quotes in chain] + [now.ts]
    for earlier, later in pairwise(times):
        if later <= earlier:
            raise DataError(f"snapshots must ascend in time and end before now: {later} follows {earlier}")


def _refuse_split(snapshots: Sequence[Quotes]) -> None:
    for before, after in pairwise(snapshots):
        if is_split(before, after):
            raise DataError(
                f"the underlying was split between {before.ts} and {after.ts}: its price goes from {before.spot:g} to "
                f"{after.spot:g} and the strikes are others; give a chain and a path that begin after that"
            )


def complete_path(path: Path, chain: Sequence[Quotes], now: Quotes) -> tuple[Path, list[str]]:
    """The path with the price of every snapshot and of now, ending at now; and notes on what that took.

    A snapshot's own price wins over the path's at the same time. Prices after now aren't used.
    """
    own_ts = np.array([quotes.ts for quotes in (*chain, now)], dtype="datetime64[ns]")
    own_price = np.array([quotes.spot for quotes in (*chain, now)])
    path_ts = path.ts.astype("datetime64[ns]")
    before = (path_ts < now.ts) & ~np.isin(path_ts, own_ts)
    ts, price = np.r_[path_ts[before], own_ts], np.r_[path.price[before], own_price]
    order = np.argsort(ts, kind="stable")
    notes = []
    later = int((path_ts > now.ts).sum())
    if later:
        notes.append(f"{later} prices of the path lie after now and weren't used")
    if len(ts) < HISTORY_STEPS:
        notes.append(f"the path has {len(ts)} prices; the longest feature looks back over {HISTORY_STEPS}")
    return Path(ts[order], price[order]), notes


def _feed(
    engine: Engine, spec: FeatureSpec, used: Sequence[tuple[Quotes, LastSeen]], path: Path, *, skip_first: bool
) -> LastSeen:
    """Advance the engine over the closed steps; `skip_first`: of the first snapshot only its surface counts."""
    engine.reset()
    last: LastSeen | None = None
    for index, (quotes, seen) in enumerate(used):
        if index or not skip_first:
            anchors = [] if last is None else find_anchors(quotes, last, spec.anchors)
            engine.advance(spec.step_scaler(market_step(path.until(quotes.ts), last, anchors)))
        last = seen
    assert last is not None
    return last


def distinct_contracts(last: Quotes, now: Quotes) -> Contracts:
    """Each contract of both once, those of the last snapshot first, in order of appearance."""
    return _contracts_and_style(last, now)[0]


def _contracts_and_style(last: Quotes, now: Quotes) -> tuple[Contracts, Bools]:
    """`distinct_contracts`, and which of them are American."""
    both = [
        (quotes.root, quotes.expiry.astype("datetime64[ns]"), quotes.strike, quotes.right) for quotes in (last, now)
    ]
    root, expiry, strike, right = (np.concatenate(parts) for parts in zip(*both, strict=True))
    _, root_code = np.unique(root, return_inverse=True)
    order = np.lexsort((right, strike, expiry, root_code))
    keys = np.stack([root_code, expiry.astype(np.int64), strike.view(np.int64), right.astype(np.int64)])[:, order]
    first = np.r_[True, (np.diff(keys, axis=1) != 0).any(axis=0)] if order.size else np.zeros(0, bool)
    rows = np.sort(order[first])  # lexsort is stable: the first of equals is the earliest row
    american = np.r_[last.is_american, now.is_american]
    return Contracts(root[rows], expiry[rows], strike[rows], right[rows]), american[rows]


def _price(
    engine: Engine, spec: FeatureSpec, contracts: Contracts, american: Bools, context: Floats, last: LastSeen,
    anchors: list[Anchor], now: Quotes, notes: list[str],
) -> PricedChain:  # fmt: skip
    table = contract_table(contracts, now.ts, now.spot, last, anchors)
    iv = np.zeros(len(table.rows), np.float32)
    engine.head(context, spec.contract_scaler(table.features), iv)
    sound = np.isfinite(iv) & (iv > 0)
    volatility = np.where(sound, iv.astype(np.float64), np.nan)
    rows, leverage = table.rows, table.forward / now.spot
    worth = black76.value(
        table.forward, contracts.strike[rows], table.tau, volatility, table.discount, contracts.right[rows]
    )
    premium = _premiums(contracts, american, table, volatility, last, now.spot)
    price = worth.price + premium
    exercised = contracts.right[rows] * (now.spot - contracts.strike[rows])
    price = np.where(american[rows], np.maximum(price, exercised), price)
    days = (contracts.expiry.astype("datetime64[D]") - now.ts.astype("datetime64[D]")).astype(np.float64)
    status = np.where(days > 0, EXPIRY_NOT_SEEN, EXPIRED).astype("<U32")
    status[rows] = np.where(sound, np.where(table.in_range, OK, OUTSIDE_TRAINING_RANGE), MODEL_REFUSED)

    def spread(values: npt.NDArray[np.float64]) -> Array:
        everywhere = np.full(len(contracts.strike), np.nan)
        everywhere[rows] = values
        return everywhere

    return PricedChain(
        now.ts, now.spot, last.ts, tuple(anchors), tuple(notes), contracts.root, contracts.expiry, contracts.strike,
        contracts.right, days / DAYS_PER_YEAR, spread(table.forward), spread(table.discount),
        spread(table.last_volatility), spread(volatility), spread(price), spread(premium),
        spread(worth.delta * leverage), spread(worth.gamma * leverage**2), spread(worth.vega), spread(worth.theta),
        status,
    )  # fmt: skip


def _premiums(
    contracts: Contracts, american: Bools, table: ContractTable, volatility: Array, last: LastSeen, spot: float
) -> Array:
    """Early exercise premium of each row of the table, money; 0 for European ones."""
    premium = np.zeros(len(table.rows))
    priced = np.flatnonzero(american[table.rows])
    rows = table.rows[priced]
    keys = zip(contracts.root[rows], contracts.expiry[rows], strict=True)
    rates = {key: smile.rate for key, smile in last.smiles.items()}
    rate = np.array([rates[ExpiryKey(str(root), expiry)] for root, expiry in keys])
    premium[priced] = exercise_premium(
        spot, table.forward[priced], contracts.strike[rows], table.tau[priced], volatility[priced], rate,
        contracts.right[rows],
    )  # fmt: skip
    return premium
