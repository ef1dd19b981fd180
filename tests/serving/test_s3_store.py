"""What is S3's alone: parts, foreign objects, conflicts, settings and credentials (tests/contract has the rest)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.blobstore import BlobStore, open_store
from serving.canonical import sha256_hex
from serving.errors import StoreError
from serving.stores import common
from serving.stores.s3_parts import PART_BYTES
from tests import faulty_proxy as faults
from tests.faulty_proxy import FaultyProxy, Rule

pytestmark = pytest.mark.cloud

EVERY = 1 << 30
CONTENT = os.urandom(2 * PART_BYTES + 1)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds * 0.05))


@pytest.fixture
def client(s3_store_url: str) -> Any:
    import boto3

    return boto3.client("s3")


@contextmanager
def through(url: str, *rules: Rule, on_request: faults.Hook | None = None) -> Iterator[BlobStore]:
    host, _, port = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").partition(":")
    with FaultyProxy(host, int(port), on_request=on_request) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv(common.ATTEMPTS_VARIABLE, "3")
        patch.setenv(common.TIMEOUT_VARIABLE, "5")
        proxy.add(*rules)
        yield open_store(url)


def bucket_of(url: str) -> str:
    return url.split("/")[2]


def uploads(client: Any, url: str) -> list[Any]:
    """Multi-part uploads under way: their parts cost money and nobody sees them."""
    found: list[Any] = client.list_multipart_uploads(Bucket=bucket_of(url)).get("Uploads", [])
    return found


@pytest.mark.parametrize("fault", [faults.answering(503), faults.truncate_up, faults.answering(400)])
def test_a_failed_upload_leaves_no_parts(s3_store_url: str, client: Any, tmp_path: Path, fault: faults.Fault) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    with through(s3_store_url, Rule(fault, "PUT", "partNumber=2", times=EVERY)) as store:
        with pytest.raises(StoreError, match=r"^k: "):
            store.upload("k", tmp_path / "source")
        with pytest.raises(StoreError, match=r"^k: "):
            store.put_if_absent("k", CONTENT)
    assert uploads(client, s3_store_url) == []
    assert open_store(s3_store_url).list() == []


def test_parts_that_cannot_be_removed_are_told(s3_store_url: str, client: Any, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    rules = (Rule(faults.answering(400), "PUT", times=EVERY), Rule(faults.answering(503), "DELETE", times=EVERY))
    with through(s3_store_url, *rules) as store, pytest.raises(StoreError) as failed:
        store.upload("k", tmp_path / "source")
    (left,) = uploads(client, s3_store_url)
    assert f"parts of upload {left['UploadId']} are left" in str(failed.value)


def test_a_failed_part_is_sent_again_alone(s3_store_url: str, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    sent: list[str] = []

    def on_request(method: str, path: str, phase: str) -> None:
        if phase == "before" and "partNumber" in path:
            sent.append(path.partition("partNumber=")[2].partition("&")[0])

    rule = Rule(faults.truncate_up, "PUT", "partNumber=2")
    with through(s3_store_url, rule, on_request=on_request) as store:
        assert store.upload("k", tmp_path / "source") == sha256_hex(CONTENT)
    assert sent == ["1", "2", "2", "3"]
    assert open_store(s3_store_url).get("k") == CONTENT


def test_a_long_creation_overtaken_at_its_end_loses(s3_store_url: str, client: Any) -> None:
    direct = open_store(s3_store_url)

    def on_request(method: str, path: str, phase: str) -> None:
        if method == "POST" and "uploadId=" in path and phase == "before":
            assert direct.put_if_absent("k", b"faster")

    with through(s3_store_url, on_request=on_request) as store:
        assert store.put_if_absent("k", CONTENT) is False
    assert direct.get("k") == b"faster"
    assert uploads(client, s3_store_url) == []


def test_a_file_that_changes_while_it_is_uploaded_is_refused(s3_store_url: str, client: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)

    def change(done: int, total: int) -> None:
        if done == PART_BYTES:
            with source.open("r+b") as file:
                file.seek(total - 1)
                file.write(bytes([CONTENT[-1] ^ 1]))

    store = open_store(s3_store_url)
    with pytest.raises(StoreError, match=r"k: the file changed while it was uploaded"):
        store.upload("k", source, progress=change)
    assert store.list() == []
    assert uploads(client, s3_store_url) == []


GONE = b"<Error><Code>NoSuchUpload</Code><Message>gone</Message></Error>"


@pytest.mark.parametrize("create", [True, False])
def test_a_completion_done_before_is_our_own(s3_store_url: str, tmp_path: Path, create: bool) -> None:
    """Its answer is lost, and S3 no longer knows the upload when it is sent again."""
    (tmp_path / "source").write_bytes(CONTENT)
    gone = faults.answering(404, GONE, "Content-Type: application/xml")
    rules = (Rule(faults.lose_answer, "POST", "uploadId="), Rule(gone, "POST", "uploadId=", skip=1))
    with through(s3_store_url, *rules) as store:
        if create:
            assert store.put_if_absent("k", CONTENT) is True
        else:
            assert store.upload("k", tmp_path / "source") == sha256_hex(CONTENT)
    assert open_store(s3_store_url).get("k") == CONTENT


def test_an_upload_that_somebody_else_removed_is_an_error(s3_store_url: str) -> None:
    gone = faults.answering(404, GONE, "Content-Type: application/xml")
    with (
        through(s3_store_url, Rule(gone, "POST", "uploadId=", times=EVERY)) as store,
        pytest.raises(StoreError, match=r"^k: .*NoSuchUpload"),
    ):
        store.put_if_absent("k", CONTENT)
    assert open_store(s3_store_url).list() == []


CONFLICT = b"<Error><Code>ConditionalRequestConflict</Code><Message>again</Message></Error>"


def test_a_conflict_of_two_conditional_writes_is_tried_again(s3_store_url: str) -> None:
    conflict = faults.answering(409, CONFLICT, "Content-Type: application/xml")
    for content in (b"short", CONTENT):
        method = "PUT" if len(content) < PART_BYTES else "POST"
        key = f"k{len(content)}"
        with through(s3_store_url, Rule(conflict, method, key, skip=int(method == "POST"), times=2)) as store:
            assert store.put_if_absent(key, content) is True
        assert open_store(s3_store_url).get(key) == content
    with (
        through(s3_store_url, Rule(conflict, "PUT", times=EVERY)) as store,
        pytest.raises(StoreError, match=r"^k: .*409 ConditionalRequestConflict"),
    ):
        store.put_if_absent("k", b"")


def test_objects_of_others_are_read_and_replaced(s3_store_url: str, client: Any) -> None:
    bucket = bucket_of(s3_store_url)
    client.put_object(Bucket=bucket, Key="some/prefix/theirs", Body=b"1")
    client.put_object(Bucket=bucket, Key="some/prefix/folder/", Body=b"")
    client.put_object(Bucket=bucket, Key="some/prefixed", Body=b"")
    store = open_store(s3_store_url)
    assert store.list() == ["theirs"]
    blob = store.get_blob("theirs")
    assert blob.data == b"1"
    assert store.put_if_match("theirs", b"2", blob.etag) == store.get_blob("theirs").etag
    assert store.put_if_absent("theirs", b"3") is False


def test_bytes_changed_in_the_store_are_refused(s3_store_url: str, client: Any, tmp_path: Path) -> None:
    store = open_store(s3_store_url)
    store.put("k", b"written")
    where = {"Bucket": bucket_of(s3_store_url), "Key": "some/prefix/k"}
    metadata = client.head_object(**where)["Metadata"]
    client.put_object(**where, Body=b"changed", Metadata=metadata)
    for read in (lambda: store.get("k"), lambda: store.download("k", tmp_path / "target")):
        with pytest.raises(StoreError, match=r"^k: .*sha256"):
            read()


def test_a_server_that_ignores_ranges_is_refused(s3_store_url: str) -> None:
    open_store(s3_store_url).put("k", b"0123456789")
    whole = faults.answering(200, b"0123456789", 'ETag: "x"')
    with through(s3_store_url, Rule(whole, "GET")) as store, pytest.raises(StoreError, match=r"^k: .*ignores ranges"):
        list(store.stream("k", start=5))


def error_of(act: Callable[[], object]) -> str:
    with pytest.raises(StoreError) as failed:
        act()
    return str(failed.value)


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_refused_credentials_are_told_with_the_remedy(s3_store_url: str, code: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>AWSAccessKeyId testing-secret</Message></Error>".encode()
    with through(
        s3_store_url, Rule(faults.answering(403, body, "Content-Type: application/xml"), times=EVERY)
    ) as store:
        told = error_of(lambda: store.get("k"))
    assert told.startswith("k: ")
    assert code in told
    assert "aws sts get-caller-identity" in told
    assert "testing-secret" not in told


def test_missing_credentials_are_told_with_the_remedy(s3_store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(s3_store_url)
    assert "AWS_PROFILE" in error_of(lambda: store.put("k", b""))


@pytest.mark.parametrize(("name", "value"), [("AWS_PROFILE", "nobody"), ("AWS_ENDPOINT_URL", "no url")])
def test_unusable_settings_are_told_when_the_store_is_opened(
    s3_store_url: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    told = error_of(lambda: open_store(s3_store_url))
    assert "AWS settings can't be used" in told
    assert value in told
