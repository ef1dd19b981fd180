"""What is particular to GCS; the promises of every store are in tests/contract/test_blobstore*.py."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.blobstore import BlobStore, open_store
from serving.canonical import sha256_hex
from serving.errors import BlobMissingError, StoreError
from serving.stores import common, gcs
from serving.stores.gcs_upload import RESUMABLE_BYTES
from tests import faulty_proxy as faults
from tests.faulty_proxy import FaultyProxy, Rule

pytestmark = pytest.mark.cloud
NO_BUCKET = b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}'


@pytest.fixture
def store(gcs_store_url: str) -> BlobStore:
    return open_store(gcs_store_url)


@pytest.fixture
def bucket(gcs_store_url: str) -> Any:
    """The SDK's bucket of the store."""
    import google.cloud.storage

    return google.cloud.storage.Client().bucket(gcs_store_url.split("/")[2])


@pytest.fixture
def proxy(gcs_store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between the emulator and every store opened from here on."""
    host, port = os.environ[gcs.EMULATOR].removeprefix("http://").split(":")
    with FaultyProxy(host, int(port)) as proxy:
        monkeypatch.setenv(gcs.EMULATOR, proxy.url)
        monkeypatch.setenv(common.ATTEMPTS_VARIABLE, "2")
        yield proxy


def test_of_eight_writers_of_a_long_blob_one_creates_it(store: BlobStore, gcs_store_url: str) -> None:
    """As a resumable upload, which the SDK makes of this length, all of them would win on the emulator."""
    contents = [bytes([number]) * (RESUMABLE_BYTES + 1) for number in range(8)]
    barrier, won = threading.Barrier(len(contents)), []

    def create(number: int) -> None:
        own = open_store(gcs_store_url)
        barrier.wait(60)
        if own.put_if_absent("k", contents[number]):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(len(contents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(won) == 1
    assert store.get("k") == contents[won[0]]


@pytest.mark.parametrize("size", [3, RESUMABLE_BYTES + 1])
def test_objects_carry_their_checksums_and_are_never_cached(
    store: BlobStore, bucket: Any, tmp_path: Path, size: int
) -> None:
    content = os.urandom(size)
    (tmp_path / "source").write_bytes(content)
    store.upload("k", tmp_path / "source")
    found = bucket.get_blob("some/prefix/k")
    assert found.metadata[common.SHA256] == sha256_hex(content)
    assert found.cache_control == "no-store"
    assert store.get_blob("k").etag == common.join_etag(str(found.generation), found.metadata[common.WRITERS])


@pytest.mark.parametrize("etag", ["0", "1", "00", "-1", "9" * 40, "²", '"superseded" 0123456789abcdef', ""])
def test_an_etag_that_is_none_matches_nothing(store: BlobStore, etag: str) -> None:
    """Generation 0 would mean: create it."""
    assert store.put_if_match("k", b"new", etag) is None
    store.put("k", b"old")
    assert store.put_if_match("k", b"new", etag) is None
    assert store.get("k") == b"old"


def test_objects_of_others_are_read_and_replaced(store: BlobStore, bucket: Any, proxy: FaultyProxy) -> None:
    bucket.blob("some/prefix/k").upload_from_string(b"theirs" * 100)
    blob = store.get_blob("k")
    assert blob.data == b"theirs" * 100
    slow = open_store(f"gs://{bucket.name}/some/prefix")
    proxy.add(Rule(faults.corrupt_down, "GET", "alt=media", times=9))
    with pytest.raises(StoreError, match="CRC32C checksum"):
        slow.get("k")
    proxy.clear()
    assert slow.put_if_match("k", b"ours", blob.etag)
    assert store.get("k") == b"ours"


def test_a_read_between_replacements_is_of_one_version(store: BlobStore, gcs_store_url: str) -> None:
    """Content and metadata are two requests; the sha256 in one must be that of the other."""
    store.put("k", b"0")
    done = threading.Event()

    def replace() -> None:
        own = open_store(gcs_store_url)
        number = 0
        while not done.is_set():
            number += 1
            own.put("k", str(number).encode())

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        read = [int(store.get_blob("k").data) for _ in range(100)]
    finally:
        done.set()
        writer.join(60)
    assert read == sorted(read)
    assert read[-1] > 0


def test_a_file_that_changes_is_not_stored(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(2 * RESUMABLE_BYTES))
    store.put("k", b"old")

    def change(done: int, _: int) -> None:
        if done == RESUMABLE_BYTES:
            with source.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"!")

    with pytest.raises(StoreError, match=r"^k: the file changed"):
        store.upload("k", source, progress=change)
    assert store.get("k") == b"old"


def test_a_list_has_no_last_page(
    store: BlobStore, proxy: FaultyProxy, gcs_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "PAGE", 3)
    keys = [f"k{number}" for number in range(8)]
    for key in keys:
        store.put(key, b"")
    assert open_store(gcs_store_url).list("k") == keys
    assert len(proxy.seen) == 3


def test_a_missing_bucket_is_no_missing_blob(gcs_store_url: str, proxy: FaultyProxy) -> None:
    """In the service's words; the emulator says the same of both."""
    store = open_store(gcs_store_url)
    proxy.add(Rule(faults.answering(404, b"No such object: bucket/some/prefix/k")))
    with pytest.raises(BlobMissingError, match=r"^k: no such blob in gs://"):
        store.get("k")
    operations: list[Callable[[str], object]] = [store.get, store.delete, lambda key: store.put(key, b"")]
    for operation in operations:
        proxy.clear()
        proxy.add(Rule(faults.answering(404, NO_BUCKET, "Content-Type: application/json")))
        with pytest.raises(StoreError, match="there is no bucket") as missing:
            operation("k")
        assert not isinstance(missing.value, BlobMissingError)


def test_an_emulator_needs_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gcs.EMULATOR, "localhost:9023")
    with pytest.raises(StoreError, match=r"scheme, as in http://"):
        open_store("gs://bucket/prefix")


def test_credentials_that_cannot_be_used_are_named_with_their_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without an emulator nothing is anonymous."""
    monkeypatch.delenv(gcs.EMULATOR, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # ask no metadata server
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    named = tmp_path / "key.json"
    for content in (None, "hush", json.dumps({"type": "service_account", "private_key": "hush"})):
        if content is not None:
            named.write_text(content, encoding="utf-8")
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(named))
        with pytest.raises(StoreError, match="gcloud auth application-default login") as refused:
            open_store("gs://bucket/prefix")
        assert "hush" not in str(refused.value)
