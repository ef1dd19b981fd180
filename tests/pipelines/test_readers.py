"""Readers: every line accounted for, damage named, headers judged before any row is read."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines import csv_lines, readers
from serving.errors import DataError, SchemaError

NEEDED = ("a", "b", "c")


def read_lines(path: Path) -> tuple[list[tuple[int, tuple[str, ...]]], list[csv_lines.Malformed]]:
    """Rows as (number, fields) and malformed lines of one file."""
    rows: list[tuple[int, tuple[str, ...]]] = []
    malformed: list[csv_lines.Malformed] = []
    (source,) = readers.open_sources(path, NEEDED)
    for batch in readers.read_batches(source):
        rows += zip(batch.rows.tolist(), batch.table.rows(), strict=True)
        malformed += batch.malformed
    return rows, malformed


def read(path: Path) -> tuple[list[tuple[int, tuple[str, ...]]], list[tuple[int, str]]]:
    """Rows as (number, fields) and malformed lines as (number, text) of one file."""
    rows, malformed = read_lines(path)
    return rows, [(line.row, line.text) for line in malformed]


def csv_file(path: Path, body: str | bytes) -> Path:
    file = path / "in.csv"
    file.write_bytes(b"a,b,c\n" + (body.encode() if isinstance(body, str) else body))
    return file


def test_row_numbers_stand_for_lines(tmp_path: Path) -> None:
    rows, malformed = read(csv_file(tmp_path, "1,2,3\n4,5\n\n6,7,8\n9,9,9,9\nx,y,z"))
    assert rows == [(1, ("1", "2", "3")), (4, ("6", "7", "8")), (6, ("x", "y", "z"))]
    assert malformed == [(2, "4,5"), (5, "9,9,9,9")]


def test_stray_quotes_swallow_no_line(tmp_path: Path) -> None:
    body = '1,"2",3\n4,"5,6\n7,x"8,"9\n"a,b",c,d\n1,"2"3,4\n5,6,7\n'
    rows, malformed = read(csv_file(tmp_path, body))
    assert rows == [(1, ("1", "2", "3")), (4, ("a,b", "c", "d")), (6, ("5", "6", "7"))]
    assert malformed == [(2, '4,"5,6'), (3, '7,x"8,"9'), (5, '1,"2"3,4')]


def test_bytes_that_are_no_text_are_one_malformed_row(tmp_path: Path) -> None:
    rows, malformed = read(csv_file(tmp_path, b"1,2,3\n\xff\xfe\x00,\x81,3\n4,5,6\r\n7,8\r9,10\n"))
    assert rows == [(1, ("1", "2", "3")), (3, ("4", "5", "6"))]
    assert [row for row, _ in malformed] == [2, 4]


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes("\ufeffa,b,c\r\n1,2,3\r\n".encode())
    assert read(file) == ([(1, ("1", "2", "3"))], [])


@pytest.mark.parametrize("tail", ["", "\n", "\r\n", "\n11\n", '\n4,x"x"x,6\n'])
@pytest.mark.parametrize("line", ['1,2,"', '1,2,"3', '1,"2,3', '"1,2,3', '1,2",3', '1,x"x,3', '1,2,"""', '"a,"b,"c",d'])
def test_unbalanced_quotes_make_their_line_malformed(tmp_path: Path, line: str, tail: str) -> None:
    rows, malformed = read(csv_file(tmp_path, line + tail))
    assert rows == ([(2, ("4", 'x"x"x', "6"))] if "x" in tail else [])
    assert malformed == [(1, line)] + ([(2, "11")] if "11" in tail else [])


def test_sound_quotes_are_read_as_csv_says(tmp_path: Path) -> None:
    body = '"","""",""""""\n",",","",a""\r\n"é","a""b",\n1,x"x"x,3\n'
    wanted = [(1, ("", '"', '""')), (3, ("é", 'a"b', "")), (4, ("1", 'x"x"x', "3"))]
    rows, malformed = read(csv_file(tmp_path, body))
    assert (rows, malformed) == (wanted, [(2, '",",","",a""')])


def test_a_lines_outcome_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that were read differently beside a line with stray quotes, or at a block's start."""
    lines = ["1,2,3", "\ufeff4,5,6", f'1,"{"z" * 140_000}",3', '1,"2"', "1,2"]
    file = csv_file(tmp_path, "\n".join([*lines, 'x"x"x,2,3', ""]))
    whole = read_lines(file)
    monkeypatch.setattr(csv_lines, "BLOCK_BYTES", 7)
    assert read_lines(file) == whole
    assert [row for row, _ in whole[0]] == [1, 2, 3, 6]
    assert whole[0][1][1] == ("\ufeff4", "5", "6")
    assert {line.detail for line in whole[1]} == {"2 fields, the header has 3"}


LINE = st.text(st.sampled_from(list('ab1,,"\r\t é\ufeff\udcff')), max_size=12)  # \udcff stands for the byte FF


