"""`strikeforge-host`: what a person types on a trading host.

    strikeforge-host price    a released model's fair value of every contract of a chain, with Greeks
    strikeforge-host inspect  what a channel points at, verified, its golden vectors recomputed
    strikeforge-host info     versions, CPU, and which engines can run here

Data in: a store (ledger and bundles), tables of quotes. Data out: text on stdout, one table file; errors as one message
on stderr. Exit codes: 0, 2 for wrong usage, else those of serving/errors.py.
Invariant: a bundle is used only if the ledger's channel names it and every byte of it was verified.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from serving.blobstore import FolderStore, open_store
from serving.bundle import Bundle, fetch_bundle, load_bundle
from serving.demo import DEMO_CHAIN, DEMO_FILES, unpack_demo
from serving.engine import IV_TOLERANCE, Engine, golden_parity, open_engine, tolerance_of, unavailable_engines
from serving.errors import BundleError, DataError, EngineError, run_command
from serving.ledger import CHANNELS, Ledger
from serving.normal import Array
from serving.pricing import PRICED, PricedChain, feature_spec, price_chain
from serving.problems import iso
from serving.table_files import SUFFIXES, has_known_suffix, write_table
from serving.tables import Market, read_market

PRICING_BACKENDS = ("ort",)
LEGEND = """\
iv_last, iv: volatility as last seen and fair now, % per square root of a year; price, forward: money
delta, gamma: per unit of the spot price; vega: money per 1.00 of volatility; theta: money per year
status: ok; outside_training_range: priced, but that expiry was outside what the model is scored on"""
COLUMNS = ("strike", "right", "iv_last", "iv", "price", "delta", "gamma", "vega", "theta", "status")


@dataclass(frozen=True)
class Released:
    """A channel's bundle and where it stands in the ledger."""

    bundle: Bundle
    channel: str
    version: int
    release: int | None  # None for a challenger, which hasn't been released

    def title(self) -> str:
        """One line that names it fully."""
        release = f"release {self.release}" if self.release is not None else "not released"
        return (
            f"{self.bundle.manifest.model} {self.channel}: {release}, version {self.version}, "
            f"bundle {self.bundle.sha256}"
        )


def entry() -> None:
    """Console script; a reader that stops early (`| head`) is no error."""
    try:
        code = run_command(main)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at exit
        code = 0
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Parse and run one command."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "price":
        return _price(parser, arguments)
    return _inspect(arguments) if arguments.command == "inspect" else _info()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="strikeforge-host", description="Fair values of option chains on a host.")
    commands = parser.add_subparsers(dest="command", required=True)
    price = commands.add_parser("price", help="price every contract of a chain")
    inspect = commands.add_parser("inspect", help="verify a channel's bundle and recompute its golden vectors")
    commands.add_parser("info", help="versions, CPU and engines of this host")
    for command in (price, inspect):
        command.add_argument("--model", required=True, help="name of the model in the store's ledger")
        command.add_argument("--channel", choices=CHANNELS, default="champion")
        command.add_argument("--store", required=True, help="folder or URL that holds ledger/ and bundles/")
        command.add_argument("--backend", choices=PRICING_BACKENDS, default="ort")
    kinds = ", ".join(SUFFIXES)
    price.add_argument("--demo", action="store_true", help="take the inputs from the bundle and check the answer")
    price.add_argument("--chain", type=Path, metavar="FILE", help=f"past snapshots of the chain ({kinds})")
    price.add_argument("--path", type=Path, metavar="FILE", help="the underlying's past prices")
    price.add_argument("--now", type=Path, metavar="FILE", help="the underlying and the anchors' quotes now")
    price.add_argument("--underlying", help="which one, where the chain holds several")
    price.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"every contract goes here ({kinds})")
    price.add_argument("--rows", type=int, default=20, help="contracts to print, spread over the expiries (default 20)")
    return parser


def _price(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
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
        released = _resolve(arguments, stack)
        expected: Array | None = None
        if arguments.demo:
            market, expected = _demo(released.bundle)
        else:
            market = read_market(files["chain"], files["path"], files["now"], arguments.underlying)
        spec = feature_spec(released.bundle)
        engine = open_engine(released.bundle, arguments.backend)
        priced = price_chain(engine, spec, market.chain, market.path, market.now)
        _write(_report(released, engine, market, priced, arguments.rows))
        write_table(arguments.out, _file_columns(priced, market.underlying))
        _write([f"{len(priced)} contracts written to {arguments.out}"])
        if expected is not None:
            _write([_check_demo(released.bundle, priced, expected)])
    return 0


def _resolve(arguments: argparse.Namespace, stack: ExitStack) -> Released:
    """The channel's bundle: verified in place in a folder, else in a temporary copy."""
    store = open_store(arguments.store)
    if isinstance(store, FolderStore) and not store.root.is_dir():
        raise DataError(f"store {arguments.store}: there is no such folder")
    state = Ledger(store, arguments.model).state()
    version = state.resolve(arguments.channel)
    if isinstance(store, FolderStore):
        folder = store.root / "bundles" / version.bundle
        if not folder.is_dir():
            raise BundleError(f"bundle {version.bundle}: isn't in store {arguments.store}, though the ledger names it")
        bundle = load_bundle(folder, expected_sha256=version.bundle, model=arguments.model)
    else:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="strikeforge-"))
        bundle = fetch_bundle(store, version.bundle, Path(temporary))
        if bundle.manifest.model != arguments.model:
            found = bundle.manifest.model
            raise BundleError(f"bundle {version.bundle}: is of model {found!r}, not {arguments.model!r}")
    champion = state.champion
    released = champion.number if champion is not None and arguments.channel == "champion" else None
    return Released(bundle, arguments.channel, version.version, released)


