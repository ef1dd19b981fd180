"""The promises of a blob store: one suite over a folder, S3, GCS and Azure, the last three against local servers.

What a folder alone promises is in tests/serving/test_folder_store.py, what happens when the network fails in
tests/contract/test_blobstore_faults.py.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serving.blobstore import CHUNK_BYTES, BlobStore, Entry, check_key, is_key, open_store
from serving.canonical import sha256_hex
from serving.errors import BlobMissingError, StoreError

PROCESSES = 8
SWAPS = 5  # of each process
SEVERAL_PARTS = (17 << 20) + 5  # S3 takes it in three parts, the others in several blocks
CLOUDS = [pytest.param(name, marks=pytest.mark.cloud) for name in ("s3", "gcs", "azure")]


@pytest.fixture(params=["folder", *CLOUDS])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "folder":
        return str(tmp_path / "store")
    url: str = request.getfixturevalue(f"{request.param}_store_url")
    return url


@pytest.fixture
def store(store_url: str) -> BlobStore:
    return open_store(store_url)


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


BAD_KEYS = [
    *("", "/a", "a//b", "a/", "..", "a/../b", "./a", "a/.", "a./b", "a\\b", "a\nb", "a\0", "\x7f", "\x85", "\ud800"),
    ".strikeforge-lock",
]
LONG_KEYS = ["x" * 1000, f"a/{'x' * 250}", "/".join("x" * 101)]


@pytest.mark.parametrize("key", [*BAD_KEYS, *LONG_KEYS])
def test_bad_keys_are_refused(key: str) -> None:
    with pytest.raises(StoreError, match=r"^key "):
        check_key(key)
    assert not is_key(key)


def test_every_operation_checks_its_key(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"")
    operations: list[Callable[[str], object]] = [
        store.get,
        store.get_blob,
        lambda key: list(store.stream(key)),
        lambda key: list(store.stream(key, start=1)),
        lambda key: store.put(key, b""),
        lambda key: store.put_if_absent(key, b""),
        lambda key: store.put_if_match(key, b"", ""),
        store.delete,
        lambda key: store.upload(key, tmp_path / "source"),
        lambda key: store.download(key, tmp_path / "target"),
        lambda key: store.list(f"{key}/"),
        lambda key: store.entries(f"{key}/"),
        lambda key: store.entries(f"{key}/", shallow=True),
    ]
    for operation, key in itertools.product(operations, ("..", "a//b", "a\nb")):
        with pytest.raises(StoreError, match=r"^key "):
            operation(key)
    assert not (tmp_path / "target").exists()


SEGMENT_LETTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\")
PUNCTUATION = st.sampled_from(" ~%+?#&=;:.2fe$'\"<>!*()[]")
SEGMENTS = st.text(SEGMENT_LETTERS, min_size=1, max_size=12) | st.text(PUNCTUATION, min_size=1, max_size=8)
ODD_KEYS = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join).filter(is_key)
COUNTER = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=ODD_KEYS)
@example(key="a%2Fb/%2e%2e/%00")
@example(key="a+b c/?comp=list&x#y;z")
@example(key="é/e\u0301")  # composed or not: two names
@example(key="..x/.hidden/~")
@example(key="\ufffe\uffff\U0001f4c8")
@example(key=" leading and trailing ")
@example(key="$web/&amp;<x>'\"")
def test_every_key_comes_back_as_it_was(store: BlobStore, key: str) -> None:
    folder = str(next(COUNTER))
    key = f"{folder}/{key}"
    content = key.encode()
    assert store.put_if_absent(key, content)
    assert not store.put_if_absent(key, b"")
    assert store.list(f"{folder}/") == [key]
    assert store.get(key) == content
    blob = store.get_blob(key)
    assert store.put_if_match(key, b"new", blob.etag)
    assert b"".join(store.stream(key, start=1)) == b"ew"
    store.delete(key)
    assert store.list(f"{folder}/") == []


def test_urls(tmp_path: Path) -> None:
    open_store(str(tmp_path)).put("k", b"1")
    assert open_store(f"file://{tmp_path}").get("k") == b"1"
    spaced = tmp_path / "with space"
    open_store(spaced.as_uri()).put("k", b"2")
    assert (spaced / "k").read_bytes() == b"2"


BAD_URLS = {
    "": "empty",
    "ftp://host/x": "'ftp' is unknown",
    "file://host/x": "three slashes",
    "s3://": "bucket",
    "gs:///prefix": "bucket",
    "az://user:hush@container/x": "credentials",
    "s3://bucket/x?signature=hush": "query",
    "s3://bucket/a//b": "segment ''",
    f"s3://bucket/{'x' * 121}": "prefix is longer",
}


@pytest.mark.parametrize(("url", "why"), BAD_URLS.items())
def test_bad_urls_are_refused_and_no_secret_repeated(url: str, why: str) -> None:
    with pytest.raises(StoreError, match=why) as refused:
        open_store(url)
    assert "hush" not in str(refused.value)


LIBRARIES = [("s3", "boto3", "s3"), ("gs", "google.cloud.storage", "gcs"), ("az", "azure.storage.blob", "azure")]


@pytest.mark.parametrize(("scheme", "module", "extra"), LIBRARIES)
def test_a_missing_library_is_named_with_its_remedy(scheme: str, module: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
from serving.blobstore import open_store
from serving.errors import StoreError
try:
    open_store("{scheme}://bucket/prefix")
except StoreError as error:
    sys.exit(0 if "pip install 'strikeforge[{extra}]'" in str(error) else str(error))
sys.exit("opened")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_no_cloud_library_is_imported_before_a_url_names_it() -> None:
    code = """
