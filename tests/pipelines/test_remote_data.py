"""Vendor data in object stores: read as from a folder, fetched once, resumed, and never a mixture of two versions.

Against real servers on this machine: moto, fake-gcs-server, Azurite (tests/servers.py).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines import features, ingest, remote_data
from pipelines.config import load_config
from pipelines.remote_data import fetch, is_remote, local
from serving.blobstore import BlobStore, open_store
from serving.errors import DataError, StoreError
from serving.stores.s3 import S3Store
from tests.pipelines import market

ROOT = Path(__file__).parents[2]
SETTLED = 120.0

pytestmark = pytest.mark.cloud


@pytest.fixture(params=["s3", "gcs", "azure"])
def url(request: pytest.FixtureRequest) -> str:
    """Of a folder in each kind of store; there is something else beside it."""
    store_url: str = request.getfixturevalue(f"{request.param}_store_url")
    open_store(store_url).put("quotes-old/b.csv", b"not to be read")
    return f"{store_url}/quotes"


@pytest.fixture
def s3_url(s3_store_url: str) -> str:
    return f"{s3_store_url}/quotes"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRIKEFORGE_REMOTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Reads:
    """What is asked of a store's `stream`, and what it is made to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.starts: dict[str, list[int]] = {}
        self.then: Any = lambda store, key, chunk: None  # called after each chunk

        def opened(url: str) -> BlobStore:
            store = open_store(url)
            stream = store.stream

            def watched(key: str, *, start: int = 0) -> Iterator[bytes]:
                self.starts.setdefault(key.rpartition("/")[2], []).append(start)
                for chunk in stream(key, start=start):
                    yield chunk
                    self.then(store, key, chunk)

            store.stream = watched  # type: ignore[method-assign]
            return store

        monkeypatch.setattr(remote_data, "open_store", opened)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(url: str, **files: bytes) -> None:
    store = open_store(url)
    for name, data in files.items():
        store.put(f"{name}.csv", data)


def vendor_files() -> dict[str, bytes]:
    """Two files of the tiny market: quotes that are kept, some that aren't, a line that is none."""
    table = market.market(6)
    days = table["ts"].str.slice(0, 10)
    early = days < days.unique().sort()[3]
    files = {}
    for name, part in (("a.csv", table.filter(early)), ("b.csv", table.filter(~early))):
        damaged = part.with_columns(bid=pl.when(pl.int_range(pl.len()) % 50 == 7).then(-1.0).otherwise("bid"))
        files[name] = (damaged.write_csv() + "half a line\n").encode()
    return files


@pytest.mark.slow
def test_ingest_from_a_store_is_ingest_from_the_folder(url: str, tmp_path: Path) -> None:
    files = vendor_files()
    folder, store = tmp_path / "quotes", open_store(url)
    folder.mkdir()
    for name, data in {**files, "README.md": b"what it is", ".hidden": b"x"}.items():
        (folder / name).write_bytes(data)
        store.put(name, data)

    done, outputs = {}, {}
    for place, path in (("local", str(folder)), ("remote", url)):
        out = tmp_path / place
        done[place] = ingest.run(load_config(["data=generic", f"data.path={path}", "split=sample", f"out={out}"]))
        outputs[place] = {path.name: path.read_bytes() for path in (out / "ingest").iterdir()}
    assert done["local"].quarantined > 2
    assert outputs["remote"]["quotes.parquet"] == outputs["local"]["quotes.parquet"]
    fetched = Path(next(iter(json.loads(outputs["remote"]["counts.json"])["files"]))).parent
    assert contents(fetched) == files
    told = outputs["remote"]["counts.json"].decode().replace(str(fetched), str(folder))
    assert told == outputs["local"]["counts.json"].decode()
    refused = [pl.read_parquet(tmp_path / place / "ingest" / "quarantine.parquet") for place in ("local", "remote")]
    in_words = pl.col(pl.String).str.replace_all(str(fetched), str(folder), literal=True)
    assert refused[1].with_columns(in_words).equals(refused[0])

    again = ingest.run(load_config(["data=generic", f"data.path={fetched}", "split=sample", f"out={tmp_path}/same"]))
    assert again.quotes_in == done["remote"].quotes_in
    for name, data in outputs["remote"].items():  # the very same place: every byte of every output
        assert (tmp_path / "same" / "ingest" / name).read_bytes() == data