def _demo(bundle: Bundle) -> tuple[Market, Array]:
    for name in DEMO_FILES:
        if name in bundle.manifest.files:
            arrays = bundle.arrays(name)
            if DEMO_CHAIN[0] in arrays:
                return unpack_demo(arrays, name)
    raise BundleError(f"bundle {bundle.sha256} holds no demo; give --chain, --path and --now")


def _check_demo(bundle: Bundle, priced: PricedChain, expected: Array) -> str:
    """One line saying that the demo's volatilities are as the trained net gave them; EngineError otherwise."""
    found, tolerance = priced.volatility[: len(expected)], tolerance_of(bundle, IV_TOLERANCE)
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
        lines += [*_aligned([COLUMNS, *(_cells(priced, row) for row in shown)]), ""]
    return lines


def _cells(priced: PricedChain, row: int) -> tuple[str, ...]:
    return (
        f"{priced.strike[row]:g}", "C" if priced.right[row] > 0 else "P", f"{100 * priced.last_volatility[row]:.2f}",
        f"{100 * priced.volatility[row]:.2f}", f"{priced.price[row]:.3f}", f"{priced.delta[row]:+.4f}",
        f"{priced.gamma[row]:.3g}", f"{priced.vega[row]:.2f}", f"{priced.theta[row]:.2f}", str(priced.status[row]),
    )  # fmt: skip


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _file_columns(priced: PricedChain, underlying: str) -> dict[str, np.ndarray]:
    count = len(priced)
    numbers = ("tau", "forward", "discount", "last_volatility", "volatility")
    return {
        "ts": np.full(count, priced.ts), "underlying": np.full(count, underlying), "root": priced.root,
        "expiry": priced.expiry, "strike": priced.strike, "right": np.where(priced.right > 0, "C", "P"),
        **{name: getattr(priced, name) for name in (*numbers, "price", "delta", "gamma", "vega", "theta")},
        "status": priced.status,
    }  # fmt: skip


def _inspect(arguments: argparse.Namespace) -> int:
    with ExitStack() as stack:
        released = _resolve(arguments, stack)
        bundle, manifest = released.bundle, released.bundle.manifest
        spec = feature_spec(bundle)
        anchors = ", ".join(f"{anchor.tenor_days:g}d at moneyness {anchor.moneyness:g}" for anchor in spec.anchors)
        sizes = [("file", "bytes", "sha256")]
        sizes += [(name, str(entry.size), entry.sha256[:16]) for name, entry in sorted(manifest.files.items())]
        _write([
            released.title(), f"net: {dict(manifest.model_config)}",
            f"semantics {manifest.semantics}, window of {spec.window} steps, {len(manifest.members)} member(s)",
            f"anchors: {anchors or 'none'}",
            f"{len(spec.step_features)} step features: {', '.join(spec.step_features)}",
            f"{len(spec.contract_features)} contract features: {', '.join(spec.contract_features)}",
            f"made from data {manifest.data_sha256[:16]}, configuration {manifest.config_sha256[:16]}",
            *_aligned(sizes), f"all {len(manifest.files)} files have the size and sha256 that the manifest names",
        ])  # fmt: skip
        parities = golden_parity(bundle, open_engine(bundle, arguments.backend))
    _write(
        f"golden {one.name}: largest difference {one.max_abs_difference:.3g}, tolerance {one.tolerance:g}: "
        f"{'holds' if one.holds else 'BROKEN'}"
        for one in parities
    )
    broken = [one.name for one in parities if not one.holds]
    if broken:
        raise EngineError(f"golden parity is broken for {', '.join(broken)}: don't price with this engine")
    return 0


def _info() -> int:
    versions = {name: _version(name) for name in ("strikeforge", "numpy", "onnxruntime", "onnxruntime-gpu", "pyarrow")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    reasons = unavailable_engines()
    _write([
        f"python {platform.python_version()} on {platform.platform()}",
        *(f"{name} {version or 'not installed'}" for name, version in versions.items()),
        f"cpu {_cpu_name()}, {cores} usable core(s)",
        *(f"engine {name}: {'available' if reason is None else reason}" for name, reason in reasons.items()),
    ])  # fmt: skip
    return 0


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _write(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