import sys
import serving.folder_store, serving.stores.azure, serving.stores.gcs, serving.stores.s3
from serving.blobstore import open_store
open_store("store")
sys.exit(", ".join(sorted(sys.modules.keys() & {"boto3", "botocore", "google.cloud", "google.auth", "azure"})) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.contract.test_blobstore"])
    return context


def create(url: str, barrier: Barrier, number: int) -> None:
    """Every round has a prize of its own; says which ones this process won."""
    store = open_store(url)
    content = f"writer {number}".encode() * 1000
    won = []
    for round_ in range(SWAPS):
        barrier.wait(60)
        if store.put_if_absent(f"deep/folder/{round_}", content):
            won.append(str(round_))
    store.put(f"results/{number}", " ".join(won).encode())


def swap(url: str, barrier: Barrier, number: int) -> None:
    """Adds one to a counter, starting over when somebody else was faster."""
    store = open_store(url)
    barrier.wait(60)
    for _ in range(SWAPS):
        while True:
            blob = store.get_blob("counter")
            if store.put_if_match("counter", str(int(blob.data) + 1).encode(), blob.etag):
                break


def in_environment(environment: dict[str, str], target: Any, *arguments: Any) -> None:
    """The fork server was started before the fixtures set what the SDKs read."""
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


def run_all(target: Any, url: str) -> None:
    context = processes()
    barrier = context.Barrier(PROCESSES)
    workers = [
        context.Process(target=in_environment, args=(dict(os.environ), target, url, barrier, number))
        for number in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0


def test_of_eight_processes_one_creates(store_url: str) -> None:
    run_all(create, store_url)
    store = open_store(store_url)
    won = {number: store.get(f"results/{number}").decode().split() for number in range(PROCESSES)}
    assert sorted(itertools.chain.from_iterable(won.values())) == [str(round_) for round_ in range(SWAPS)]
    for number, rounds in won.items():
        for round_ in rounds:
            assert store.get(f"deep/folder/{round_}") == f"writer {number}".encode() * 1000


def test_eight_processes_lose_no_update(store_url: str) -> None:
    open_store(store_url).put("counter", b"0")
    run_all(swap, store_url)
    assert open_store(store_url).get("counter") == str(PROCESSES * SWAPS).encode()