def test_a_file_a_folder_and_a_whole_bucket(url: str) -> None:
    put(url, a=b"1", b=b"2")
    assert contents(fetch(url)) == contents(fetch(f"{url}/")) == {"a.csv": b"1", "b.csv": b"2"}
    one = fetch(f"{url}/a.csv")
    assert (one.name, one.read_bytes()) == ("a.csv", b"1")
    scheme, _, rest = url.partition("://")
    open_store(f"{scheme}://{rest.partition('/')[0]}").put("top.csv", b"3")
    with pytest.raises(DataError, match="some/: a folder in the folder"):
        fetch(f"{scheme}://{rest.partition('/')[0]}")


def test_only_what_changed_is_fetched_again(url: str, reads: Reads) -> None:
    put(url, a=b"one", b=b"two")
    first = fetch(url)
    assert reads.starts == {"a.csv": [0], "b.csv": [0]}
    assert fetch(url) == first
    assert reads.starts == {"a.csv": [0], "b.csv": [0]}, "nothing changed"
    put(url, b=b"TWO")
    second = fetch(url)
    assert reads.starts == {"a.csv": [0], "b.csv": [0, 0]}
    assert (contents(first), contents(second)) == (
        {"a.csv": b"one", "b.csv": b"two"},
        {"a.csv": b"one", "b.csv": b"TWO"},
    )
    open_store(url).delete("b.csv")
    assert contents(fetch(url)) == {"a.csv": b"one"}
    put(url, b=b"two")
    assert fetch(url) == first, "the same content has the same name"


def test_the_name_is_the_contents_not_the_urls(s3_url: str, gcs_store_url: str) -> None:
    put(s3_url, a=b"one")
    put(f"{gcs_store_url}/elsewhere", a=b"one")
    assert fetch(s3_url) == fetch(f"{gcs_store_url}/elsewhere")
    put(f"{s3_url}2", b=b"one")
    assert fetch(f"{s3_url}2") != fetch(s3_url), "another file name is other data: order and quarantine depend on it"


def test_what_was_damaged_in_the_cache_is_fetched_again(s3_url: str, reads: Reads, cache: Path) -> None:
    put(s3_url, a=b"one", b=b"two")
    folder = fetch(s3_url)
    (folder / "a.csv").chmod(0o644)
    (folder / "a.csv").write_bytes(b"eno")
    assert contents(fetch(s3_url)) == {"a.csv": b"one", "b.csv": b"two"}
    assert reads.starts == {"a.csv": [0, 0], "b.csv": [0]}
    (folder / "b.csv").unlink()
    (folder / "stranger.csv").write_bytes(b"x")
    assert contents(fetch(s3_url)) == {"a.csv": b"one", "b.csv": b"two"}
    assert reads.starts == {"a.csv": [0, 0], "b.csv": [0]}, "the content is still there under its hash"
    for record in (cache / ".known").iterdir():
        record.write_text("{")
    assert fetch(s3_url) == folder
    assert reads.starts == {"a.csv": [0, 0, 0], "b.csv": [0, 0]}


def test_a_broken_download_goes_on_where_it_stopped(url: str, reads: Reads) -> None:
    data = np.random.default_rng(1).bytes(20 << 20)  # several pieces in every store
    put(url, a=b"one", b=data)

    def break_off(store: BlobStore, key: str, chunk: bytes) -> None:
        if key.endswith("b.csv"):
            raise StoreError(f"{key}: the network is gone")

    reads.then = break_off
    with pytest.raises(StoreError, match="the network is gone"):
        fetch(url)
    reads.then = lambda store, key, chunk: None
    assert contents(fetch(url)) == {"a.csv": b"one", "b.csv": data}
    assert reads.starts["a.csv"] == [0], "what was complete isn't fetched again"
    first, second = reads.starts["b.csv"]
    assert first == 0
    assert 0 < second < len(data)