@settings(max_examples=150, deadline=None)
@given(st.lists(LINE, max_size=30), st.integers(7, 60))
@example(lines=['111111111,,"', "11", ""], block=7)
@example(lines=['1,2,"3'], block=7)
@example(lines=['"a,"b,"c",d', 'a"a"a,,', ""], block=7)
@example(lines=["a,,", "\ufeffb,,", ""], block=7)
@example(lines=['a,"b"', 'a"a"a,,', ""], block=7)
@example(lines=["\udcff,1", "a,,", ""], block=7)
def test_no_line_is_lost_and_blocks_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], block: int
) -> None:
    body = "\n".join(lines).encode(errors="surrogateescape")
    file = csv_file(tmp_path_factory.mktemp("lines"), body)
    whole = read_lines(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_lines, "BLOCK_BYTES", block)
        assert read_lines(file) == whole
    rows, malformed = whole
    numbers = sorted([row for row, _ in rows] + [line.row for line in malformed])
    assert numbers == [row for row, line in enumerate(lines, start=1) if line.removesuffix("\r")]
    for row, fields in rows:
        assert lines[row - 1].count('"') % 2 == 0
        assert not any(end in value for value in fields for end in "\r\n")


def test_all_kinds_of_file_read_alike(tmp_path: Path) -> None:
    table = pl.DataFrame({"a": ["1", "2"], "b": ["x", "y"], "c": ["", "z"]})
    table.write_csv(tmp_path / "in.csv", quote_style="never")
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress((tmp_path / "in.csv").read_bytes()))
    table.write_parquet(tmp_path / "in.parquet")
    assert read(tmp_path / "in.csv") == read(tmp_path / "in.csv.gz") == read(tmp_path / "in.parquet")


def test_truncated_gzip_and_false_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b"a,b,c\n" + b"".join(b"%d,%d,3\n" % (n, n * n) for n in range(50_000)))
    file = tmp_path / "in.csv.gz"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"in\.csv\.gz: the gzip file ends too early, it is truncated; fetch it again"):
        read(file)
    file.write_bytes(b"a,b,c\n1,2,3\n")
    with pytest.raises(DataError, match=r"in\.csv\.gz: not a sound gzip file.*name it \.csv"):
        read(file)


def test_damaged_parquet(tmp_path: Path) -> None:
    file = tmp_path / "in.parquet"
    pl.DataFrame({"a": range(20_000), "b": range(20_000), "c": range(20_000)}).write_parquet(file)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"PAR1 nonsense", b"", b"\x00" * 100):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"in\.parquet: .*(truncated or damaged|empty).*fetch it again"):
            read(file)
    file.write_bytes(whole[:4] + b"\x55" * (len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(DataError, match=r"in\.parquet: not a complete Parquet file"):
        read(file)


@pytest.mark.parametrize("junk", [b"", b"\x89PNG\r\n\x1a\n\x00\x00", b"\xff\xfea\x00,\x00b\x00", b"\n1,2,3\n"])
def test_no_header_line(tmp_path: Path, junk: bytes) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(junk)
    with pytest.raises(DataError, match=r"in\.csv: (line 1|the file is empty)"):
        read(file)


def test_endless_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_lines, "BLOCK_BYTES", 64)
    monkeypatch.setattr(csv_lines, "LONGEST_LINE_BYTES", 1024)
    with pytest.raises(DataError, match=r"no line end within"):
        read(csv_file(tmp_path, "x" * 5000))


def test_all_header_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,bb,c\n1,2,3\n")
    (tmp_path / "2.csv").write_text("a,b,c\n1,2,3\n")
    (tmp_path / "3.csv").write_text("a,b,c,c\n1,2,3,4\n")
    (tmp_path / "4.csv").write_text("")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "5.parquet")
    with pytest.raises(SchemaError) as caught:
        readers.open_sources(tmp_path, NEEDED)
    text = str(caught.value)
    assert "1.csv: column 'b' is missing; closest: 'bb'; found: 'a', 'bb', 'c'" in text
    assert "2.csv" not in text
    assert "3.csv: column 'c' appears 2 times" in text
    assert "4.csv: the file is empty" in text
    assert all(f"5.parquet: column {name!r} is missing" in text for name in NEEDED)


def test_folder_with_a_foreign_file(tmp_path: Path) -> None:
    csv_file(tmp_path, "1,2,3\n")
    for name in ("README.md", ".gitignore"):
        (tmp_path / name).write_text("fine")
    assert [path.name for path in readers.find_files(tmp_path)] == ["in.csv"]
    (tmp_path / "notes.xlsx").write_text("")
    (tmp_path / "older").mkdir()
    with pytest.raises(DataError, match=r"(?s)notes\.xlsx: not a data file.*older: not a data file"):
        readers.find_files(tmp_path)
    found = readers.find_files(tmp_path, ignore=[tmp_path / "notes.xlsx", tmp_path / "older"])
    assert [path.name for path in found] == ["in.csv"]


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "in.txt").write_text("a")
    with pytest.raises(DataError) as caught:
        readers.find_files([tmp_path / "gone.csv", tmp_path / "empty", tmp_path / "in.txt"])
    text = str(caught.value)
    assert "gone.csv: there is no such file" in text
    assert "empty: the folder holds no data file" in text
    assert "in.txt: can't read this kind of file" in text


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    file = csv_file(tmp_path, "1,2,3\n")
    (source,) = readers.open_sources(file, NEEDED)
    source.refuse_if_changed()
    csv_file(tmp_path, "1,2,3\n4,5,6\n")
    with pytest.raises(DataError, match="changed while it was being read"):
        source.refuse_if_changed()


def test_parquet_row_numbers_run_through_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PARQUET_BATCH_ROWS", 7)
    table = pl.DataFrame({"a": range(50), "b": range(50), "c": range(50)})
    table.write_parquet(tmp_path / "in.parquet", row_group_size=20)
    rows, _ = read(tmp_path / "in.parquet")
    assert [number for number, _ in rows] == list(range(1, 51))
    assert [fields[0] for _, fields in rows] == list(range(50))
