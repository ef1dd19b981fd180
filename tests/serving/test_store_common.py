"""What all cloud stores share: names, patience, writer ids, messages without secrets, progress."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.blobstore import Entry
from serving.errors import StoreError
from serving.stores import common


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def listed(*names: str) -> list[Entry]:
    return [Entry(name, 1, "version") for name in names]


def test_names_and_keys_are_inverse() -> None:
    for url, prefix in (("s3://b", ""), ("s3://b/", ""), ("s3://b/a/b/", "a/b"), ("s3://b/a%20b", "a%20b")):
        location = common.parse_location(url)
        assert (location.bucket, location.prefix) == ("b", prefix)
        names = [location.name_of(key) for key in ("z", "a/y", "x")]
        assert location.entries_of(listed(*names)) == listed("a/y", "x", "z")
        assert all(name.startswith(location.names_under("")) for name in names)


def test_what_is_no_key_is_not_listed() -> None:
    location = common.parse_location("s3://b/p")
    there = listed("p/", "p/folder/", "p/a//b", "p/.strikeforge-lock", "p/k")
    assert location.entries_of(there) == listed("k")
    assert location.entries_of(there, foreign=True) == listed("", ".strikeforge-lock", "a//b", "folder/", "k")


def test_the_longest_key_fits_below_the_longest_prefix() -> None:
    location = common.parse_location(f"s3://b/{'p' * common.MAX_PREFIX_BYTES}")
    longest = "/".join(["é" * 90] * 4 + ["x" * 176])
    assert len(longest.encode()) == 900
    assert len(location.name_of(longest).encode()) <= 1024


WRITERS = st.lists(st.binary(min_size=8, max_size=8).map(bytes.hex), max_size=100)


@given(WRITERS)
def test_a_chain_keeps_the_latest_writers_and_fits_into_metadata(writers: list[str]) -> None:
    chain = ""
    for writer in writers:
        chain = common.chain_after(writer, common.writers_of(chain))
    assert common.writers_of(chain) == tuple(writers[-common.CHAIN_LENGTH :])
    assert len(chain) < 1200  # S3 allows 2 KB of metadata
    assert common.split_etag(common.join_etag('"native"', chain)) == ('"native"', common.writers_of(chain))


@pytest.mark.parametrize(
    "chain", [None, "", ",", "not hexadecimal", "a" * 4000, "0" * 15 + "\n", "0" * 16 + "\r\nX: y"]
)
def test_foreign_metadata_is_no_writer(chain: str | None) -> None:
    assert common.writers_of(chain) == ()


def test_only_our_own_version_is_our_success() -> None:
    ours, theirs = "0" * 16, "1" * 16
    assert common.earlier_success(ours, '"e"', None) is None
    assert common.earlier_success(ours, '"e"', theirs) is None
    assert common.earlier_success(ours, '"e"', f"{theirs},{ours}") == f'"e" {theirs},{ours}'
    replaced = common.earlier_success(ours, '"e"', f"{ours},{theirs}")
    assert replaced is not None
    assert common.split_etag(replaced)[0] == common.SUPERSEDED


def test_messages_lose_their_urls() -> None:
    told = common.without_urls("can't reach 'https://user:hush@host:1/x?sig=hush' or\nhttp://b?hush,\tsorry")
    assert told == "can't reach '(URL)' or (URL) sorry"
    assert len(common.without_urls("x" * 1000)) == 300


def test_progress_is_shown_of_long_transfers_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    size = common.SHOWN_FROM_BYTES
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert common.terminal_progress("k", size) is None
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert common.terminal_progress("k", size - 1) is None
    show = common.terminal_progress("k", size)
    assert show is not None
    for done in range(0, size + 1, size // 1024):
        show(done, size)
    lines = terminal.getvalue().split("\r")[1:]
    assert len(lines) == 101  # one for each whole percent
    assert lines[0] == "k:   0 % of 32 MiB"
    assert lines[-1] == "k: 100 % of 32 MiB\n"


def test_pauses_grow_and_are_bounded() -> None:
    patience = common.Patience()
    for attempt in range(1, 50):
        assert 0.0 <= patience.pause_seconds(attempt) <= min(20.0, 0.25 * 2**attempt)


def test_patience_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (common.TIMEOUT_VARIABLE, common.ATTEMPTS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert common.patience() == common.Patience(30.0, 5)
    monkeypatch.setenv(common.TIMEOUT_VARIABLE, "0.5")
    monkeypatch.setenv(common.ATTEMPTS_VARIABLE, "1")
    assert common.patience() == common.Patience(0.5, 1)


def test_damage_is_told_with_both_hashes() -> None:
    common.require_sha256("k", "a" * 64, "a" * 64)
    common.require_sha256("k", "a" * 64, None)
    with pytest.raises(StoreError, match=r"^k: .*sha256 aaaaaaaaaaaa\.\.\., was written with bbbbbbbbbbbb"):
        common.require_sha256("k", "a" * 64, "b" * 64)
