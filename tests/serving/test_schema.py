"""The quote table's contract: what `schema.check` lets through and what it names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving import schema
from serving.errors import SchemaError


def table(rows: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    texts = {
        "underlying": "SPX",
        "root": "SPXW",
        "right": "C",
        "style": "european",
        "settlement": "pm",
        "currency": "USD",
        "price_unit": "money",
    }
    columns: dict[str, np.ndarray[Any, Any]] = {}
    for column in schema.COLUMNS:
        if column.kind == "text":
            columns[column.name] = np.array([texts[column.name]] * rows)
        elif column.kind == "timestamp":
            columns[column.name] = np.arange(rows).astype("datetime64[ns]")
        else:
            columns[column.name] = np.ones(rows)
    return columns


def test_order_and_nullability_are_the_contract() -> None:
    assert schema.NAMES == (
        "ts", "underlying", "root", "expiry", "strike", "right", "style", "settlement", "bid", "ask", "bid_size",
        "ask_size", "underlying_price", "forward", "volume", "open_interest", "currency", "price_unit",
    )  # fmt: skip
    assert schema.NULLABLE == ("bid_size", "ask_size", "forward", "volume", "open_interest")


def test_docstring_table_names_every_column() -> None:
    lines = [line.split() for line in (schema.__doc__ or "").splitlines() if line.startswith("    ")]
    described = [(words[0], words[1]) for words in lines[2:]]
    assert described == [(column.name, column.kind) for column in schema.COLUMNS]


def test_good_table_passes() -> None:
    schema.check(table())
    nullable = table()
    nullable["volume"] = np.full(3, np.nan)
    nullable["right"] = np.array(["C", "P", "C"], dtype=object)
    schema.check(nullable)


def test_all_problems_at_once() -> None:
    wrong = table()
    del wrong["strike"]
    wrong["surprise"] = np.ones(3)
    wrong["right"] = np.array(["C", "call", "P"])
    wrong["bid"] = np.array([1.0, np.nan, 2.0])
    wrong["volume"] = np.array(["1", "2", "3"])
    wrong["ts"] = wrong["ts"][:2]
    with pytest.raises(SchemaError) as caught:
        schema.check(wrong)
    message = str(caught.value)
    for part in (
        "'strike' is missing",
        "'surprise' isn't part",
        "'right' has 'call' at row 1; allowed: C, P",
        "'bid' has 1 unusable values, first nan at row 1",
        "'volume' must be number",
        "differ in shape",
    ):
        assert part in message
