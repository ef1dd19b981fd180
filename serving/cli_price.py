"""`strikeforge-host price`: a released model's fair value of every contract of a chain, with Greeks.

Data in: a pulled release (or, for development, a store), tables of quotes (serving/tables.py), or the bundle's own
demo. Data out: text on stdout, one table file. Invariants: every contract of the chain is in the table, with a status;
an expired release prices nothing.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack

import numpy as np

from serving.bundle import Bundle
from serving.cli_engine import opened
from serving.engine import Engine
from serving.errors import DataError, EngineError
from serving.normal import Array
from serving.pricing import PRICED, PricedChain, feature_spec, price_chain, refuse_ticks
from serving.problems import iso
from serving.released import Released, aligned, demo_of, refuse_expired, resolve, write_lines
from serving.table_files import SUFFIXES, has_known_suffix, write_table
from serving.tables import Market, read_market
from serving.warm import demo_tolerance

LEGEND = """\
iv_last, iv: volatility as last seen and fair now, % per square root of a year; price, forward: money
delta, gamma: per unit of the spot price; vega: money per 1.00 of volatility; theta: money per year
status: ok; outside_training_range: priced, but that expiry was outside what the model is scored on"""
COLUMNS = ("strike", "right", "iv_last", "iv", "price", "delta", "gamma", "vega", "theta", "status")


def run_price(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Check the arguments, price, write."""
    files = {name: getattr(arguments, name) for name in ("chain", "path", "now")}
    lacking = [f"--{name}" for name, file in files.items() if file is None]
    if arguments.demo and (len(lacking) < len(files) or arguments.underlying):
        parser.error("--demo brings its own inputs: leave out --chain, --path, --now and --underlying")
    if not arguments.demo and lacking:
        parser.error(f"{', '.join(lacking)} missing: give all three tables, or --demo")
    if arguments.rows < 0:
        parser.error("--rows must be 0 or more")
    if not has_known_suffix(arguments.out):
        parser.error(f"--out {arguments.out}: the name must end in {', '.join(SUFFIXES)}")
    if not arguments.out.absolute().parent.is_dir():
        raise DataError(f"{arguments.out}: there is no folder {arguments.out.absolute().parent}; make it first")
    with ExitStack() as stack:
        released = resolve(arguments, stack)
        refuse_expired(released)
        refuse_ticks(released.bundle)
        engine = opened(arguments, released).engine  # refuses a bundle that prices nothing
        expected: Array | None = None
        if arguments.demo:
            market, expected = demo_of(released.bundle)
        else:
            market = read_market(files["chain"], files["path"], files["now"], arguments.underlying)
        spec = feature_spec(released.bundle)
        priced = price_chain(engine, spec, market.chain, market.path, market.now)
        write_lines(_report(released, engine, market, priced, arguments.rows))
        write_table(arguments.out, _file_columns(priced, market.underlying))
        write_lines([f"{len(priced)} contracts written to {arguments.out}"])
        if expected is not None:
            write_lines([_check_demo(released.bundle, arguments.precision, priced, expected)])
    return 0


def _check_demo(bundle: Bundle, precision: str, priced: PricedChain, expected: Array) -> str:
    """One line saying that the demo's volatilities are as the trained net gave them; EngineError otherwise."""
    found, tolerance = priced.volatility[: len(expected)], demo_tolerance(bundle, precision, expected)
    if len(found) != len(expected) or (np.isnan(found) != np.isnan(expected)).any():
        raise EngineError(
            f"demo: {np.isfinite(found).sum()} of {len(found)} contracts priced, "
            f"expected {np.isfinite(expected).sum()} of {len(expected)}, the same ones"
        )
    difference = float(np.nanmax(np.abs(found - expected), initial=0.0))
    if not difference <= tolerance:
        raise EngineError(f"demo: volatilities differ by {difference:.3g} from the expected, tolerance {tolerance:g}")
    count = int(np.isfinite(expected).sum())
    return f"demo: {count} volatilities as expected, largest difference {difference:.3g}, tolerance {tolerance:g}"


def _report(released: Released, engine: Engine, market: Market, priced: PricedChain, rows: int) -> list[str]:
    anchors = ", ".join(f"{anchor.key.root} {anchor.strike:g} {anchor.tau * 365:.0f}d" for anchor in priced.anchors)
    counts = {status: count for status, count in priced.counts().items() if count}
    done = sum(count for status, count in counts.items() if status in PRICED)
    now, seen = iso(np.array([priced.ts]))[0], iso(np.array([priced.last_ts]))[0]
    detail = ", ".join(f"{status} {count}" for status, count in counts.items())
    return [
        released.title(),
        f"{engine.info().runtime}; {engine.info().members} member(s), {engine.info().semantics} semantics",
        f"{market.underlying} at {priced.spot:g} on {now}; surface last seen {seen}; anchors: {anchors or 'none'}",
        *(f"note: {note}" for note in priced.notes),
        "",
        *_table(priced, rows),
        LEGEND,
        "",
        f"{done} contracts priced, {len(priced) - done} not: {detail}",
    ]


def _table(priced: PricedChain, rows: int) -> list[str]:
    """Of each expiry the contracts nearest the money, `rows` in all."""
    usable = np.flatnonzero(np.isin(priced.status, PRICED))
    order = usable[np.lexsort((priced.strike[usable], priced.root[usable], priced.expiry[usable]))]
    names, dates = priced.root[order], priced.expiry[order]
    breaks = np.flatnonzero((names[1:] != names[:-1]) | (dates[1:] != dates[:-1])) + 1
    groups = [group for group in np.split(order, breaks) if group.size]
    lines: list[str] = []
    left = rows
    for place, group in enumerate(groups):
        share = -(-left // (len(groups) - place))
        distance = np.abs(np.log(priced.strike[group] / priced.forward[group]))
        shown = group[np.argsort(distance, kind="stable")[:share]]
        left -= len(shown)
        if not len(shown):
            break
        shown = shown[np.lexsort((-priced.right[shown], priced.strike[shown]))]
        first = shown[0]
        expiry = iso(priced.expiry[first : first + 1])[0]
        days = priced.tau[first] * 365
        carry = f"forward {priced.forward[first]:.2f}, discount {priced.discount[first]:.5f}"
        lines += [f"{priced.root[first]} {expiry}: {days:.0f} days, {carry}"]
        lines += [*aligned([COLUMNS, *(_cells(priced, row) for row in shown)]), ""]
    return lines


def _cells(priced: PricedChain, row: int) -> tuple[str, ...]:
    return (
        f"{priced.strike[row]:g}", "C" if priced.right[row] > 0 else "P", f"{100 * priced.last_volatility[row]:.2f}",
        f"{100 * priced.volatility[row]:.2f}", f"{priced.price[row]:.3f}", f"{priced.delta[row]:+.4f}",
        f"{priced.gamma[row]:.3g}", f"{priced.vega[row]:.2f}", f"{priced.theta[row]:.2f}", str(priced.status[row]),
    )  # fmt: skip


def _file_columns(priced: PricedChain, underlying: str) -> dict[str, np.ndarray]:
    count = len(priced)
    numbers = ("tau", "forward", "discount", "last_volatility", "volatility")
    values = ("price", "early_exercise", "delta", "gamma", "vega", "theta")
    return {
        "ts": np.full(count, priced.ts), "underlying": np.full(count, underlying), "root": priced.root,
        "expiry": priced.expiry, "strike": priced.strike, "right": np.where(priced.right > 0, "C", "P"),
        **{name: getattr(priced, name) for name in (*numbers, *values)},
        "status": priced.status,
    }  # fmt: skip
