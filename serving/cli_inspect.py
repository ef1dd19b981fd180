"""`strikeforge-host inspect`: what a channel points at, verified, its golden vectors recomputed; a surface net judges a
chain.

Data in: a pulled release (or, for development, a store); for a surface model a chain (serving/tables.py), or the
bundle's own demo. Data out: text on stdout, and the completed grid as a table file. Invariants: an engine that doesn't
reach the golden vectors ends with an error; an expired release is shown as such and judges nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from serving.bundle import Bundle
from serving.engine import (
    SURFACE_TOLERANCE,
    Parity,
    tolerance_of,
)
from serving.engine_pack import EnginePack
from serving.errors import BundleError, DataError, EngineError
from serving.host.tick_features import TickSpec
from serving.manifest import Manifest
from serving.normal import Array
from serving.pricing import feature_spec, is_of_ticks
from serving.problems import iso
from serving.released import Released, aligned, demo_of, refuse_expired, resolve, write_lines
from serving.surface import Quotes
from serving.surface_grid import MONEYNESS, SHAPE, TENORS_DAYS
from serving.surface_host import UNUSUAL, Inspected, inspect_chain, regime_names
from serving.table_files import SUFFIXES, has_known_suffix, write_table
from serving.tables import read_chain
from serving.warm import held_engine, open_verified_surface_engine, probed


def run_inspect(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Verify, recompute, and judge a chain where one is given."""
    if arguments.demo and (arguments.chain or arguments.underlying):
        parser.error("--demo brings its own chain: leave out --chain and --underlying")
    if arguments.out is not None and not (arguments.demo or arguments.chain):
        parser.error("--out takes the completed grid of a chain: give --chain or --demo")
    if arguments.out is not None and not has_known_suffix(arguments.out):
        parser.error(f"--out {arguments.out}: the name must end in {', '.join(SUFFIXES)}")
    with ExitStack() as stack:
        released = resolve(arguments, stack)
        bundle = released.bundle
        write_lines(_contents(released))
        if bundle.manifest.task == "surface":
            return _surface(arguments, released)
        if arguments.demo or arguments.chain:
            use = "run" if is_of_ticks(bundle.manifest) else "price"
            raise DataError(f"{arguments.model} prices contracts and judges no surface: use strikeforge-host {use}")
        _say_engine(arguments, released)
    return 0


def _contents(released: Released) -> list[str]:
    bundle, manifest = released.bundle, released.bundle.manifest
    sizes = [("file", "bytes", "sha256")]
    sizes += [(name, str(entry.size), entry.sha256[:16]) for name, entry in sorted(manifest.files.items())]
    kind = _grid_lines(bundle) if manifest.task == "surface" else _feature_lines(bundle)
    return [
        released.title(), f"net: {dict(manifest.model_config)}", *kind,
        f"made from data {manifest.data_sha256[:16]}, configuration {manifest.config_sha256[:16]}",
        *aligned(sizes), f"all {len(manifest.files)} files have the size and sha256 that the manifest names",
    ]  # fmt: skip


def _feature_lines(bundle: Bundle) -> list[str]:
    manifest = bundle.manifest
    if is_of_ticks(manifest):
        return _tick_lines(manifest)
    spec = feature_spec(bundle)
    anchors = ", ".join(f"{anchor.tenor_days:g}d at moneyness {anchor.moneyness:g}" for anchor in spec.anchors)
    return [
        f"semantics {manifest.semantics}, window of {spec.window} steps, {len(manifest.members)} member(s)",
        f"anchors: {anchors or 'none'}",
        f"{len(spec.step_features)} step features: {', '.join(spec.step_features)}",
        f"{len(spec.contract_features)} contract features: {', '.join(spec.contract_features)}",
    ]


def _tick_lines(manifest: Manifest) -> list[str]:
    try:
        spec = TickSpec.from_json(dict(manifest.feature_spec))
    except DataError as error:
        raise BundleError(f"manifest.json: {error}") from error
    return [
        f"semantics {manifest.semantics}, window of {spec.window} steps of {spec.step_ns / 1e6:g} ms, "
        f"{len(manifest.members)} member(s); reads ticks: strikeforge-host run answers with it",
        f"{len(spec.step_features)} step features in {spec.padded_columns} columns: {', '.join(spec.step_features)}",
        f"{len(spec.contract_features)} contract features in {spec.padded_contract_columns} columns: "
        f"{', '.join(spec.contract_features)}",
    ]


def _grid_lines(bundle: Bundle) -> list[str]:
    return [
        f"grid: {SHAPE[0]} tenors of {TENORS_DAYS[0]:g} to {TENORS_DAYS[-1]:g} days, {SHAPE[1]} columns of moneyness "
        f"{MONEYNESS[0]:g} to {MONEYNESS[-1]:g}",
        f"regimes: {', '.join(regime_names(bundle)) or 'none labelled'}",
    ]


def _say_engine(arguments: argparse.Namespace, released: Released) -> None:
    """What the engine reaches and how fast; EngineError where it may not serve."""
    bundle, packs = released.bundle, released.packs
    warm = held_engine(bundle, packs, arguments.engine, arguments.precision, arguments.provider)
    write_lines([f"engine {warm.engine.info().runtime}, held to {warm.held_to}; {_listed(packs)}"])
    _say_parity(warm.parities)
    timed = probed(bundle, packs, warm, arguments.max_step_us)
    assert timed.probe is not None
    write_lines([timed.probe.line()])


