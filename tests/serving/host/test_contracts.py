"""The table of contracts: what a file says comes back to the same doubles, and every wrong row is told."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import black76
from serving.errors import ConfigError
from serving.host.contracts import COLUMNS, ContractTable, listed_chain, read_contracts, write_contracts

AT = datetime(2024, 8, 8, 9, tzinfo=UTC)
HEAD = "strike,expiry,right,carry,discount,last_volatility,quoted\n"


def written(path: Path, text: str) -> Path:
    file = path / "chain.csv"
    file.write_text(text, encoding="utf-8")
    return file


def problems_of(call: Any) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        call()
    return refused.value.problems


@settings(max_examples=20, deadline=None)
@given(spot=st.floats(0.01, 1e6), quoted=st.integers(1, 24), rate=st.floats(-0.02, 0.1))
def test_a_listed_chain_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, spot: float, quoted: int, rate: float
) -> None:
    chain = listed_chain(spot, quoted=quoted, rate=rate)
    path = tmp_path_factory.mktemp("chain") / "chain.csv"
    write_contracts(path, chain)
    back = read_contracts(path, spot)
    assert back.quoted == quoted
    for name in COLUMNS:
        assert np.array_equal(getattr(back, name), getattr(chain, name))


def test_a_listed_chain_looks_like_one() -> None:
    chain = listed_chain(60_000.0)
    assert len(set(chain.tau_years.tolist())) == 8
    assert 500 < len(chain) < 5000
    assert (chain.right[::2] != chain.right[1::2]).all()
    quoted = slice(0, chain.quoted)
    assert np.ptp(chain.tau_years[quoted]) == 0
    assert (np.abs(chain.strike[quoted] / 60_000 - 1) < 0.05).all()
    prices = black76.value(
        chain.carry * 60_000, chain.strike, chain.tau_years, chain.last_volatility, chain.discount, chain.right
    ).price
    for tau in set(chain.tau_years.tolist()):  # call prices fall and are convex in the strike
        rows = np.flatnonzero((chain.tau_years == tau) & (chain.right > 0))
        rows = rows[np.argsort(chain.strike[rows])]
        slope = np.diff(prices[rows]) / np.diff(chain.strike[rows])
        assert (slope < 0).all()
        assert (np.diff(slope) > 0).all()


def test_expiries_count_from_the_session(tmp_path: Path) -> None:
    file = written(
        tmp_path, HEAD + "60000,2024-09-27T08:00:00Z,C,1.01,0.99,0.5,1\n60000,2024-09-27,P,1.01,0.99,0.5,0\n"
    )
    table = read_contracts(file, 60_000.0, at=AT)
    assert table.tau_years[0] == (50 * 86400 - 3600) / (365 * 86400)
    assert table.tau_years[1] == (50 * 86400 - 9 * 3600) / (365 * 86400)
    assert table.names == ["60000 C 50d", "60000 P 49.6d"]
    assert (len(table), table.quoted) == (2, 1)


def test_every_problem_is_told_with_its_row(tmp_path: Path) -> None:
    rows = "x,2024-09-27T08:00:00Z,C,1,1,0.5,1\n60000,soon,Q,1,1,0.5,yes\n60000,2024-09-27T08:00:00Z,C,1,1\n"
    problems = "\n".join(problems_of(lambda: read_contracts(written(tmp_path, HEAD + rows), 6e4, at=AT)))
    for told in (
        "line 2: strike: must be a number, found 'x'",
        "line 3: expiry: must be a time like",
        "line 3: right: must be C or P, found 'Q'",
        "line 3: quoted: must be 1 or 0, found 'yes'",
        "line 4: has not as many fields",
    ):
        assert told in problems


def test_numbers_that_make_no_sense_are_told_together(tmp_path: Path) -> None:
    rows = (
        "60000,2024-09-27T08:00:00Z,C,1,1,0.5,1\n"
        "-1,2024-09-27T08:00:00Z,C,1,1,0.5,0\n"
        "60000,2024-08-01T08:00:00Z,C,1,inf,nan,0\n"
        "60000,2024-09-27T08:00:00Z,C,1,1,0.6,0\n"
        "60000,2024-09-27T08:00:00Z,C,x,1,0.6,1\n"
    )
    found = problems_of(lambda: read_contracts(written(tmp_path, HEAD + rows), -5.0, at=AT))
    told = [problem.partition("chain.csv: ")[2] for problem in found]
    assert told == [
        "line 3: strike: must be above 0, found '-1'",
        "line 4: expiry: must be after 2024-08-08T09:00:00+00:00, the session's time, found '2024-08-01T08:00:00Z'",
        "line 4: discount: must be above 0, found 'inf'",
        "line 4: last_volatility: must be above 0, found 'nan'",
        "line 6: carry: must be a number, found 'x'",
        "line 5: is line 2 once more (strike, expiry and right)",
        "quoted: 2 rows are marked as quoted, and 2 are asked for; they must be the first rows of the file",
        "reference_spot: must be above 0, found -5.0",
    ]


def test_a_table_that_makes_no_sense_tells_all_of_it() -> None:
    ones = np.ones(3)

    def made() -> None:
        ContractTable(
            np.array([1.0, 1.0, -1.0]), np.array([1.0, 1.0, np.nan]), ones, ones, ones, ones, quoted=4,
            reference_spot=0.0,
        )  # fmt: skip

    assert problems_of(made) == [
        "contract 3: strike: must be above 0, found -1.0",
        "contract 3: tau_years: must be above 0, found nan",
        "contract 2: is contract 1 once more (strike, expiry and right)",
        "quoted: must be 1 to 3, found 4",
        "reference_spot: must be above 0, found 0.0",
    ]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (HEAD.replace("quoted", "qouted"), "unknown column 'qouted'"),
        (HEAD.replace("strike,", ""), "column 'strike' is missing"),
        (HEAD.replace("expiry", "tau_years,expiry"), "exactly one of the columns"),
        (HEAD.replace("carry", "strike"), "column 'strike' is there twice"),
        (HEAD.replace(",quoted", ""), "how many contracts are quoted isn't said"),
        ("", "column 'strike' is missing"),
    ],
)
def test_columns_are_those_we_know(tmp_path: Path, columns: str, told: str) -> None:
    assert told in "\n".join(problems_of(lambda: read_contracts(written(tmp_path, columns), 1.0, at=AT)))


def test_quoted_are_the_first_rows_and_said_once(tmp_path: Path) -> None:
    row = "2024-09-27T08:00:00Z,C,1,1,0.5"
    marked = written(tmp_path, HEAD + f"1,{row},0\n2,{row},1\n")
    assert "must be the first rows" in problems_of(lambda: read_contracts(marked, 1.0, at=AT))[0]
    marked = written(tmp_path, HEAD + f"1,{row},1\n2,{row},0\n")
    assert read_contracts(marked, 1.0, at=AT, quoted=1).quoted == 1
    assert "1 rows are marked" in problems_of(lambda: read_contracts(marked, 1.0, at=AT, quoted=2))[0]
    assert "expiries count" in problems_of(lambda: read_contracts(marked, 1.0))[0]
    assert "no time zone" in problems_of(lambda: read_contracts(marked, 1.0, at=AT.replace(tzinfo=None)))[0]


def test_what_isnt_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chain.csv").write_bytes(b"\xff\xfe\x00strike")
    assert "can't be read as CSV" in problems_of(lambda: read_contracts(tmp_path / "chain.csv", 1.0))[0]
    assert "can't be read as CSV" in problems_of(lambda: read_contracts(tmp_path / "none.csv", 1.0))[0]


def test_no_two_contracts_have_one_name(tmp_path: Path) -> None:
    """An index's monthly ends in the morning, its weekly that afternoon: to Prometheus they would be one series."""
    morning, afternoon = "2024-12-06T14:30:00Z", "2024-12-06T21:00:00Z"
    rows = [
        f"{strike},{expiry},C,1,1,0.2,1" for strike in (5000, 1234567.5, 1234568) for expiry in (morning, afternoon)
    ]
    table = read_contracts(written(tmp_path, HEAD + "\n".join(rows)), 5000.0, at=AT)
    assert len(set(table.names)) == len(rows)
    assert listed_chain(60_000.0).names[0] == "60000 C 30d"


def test_a_table_doesnt_change() -> None:
    chain = listed_chain(100.0)
    with pytest.raises(ValueError, match="read-only"):
        chain.strike[0] = 1.0
    assert "of one length" in problems_of(lambda: ContractTable(*[chain.strike] * 5, chain.strike[:3], 1, 1.0))[0]
