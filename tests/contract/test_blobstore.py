"""The promises of a blob store: one suite over a folder, S3, GCS and Azure, the last three against local servers.

Which keys and URLs there are is in test_blobstore_keys.py, what happens when many write at once in
test_blobstore_races.py, when the network fails in test_blobstore_faults.py; what a folder alone promises in
tests/serving/test_folder_store.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.blobstore import CHUNK_BYTES, BlobStore, Entry, is_key, open_store
from serving.canonical import sha256_hex
from serving.errors import BlobMissingError, StoreError

SEVERAL_PARTS = (17 << 20) + 5  # S3 takes it in three parts, the others in several blocks


def test_what_is_put_is_got(store: BlobStore) -> None:
    etag = store.put("a/b.bin", b"one")
    blob = store.get_blob("a/b.bin")
    assert (store.get("a/b.bin"), blob.data, blob.etag) == (b"one", b"one", etag)
    assert store.put("a/b.bin", b"two") != etag
    assert store.get("a/b.bin") == b"two"


def test_absent_is_said_by_name(store: BlobStore, tmp_path: Path) -> None:
    store.put("a/b", b"")
    for key in ("nothing", "a", "a/b/c"):
        reads: list[Callable[[], object]] = [
            lambda key=key: store.get(key),  # type: ignore[misc]
            lambda key=key: store.get_blob(key),  # type: ignore[misc]
            lambda key=key: list(store.stream(key)),  # type: ignore[misc]
            lambda key=key: list(store.stream(key, start=1)),  # type: ignore[misc]
            lambda key=key: store.download(key, tmp_path / "target"),  # type: ignore[misc]
        ]
        for read in reads:
            with pytest.raises(BlobMissingError, match=rf"^{key}: "):
                read()
    assert not (tmp_path / "target").exists()


def test_put_if_absent_creates_once(store: BlobStore) -> None:
    assert store.put_if_absent("k", b"first")
    assert not store.put_if_absent("k", b"second")
    assert not store.put_if_absent("k", b"first")  # the same bytes by another writer are no success either
    assert store.get("k") == b"first"


def test_put_if_match_wants_the_latest_etag(store: BlobStore) -> None:
    assert store.put_if_match("k", b"new", "0" * 64) is None
    assert store.list() == []
    first = store.put("k", b"1")
    second = store.put_if_match("k", b"2", first)
    assert second == store.get_blob("k").etag
    assert store.put_if_match("k", b"3", first) is None
    assert store.put_if_match("k", b"3", "0" * 64) is None
    assert store.get("k") == b"2"


def test_etags_serve_through_many_versions(store: BlobStore) -> None:
    assert store.put_if_absent("k", b"0")
    for number in range(1, 25):
        blob = store.get_blob("k")
        assert blob.data == str(number - 1).encode()
        assert store.put_if_match("k", str(number).encode(), blob.etag) == store.get_blob("k").etag != blob.etag


def test_list_is_by_prefix_and_sorted(store: BlobStore) -> None:
    for key in ("b/2", "a/1", "b/10", "b2", "bb/x/y"):
        store.put(key, b"")
    assert store.list() == ["a/1", "b/10", "b/2", "b2", "bb/x/y"]
    assert store.list("b/") == ["b/10", "b/2"]
    assert store.list("b") == ["b/10", "b/2", "b2", "bb/x/y"]
    assert store.list("bb/x/") == ["bb/x/y"]
    assert store.list("c/") == store.list("a/1/") == []


def test_entries_are_the_list_with_sizes(store: BlobStore) -> None:
    sizes = {"b/2": 2, "a/1": 0, "b/10": 17, "b2": 1, "bb/x/y": CHUNK_BYTES + 1}
    for key, size in sizes.items():
        store.put(key, bytes(size))
    for prefix in ("", "b/", "b", "bb/x/", "b2", "c/", "a/1/"):
        found = store.entries(prefix)
        assert [entry.key for entry in found] == store.list(prefix)
        assert all(entry.size_bytes == sizes[entry.key] and entry.version for entry in found)


def test_another_content_has_another_version(store: BlobStore) -> None:
    """Of the same size, one right after the other, in every way there is to write; others keep theirs."""
    store.put("beside", b"same")
    (beside,) = store.entries("beside")

    def replace(data: bytes) -> None:
        store.delete("k")
        assert store.put_if_absent("k", data)

    writes: list[Callable[[bytes], object]] = [
        lambda data: store.put("k", data),
        lambda data: store.put_if_match("k", data, store.get_blob("k").etag),
        replace,
    ]
    versions = []
    store.put("k", b"before")
    for number in range(12):
        writes[number % len(writes)](f"{number:04d}".encode())
        (entry,) = store.entries("k")
        assert store.entries("k") == [entry], "reading changes nothing"
        assert entry.size_bytes == 4
        versions.append(entry.version)
    assert len(set(versions)) == len(versions)
    assert store.entries("beside") == [beside]


def test_shallow_entries_are_what_lies_in_a_folder(store: BlobStore) -> None:
    for key in ("q/a", "q/b", "q/deep/c", "q/deep/er/d", "q2", "q3/e"):
        store.put(key, b"12")
    here = store.entries("q/", shallow=True)
    assert here == [*store.entries("q/a"), *store.entries("q/b"), Entry("q/deep/", 0, "")]
    assert [entry.key for entry in store.entries(shallow=True)] == ["q/", "q2", "q3/"]
    assert [entry.key for entry in store.entries("q", shallow=True)] == ["q/", "q2", "q3/"]
    assert [entry.key for entry in store.entries("q2", shallow=True)] == ["q2"]
    store.delete("q3/e")
    assert store.entries("q3/", shallow=True) == []
    assert [entry.key for entry in store.entries(shallow=True)] == ["q/", "q2"]


def put_foreign(url: str, name: str, data: bytes) -> None:
    """By other means than ours, under a name that no store takes."""
    scheme, _, rest = url.rpartition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme == "s3":
        import boto3

        boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)
    elif scheme == "gs":
        from google.cloud import storage

        with storage.Client() as client:
            client.bucket(bucket).blob(f"{prefix}/{name}").upload_from_string(data)
    elif scheme == "az":
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"]) as service:
            service.get_container_client(bucket).upload_blob(f"{prefix}/{name}", data)
    else:
        (Path(url) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(url) / name).write_bytes(data)


def test_foreign_names_are_told_only_where_a_person_looks(store: BlobStore, store_url: str) -> None:
    assert not is_key("q/their file.")
    put_foreign(store_url, "q/their file.", b"123")
    put_foreign(store_url, "q/deep./theirs", b"123")
    store.put("q/ours", b"12")
    assert store.list("q/") == [entry.key for entry in store.entries("q/")] == ["q/ours"]
    told = {entry.key: entry.size_bytes for entry in store.entries("q/", shallow=True)}
    assert told == {"q/deep./": 0, "q/ours": 2, "q/their file.": 3}
    (before,) = store.entries("q/their", shallow=True)
    assert before.version


@pytest.mark.slow
def test_list_has_no_last_page(store: BlobStore) -> None:
    keys = [f"k/{number:04d}" for number in range(1050)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda key: store.put(key, b""), keys))
    assert store.list("k/") == keys


def test_stores_beside_each_other_see_nothing_of_each_other(store_url: str) -> None:
    stores = [open_store(f"{store_url}{suffix}") for suffix in ("", "2", "/below")]
    for number, store in enumerate(stores):
        store.put(f"k{number}", b"")
    assert [store.list() for store in stores] == [["below/k2", "k0"], ["k1"], ["k2"]]


def test_delete_is_idempotent(store: BlobStore) -> None:
    store.delete("never/was")
    store.put("k", b"")
    store.delete("k")
    store.delete("k")
    assert store.list() == []
    assert store.put_if_absent("k", b"again")


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES + 17, SEVERAL_PARTS])
def test_files_carry_their_hash(store: BlobStore, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    told: list[tuple[int, int]] = []
    assert store.upload("big", source, progress=lambda *now: told.append(now)) == sha256_hex(content)
    assert told == sorted(told)
    assert all(now <= (size, size) for now in told)
    told.clear()
    assert store.download("big", target, progress=lambda *now: told.append(now)) == sha256_hex(content)
    assert target.read_bytes() == content
    assert told == sorted(told)
    assert not told or told[-1] == (size, size)
    assert store.get("big") == content
    source.write_bytes(content[:1])
    assert store.upload("big", source) == sha256_hex(store.get("big")) == sha256_hex(content[:1])


def test_put_if_absent_of_several_parts(store: BlobStore) -> None:
    content = os.urandom(SEVERAL_PARTS)
    assert store.put_if_absent("big", content)
    assert not store.put_if_absent("big", content)
    assert store.get("big") == content
    assert store.list() == ["big"]


def test_a_download_never_replaces_a_file(store: BlobStore, tmp_path: Path) -> None:
    store.put("k", b"new")
    (tmp_path / "target").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        store.download("k", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"old"


def test_streams_begin_where_they_are_told(store: BlobStore) -> None:
    content = os.urandom(2 * CHUNK_BYTES + 17)
    store.put("k", content)
    for start in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(content) - 1, len(content)):
        assert b"".join(store.stream("k", start=start)) == content[start:]
    with pytest.raises(StoreError, match=rf"^k: .*{len(content) + 1}"):
        list(store.stream("k", start=len(content) + 1))
    store.put("empty", b"")
    assert list(store.stream("empty")) == []
    assert next(store.stream("k"))  # a stream may be left before its end
    assert store.get("k") == content


def test_a_limit_is_kept(store: BlobStore, tmp_path: Path) -> None:
    store.put("k", b"12345")
    assert store.get("k", max_bytes=5) == b"12345"
    assert store.get_blob("k", max_bytes=5).data == b"12345"
    for read in (store.get, store.get_blob):
        with pytest.raises(StoreError, match=r"^k: longer than the 4 bytes"):
            read("k", max_bytes=4)
    with pytest.raises(StoreError, match=r"^k: longer than the 4 bytes"):
        store.download("k", tmp_path / "target", max_bytes=4)
    assert not (tmp_path / "target").exists()