def slow_fetch(url: str) -> None:
    monkeypatch = pytest.MonkeyPatch()
    Reads(monkeypatch).then = lambda store, key, chunk: time.sleep(0.2)
    fetch(url)


def test_a_killed_download_goes_on_where_it_stopped(s3_url: str, reads: Reads, cache: Path) -> None:
    data = np.random.default_rng(2).bytes(30 << 20)
    put(s3_url, a=data)
    process = multiprocessing.get_context("spawn").Process(target=slow_fetch, args=(s3_url,))
    process.start()
    deadline = time.monotonic() + SETTLED
    while not sum(part.stat().st_size for part in (cache / ".parts").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(SETTLED)
    assert not [path for path in cache.iterdir() if not path.name.startswith(".")], "nothing to be read yet"
    assert contents(fetch(s3_url)) == {"a.csv": data}
    assert reads.starts["a.csv"][0] > 0


def test_an_object_replaced_meanwhile_is_fetched_in_one_piece(url: str, reads: Reads) -> None:
    """Same length, other bytes: nothing but the listing can tell."""
    old, new = b"o" * (20 << 20), b"n" * (20 << 20)
    put(url, a=old, b=b"two")
    replaced: list[str] = []

    def replace(store: BlobStore, key: str, chunk: bytes) -> None:
        if not replaced:
            replaced.append(store.put(key, new))
            raise StoreError("the network is gone")

    reads.then = replace
    with pytest.raises(StoreError, match="the network is gone"):
        fetch(url)
    assert contents(fetch(url)) == {"a.csv": new, "b.csv": b"two"}
    assert reads.starts["a.csv"] == [0, 0], "the part of the old version isn't gone on with"


def test_an_object_that_changes_between_listing_and_reading(s3_url: str, reads: Reads, monkeypatch: Any) -> None:
    put(s3_url, a=b"old", b=b"two")
    known = S3Store.entries
    changes = iter([b"new", b"newer"])

    def entries(store: S3Store, prefix: str = "", *, shallow: bool = False) -> Any:
        found = known(store, prefix, shallow=shallow)
        if found and (data := next(changes, None)):
            put(s3_url, a=data)
        return found

    monkeypatch.setattr(S3Store, "entries", entries)
    assert contents(fetch(s3_url)) == {"a.csv": b"newer", "b.csv": b"two"}


def test_what_never_stands_still_is_refused(s3_url: str, reads: Reads) -> None:
    put(s3_url, a=b"old")

    def replace(store: BlobStore, key: str, chunk: bytes) -> None:
        store.put(key, os.urandom(3))

    reads.then = replace
    with pytest.raises(StoreError, match="written to again and again"):
        fetch(s3_url)


def test_processes_fetch_at_once(s3_url: str) -> None:
    files = {name: np.random.default_rng(place).bytes(1 << 20) for place, name in enumerate("abc")}
    put(s3_url, **files)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fetch, args=(s3_url,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SETTLED)
        assert worker.exitcode == 0
    assert contents(fetch(s3_url)) == {f"{name}.csv": data for name, data in files.items()}


@pytest.mark.parametrize("name", ["../evil.csv", "..", "a/../../evil.csv", "a\\b.csv", "deep/er/x.csv", "a.json"])
def test_what_isnt_a_data_file_is_refused_by_name(
    s3_url: str, reads: Reads, name: str, tmp_path: Path, cache: Path
) -> None:
    import boto3

    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=b"evil")
    put(s3_url, good=b"1")
    with pytest.raises(DataError) as caught:
        fetch(s3_url, suffixes=(".csv", ".parquet"))
    assert name.partition("/")[0].replace("\\", "\\\\") in str(caught.value)
    assert s3_url in str(caught.value)
    assert reads.starts == {}, "nothing was fetched"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != cache / ".known"] == [
        cache / ".lock"
    ]


