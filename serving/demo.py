"""Demo inputs inside a bundle: a market and the volatilities to be found, as arrays of `demo.npz`.

In and out: `Market` and arrays of numbers only. Times are int64 ns, texts uint8 [n, width] of UTF-8 padded with zeros.
What is special about quotes (American, the venue's forwards, prices once in coin) has arrays of its own where there is
any of it, and none otherwise.
Invariant: `unpack_demo(pack_demo(x))` is x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import BundleError
from serving.features import Path
from serving.normal import Array
from serving.surface import Quotes, Texts, Times
from serving.tables import CHAIN_COLUMNS, Market, split_quotes

DEMO_FILES = ("demo.npz", "golden.npz")  # the first that is there and holds a demo
DEMO_EXPECTED = "demo_iv"
DEMO_CHAIN = tuple(f"chain_{name}" for name in CHAIN_COLUMNS)
DEMO_NOW = tuple(f"now_{name}" for name in CHAIN_COLUMNS if name != "underlying")
DEMO_PATH = ("path_ts", "path_price")
NO_CONTRACT: dict[str, npt.NDArray[Any]] = {"root": np.array([""]), "expiry": np.array(["NaT"], "datetime64[ns]")}


def pack_demo(market: Market, expected_iv: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """Arrays for an npz that `unpack_demo` reads back; `expected_iv` in the order of `PricedChain`."""
    packed = {"path_ts": _packed(market.path.ts), "path_price": market.path.price, DEMO_EXPECTED: expected_iv}
    for prefix, snapshots in (("chain", market.chain), ("now", [market.now])):
        rows = [max(len(quotes), 1) for quotes in snapshots]
        packed[f"{prefix}_ts"] = _packed(np.repeat(np.array([quotes.ts for quotes in snapshots]), rows))
        packed[f"{prefix}_underlying_price"] = np.repeat([quotes.spot for quotes in snapshots], rows)
        for name in ("root", "expiry", "strike", "right", "bid", "ask"):
            empty = NO_CONTRACT.get(name, np.array([np.nan]))
            parts = [getattr(quotes, name) if len(quotes) else empty for quotes in snapshots]
            packed[f"{prefix}_{name}"] = _packed(np.concatenate(parts))
        packed |= {f"{prefix}_{name}": values for name, values in _special(snapshots, rows).items()}
    packed["chain_underlying"] = _packed(np.full(len(packed["chain_ts"]), market.underlying))
    return packed


def unpack_demo(arrays: dict[str, npt.NDArray[Any]], file: str) -> tuple[Market, Array]:
    """Inputs and expected volatilities of a bundle's demo; BundleError naming arrays that are missing or don't fit."""
    lengths = {
        part: {arrays[name].shape[0] for name in names if name in arrays and arrays[name].ndim}
        for part, names in (("chain", DEMO_CHAIN), ("now", DEMO_NOW), ("path", DEMO_PATH))
    }
    missing = [name for name in (*DEMO_CHAIN, *DEMO_NOW, *DEMO_PATH, DEMO_EXPECTED) if name not in arrays]
    if missing or any(len(found) != 1 or found == {0} for found in lengths.values()):
        what = f"lacks {', '.join(missing)}" if missing else f"a demo's arrays differ in length or are empty: {lengths}"
        raise BundleError(f"{file}: {what}; export the bundle again with a demo")
    parts = []
    for prefix in ("chain", "now"):
        get = {name: arrays[f"{prefix}_{name}"] for name in CHAIN_COLUMNS if f"{prefix}_{name}" in arrays}
        parts.append(
            split_quotes(
                _unpacked_times(get["ts"]), get["underlying_price"].astype(np.float64), _unpacked_texts(get["root"]),
                _unpacked_times(get["expiry"]), get["strike"].astype(np.float64), get["right"].astype(np.float64),
                get["bid"].astype(np.float64), get["ask"].astype(np.float64),
                american=arrays[f"{prefix}_american"] > 0 if f"{prefix}_american" in arrays else None,
                venue_forward=arrays.get(f"{prefix}_venue_forward"), coin=f"{prefix}_coin" in arrays,
            )
        )  # fmt: skip
    path = Path(_unpacked_times(arrays["path_ts"]), arrays["path_price"].astype(np.float64))
    chain, (now,) = parts
    underlying = str(_unpacked_texts(arrays["chain_underlying"])[0])
    return Market(underlying, chain, path, now), arrays[DEMO_EXPECTED].astype(np.float64)


def _special(snapshots: Sequence[Quotes], rows: list[int]) -> dict[str, npt.NDArray[Any]]:
    """Arrays that only some markets have, in the order of the rows of `pack_demo`."""
    found: dict[str, npt.NDArray[Any]] = {}
    if any(quotes.american is not None for quotes in snapshots):
        parts = [quotes.is_american if len(quotes) else np.zeros(1, dtype=bool) for quotes in snapshots]
        found["american"] = np.concatenate(parts).astype(np.uint8)
    if any(quotes.venue_forward is not None for quotes in snapshots):
        found["venue_forward"] = np.concatenate([
            np.full(count, np.nan) if quotes.venue_forward is None or not len(quotes) else quotes.venue_forward
            for quotes, count in zip(snapshots, rows, strict=True)
        ])  # fmt: skip
    if any(quotes.coin for quotes in snapshots):
        found["coin"] = np.ones(sum(rows), np.uint8)
    return found


def _packed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind == "M":
        return values.astype("datetime64[ns]").astype(np.int64)
    if values.dtype.kind == "U":
        encoded = np.char.encode(values, "utf-8")
        encoded = encoded.astype(f"S{max(encoded.dtype.itemsize, 1)}")
        return np.frombuffer(encoded.tobytes(), np.uint8).reshape(len(values), -1)
    return values


def _unpacked_times(values: npt.NDArray[Any]) -> Times:
    return values.astype("datetime64[ns]")


def _unpacked_texts(values: npt.NDArray[Any]) -> Texts:
    if values.dtype == np.uint8 and values.ndim == 2:
        return np.char.decode(np.ascontiguousarray(values).view(f"S{values.shape[1]}")[:, 0], "utf-8")
    return values.astype(np.str_)