def _listed(packs: Sequence[EnginePack]) -> str:
    names = ", ".join(f"{pack.manifest.target} {pack.sha256[:16]}" for pack in packs)
    return f"engine packs: {names or 'none'}"


def _say_parity(parities: Sequence[Parity]) -> None:
    """One line each; EngineError if one is broken."""
    write_lines(
        f"golden {one.name}: largest difference {one.max_abs_difference:.3g}, tolerance {one.tolerance:g}: "
        f"{'holds' if one.holds else 'BROKEN'}"
        for one in parities
    )
    broken = [one.name for one in parities if not one.holds]
    if broken:
        raise EngineError(f"golden parity is broken for {', '.join(broken)}: don't use this engine")


def _surface(arguments: argparse.Namespace, released: Released) -> int:
    bundle = released.bundle
    if arguments.max_step_us is not None:
        raise DataError(f"{arguments.model} judges surfaces, off the tick's path: leave out --max-step-us")
    engine, parities = open_verified_surface_engine(bundle, arguments.engine, arguments.precision, arguments.provider)
    write_lines([f"engine {engine.runtime}, held to the bundle's golden vectors"])
    _say_parity(parities)
    if not (arguments.demo or arguments.chain):
        return 0
    refuse_expired(released)
    expected: Array | None = None
    if arguments.demo:
        market, expected = demo_of(bundle)
        underlying, chain = market.underlying, [*market.chain, market.now]
    else:
        underlying, chain = read_chain(arguments.chain, arguments.underlying)
    found = inspect_chain(bundle, engine, chain)
    write_lines(["", *_judged(underlying, found), "", *_grid(found)])
    if arguments.out is not None:
        write_table(arguments.out, _columns(found, underlying))
        write_lines([f"{len(found.completed)} cells written to {arguments.out}"])
    if expected is not None:
        write_lines([_check_demo(bundle, found, expected)])
    return 0


def _judged(underlying: str, found: Inspected) -> list[str]:
    """What is to be said of the surface, in words."""
    now: Quotes = found.quotes
    lines = [f"{underlying} at {now.spot:g} on {iso(np.array([now.ts]))[0]}; {found.grid.known} of "
             f"{found.grid.mask.size} cells known"]  # fmt: skip
    if found.last is None or found.score is None:
        lines.append("no surface was seen before it in this chain, so it can be completed but not judged")
    else:
        move = 100 * float(np.log(now.spot / found.last.spot))
        worst = max(found.score.by_statistic.items(), key=lambda item: abs(item[1]))
        verdict = f"UNUSUAL, above {100 * UNUSUAL:g} %" if found.unusual else "usual"
        if not found.score.calibrated:
            verdict = "no verdict: the net had too few dates to hold out for a reference"
        lines += [
            f"last seen {iso(np.array([found.last.ts]))[0]} at {found.last.spot:g}; the underlying moved {move:+.2f} %",
            f"anomaly score {found.score.value:.2f}, above {100 * found.score.percentile:.1f} % of the reference "
            f"dates: {verdict} (most by {worst[0]}, {worst[1]:+.2f} times what a tenth of dates exceed)",
            "  " + ", ".join(f"{name} {value:+.2f}" for name, value in found.score.by_statistic.items()),
        ]
    if found.regimes:
        lines.append("regime: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.regimes.items()))
    return lines


def _grid(found: Inspected) -> list[str]:
    """Completed volatilities in %, those not given in brackets."""
    volatility, mask = (100 * found.completed).reshape(SHAPE), found.grid.mask.reshape(SHAPE)
    rows = [("days", *(f"{x:g}" for x in MONEYNESS))]
    for days, values, known in zip(TENORS_DAYS, volatility, mask, strict=True):
        cells = (f"{value:.2f} " if given else f"({value:.2f})" for value, given in zip(values, known, strict=True))
        rows.append((f"{days:g}", *cells))
    head = (
        "completed surface: volatility in %, moneyness ln(K/F)/sqrt(tau) across; in brackets where nothing was quoted"
    )
    return [head, *aligned(rows)]


def _columns(found: Inspected, underlying: str) -> dict[str, np.ndarray]:
    count = len(found.completed)
    given = np.where(found.grid.mask > 0, found.grid.volatility, np.nan)
    return {
        "ts": np.full(count, found.quotes.ts), "underlying": np.full(count, underlying),
        "tenor_days": np.repeat(np.array(TENORS_DAYS), SHAPE[1]), "moneyness": np.tile(np.array(MONEYNESS), SHAPE[0]),
        "volatility_given": given, "volatility": found.completed, "deviation": found.deviation,
    }  # fmt: skip


def _check_demo(bundle: Bundle, found: Inspected, expected: Array) -> str:
    """One line saying that the completed surface is as the trained net gave it; EngineError otherwise."""
    tolerance = tolerance_of(bundle, SURFACE_TOLERANCE)
    if len(expected) != len(found.completed):
        raise EngineError(f"demo: {len(found.completed)} cells completed, expected {len(expected)}")
    difference = float(np.max(np.abs(found.completed - expected)))
    if not difference <= tolerance:
        raise EngineError(f"demo: volatilities differ by {difference:.3g} from the expected, tolerance {tolerance:g}")
    return f"demo: {len(expected)} cells as expected, largest difference {difference:.3g}, tolerance {tolerance:g}"