def test_a_history_beside_the_quotes_is_left_out(s3_url: str) -> None:
    put(s3_url, quotes=b"1", underlying=b"2")
    assert contents(fetch(s3_url, ignore=[f"{s3_url}/underlying.csv", "elsewhere.csv"])) == {"quotes.csv": b"1"}


@pytest.mark.slow
def test_a_remote_history_is_a_history(s3_url: str, tmp_path: Path) -> None:
    days = [market.START.replace(year=2023, month=month, day=day) for month in range(6, 13) for day in range(1, 28)]
    history = pl.DataFrame({"date": days, "close": np.linspace(350.0, 400.0, len(days))})
    quotes = market.write(market.market(), tmp_path / "quotes.parquet")
    market.write(history, tmp_path / "history.csv")
    open_store(s3_url).upload("quotes.parquet", quotes)
    open_store(s3_url).upload("history.csv", tmp_path / "history.csv")
    places = {"local": (quotes, tmp_path / "history.csv"), "remote": (s3_url, f"{s3_url}/history.csv")}
    steps = {}
    for place, (path, beside) in places.items():
        cfg = load_config(market.overrides(tmp_path / place, path, f"data.history={beside}"))  # type: ignore[arg-type]
        ingest.run(cfg)
        features.run(cfg)
        steps[place] = (cfg.folder / "features" / "steps.npy").read_bytes()
    assert steps["remote"] == steps["local"]
    without = market.featured(tmp_path / "without", market.market())
    assert (without.folder / "features" / "steps.npy").read_bytes() != steps["local"], "the history matters"


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        ("s3://{bucket}/nothing", DataError, "s3://{bucket}/nothing: there is no such object, and no data file"),
        ("s3://no-such-bucket-here/x", StoreError, "s3://no-such-bucket-here/x: "),
        ("s3://me:secret@{bucket}/x", StoreError, "credentials belong into the environment"),
        ("s3://{bucket}/x?token=secret", DataError, "query or fragment"),
        ("https://vendor/file.csv", DataError, "data in https:// can't be read"),
    ],
)
def test_a_url_that_gives_nothing(s3_url: str, given: str, error: type[Exception], why: str) -> None:
    bucket = s3_url.split("/")[2]
    with pytest.raises(error) as caught:
        fetch(given.format(bucket=bucket))
    assert why.format(bucket=bucket) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_cache_that_cant_be_written(s3_url: str, cache: Path) -> None:
    put(s3_url, a=b"1")
    cache.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match=r"can't be kept in .*STRIKEFORGE_REMOTE_CACHE"):
        fetch(s3_url)


@pytest.mark.slow
def test_the_command_says_what_is_wrong_and_ends_with_its_code(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.ingest", "data=generic", "split=sample", f"data.path={s3_url}"]
        return subprocess.run(
            [*command, f"out={tmp_path}/out"], cwd=ROOT, capture_output=True, text=True, timeout=SETTLED
        )

    missing = run()
    assert (missing.returncode, missing.stdout) == (3, "")
    assert missing.stderr.splitlines()[-1].startswith(f"error: {s3_url}: there is no such object")
    for name, data in vendor_files().items():
        open_store(s3_url).put(name, data)
    assert run().returncode == 0
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("STRIKEFORGE_STORE_ATTEMPTS", "1")
    away = run()
    assert away.returncode == 9, "what was fetched before is no answer to what is there now"
    assert "Traceback" not in away.stderr
    assert "testing-secret" not in away.stderr


def test_local_paths_stay_what_they_are() -> None:
    assert local("data/quotes") == Path("data/quotes")
    assert not is_remote("data/quotes")
    assert is_remote("s3://bucket/x")
