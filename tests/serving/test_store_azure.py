"""What is particular to Azure; the promises of every store are in tests/contract/test_blobstore*.py."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.blobstore import BlobStore, open_store
from serving.canonical import sha256_hex
from serving.errors import StoreError
from serving.stores import azure, common
from serving.stores.azure_blocks import BLOCK_BYTES
from tests import faulty_proxy as faults
from tests.faulty_proxy import FaultyProxy, Rule

LONG = 2 * BLOCK_BYTES + 1
cloud = pytest.mark.cloud


@pytest.fixture
def store(azure_store_url: str) -> BlobStore:
    return open_store(azure_store_url)


@pytest.fixture
def container(azure_store_url: str, azure_account: str) -> Any:
    """The SDK's client of the store's container."""
    from azure.storage.blob import ContainerClient

    return ContainerClient.from_connection_string(azure_account, azure_store_url.split("/")[2])


@pytest.fixture
def proxy(azure_store_url: str, azure_account: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between Azurite and every store opened from here on."""
    address = re.search(r"BlobEndpoint=http://([0-9.]+):(\d+)/", azure_account)
    assert address
    with FaultyProxy(address[1], int(address[2])) as proxy:
        through = azure_account.replace(f"{address[1]}:{address[2]}", proxy.url.removeprefix("http://"))
        monkeypatch.setenv(azure.CONNECTION_STRING, through)
        monkeypatch.setenv(common.ATTEMPTS_VARIABLE, "2")
        yield proxy


def at_the_first_block(act: Any) -> Any:
    """A progress callback that acts once, after the first of several blocks."""
    called: list[int] = []

    def progress(done: int, size: int) -> None:
        if not called and done < size:
            called.append(done)
            act()

    return progress


@cloud
def test_two_uploads_at_once_never_mix_their_blocks(store: BlobStore, azure_store_url: str, tmp_path: Path) -> None:
    """The other's commit sweeps our uncommitted blocks away; ours are staged again, and the last commit counts."""
    ours, theirs = b"o" * LONG, b"t" * LONG
    (tmp_path / "ours").write_bytes(ours)
    (tmp_path / "theirs").write_bytes(theirs)
    other = open_store(azure_store_url)
    between = at_the_first_block(lambda: other.upload("k", tmp_path / "theirs"))
    assert store.upload("k", tmp_path / "ours", progress=between) == sha256_hex(ours)
    assert store.get("k") == ours
    again = at_the_first_block(lambda: other.put("k", b"short"))
    store.upload("k", tmp_path / "theirs", progress=again)
    assert store.get("k") == theirs


@cloud
def test_a_long_creation_that_comes_second_fails(
    store: BlobStore, azure_store_url: str, proxy: FaultyProxy, container: Any
) -> None:
    """The first one appears while the second's blocks are on their way."""
    second = open_store(azure_store_url)
    acted: list[bool] = []

    def first_creates(exchange: faults.Exchange) -> None:
        acted.append(store.put_if_absent("k", b"f" * LONG))
        faults.pass_on(exchange)

    proxy.add(Rule(first_creates, "PUT", "comp=block&", skip=1))
    assert second.put_if_absent("k", b"s" * LONG) is False
    assert acted == [True]
    assert store.get("k") == b"f" * LONG


@cloud
@pytest.mark.parametrize("size", [3, LONG])
def test_blobs_carry_their_checksums(store: BlobStore, container: Any, tmp_path: Path, size: int) -> None:
    import hashlib

    content = os.urandom(size)
    (tmp_path / "source").write_bytes(content)
    store.upload("k", tmp_path / "source")
    found = container.get_blob_client("some/prefix/k").get_blob_properties()
    assert found.metadata[common.SHA256] == sha256_hex(content)
    assert found.content_settings.content_md5 == hashlib.md5(content).digest()
    assert store.get_blob("k").etag == common.join_etag(found.etag, found.metadata[common.WRITERS])


@cloud
@pytest.mark.parametrize("etag", ["*", '"*"', '"0x0"', "0x1", "\r\n", '"superseded" 0123456789abcdef', ""])
def test_an_etag_that_is_none_matches_nothing(store: BlobStore, etag: str) -> None:
    """`If-Match: *` would match anything."""
    assert store.put_if_match("k", b"new", etag) is None
    store.put("k", b"old")
    assert store.put_if_match("k", b"new", etag) is None
    assert store.get("k") == b"old"


@cloud
def test_blobs_of_others_are_read_and_replaced(store: BlobStore, container: Any, proxy: FaultyProxy) -> None:
    container.upload_blob("some/prefix/k", b"theirs" * 100)
    blob = store.get_blob("k")
    assert blob.data == b"theirs" * 100
    slow = open_store(f"az://{container.container_name}/some/prefix")
    proxy.add(Rule(faults.corrupt_down, "GET", times=9))
    with pytest.raises(StoreError, match="MD5 checksum"):
        slow.get("k")
    proxy.clear()
    assert slow.put_if_match("k", b"ours", blob.etag)
    assert store.get("k") == b"ours"


@cloud
@pytest.mark.parametrize("size", [LONG, LONG - 1, 2 * LONG])
def test_a_file_that_changes_is_not_stored(store: BlobStore, tmp_path: Path, size: int) -> None:
    """Its last byte changes, it gets shorter or longer."""
    source = tmp_path / "source"
    source.write_bytes(bytes(LONG))
    store.put("k", b"old")
    with pytest.raises(StoreError, match=r"^k: the file changed"):
        store.upload("k", source, progress=at_the_first_block(lambda: source.write_bytes(bytes(size - 1) + b"!")))
    assert store.get("k") == b"old"


@cloud
def test_a_list_has_no_last_page(
    store: BlobStore, proxy: FaultyProxy, azure_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "PAGE", 3)
    keys = [f"k{number}" for number in range(8)]
    for key in keys:
        store.put(key, b"")
    assert open_store(azure_store_url).list("k") == keys
    assert len(proxy.seen) == 3


@cloud
def test_names_that_are_none_of_ours_are_not_listed(store: BlobStore, container: Any) -> None:
    for name in ("some/prefix/100%", "some/prefix/%EF%BF%BC", "some/prefix/folder//x", "some/prefixed"):
        container.upload_blob(name, b"")
    store.put("100%", b"ours")
    assert store.list() == ["100%"]
    assert store.get("100%") == b"ours"


@given(name=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("%25EFB\ufffe\uffff")))
def test_names_come_back_and_need_no_escape_twice(name: str) -> None:
    written = azure.encode(name)
    assert azure.decode(written) == name
    assert not set(written) & set("\ufffe\uffff")


@cloud
def test_a_name_too_long_for_azure_is_refused(store: BlobStore) -> None:
    key = "/".join(["%" * 99] * 8)
    with pytest.raises(StoreError, match=r"at most 1024"):
        store.put(key, b"")


@cloud
def test_a_wrong_key_is_refused_without_repeating_it(
    azure_store_url: str, azure_account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "aHVzaA=="
    monkeypatch.setenv(azure.CONNECTION_STRING, re.sub(r"AccountKey=[^;]+", f"AccountKey={wrong}", azure_account))
    store = open_store(azure_store_url)
    operations: list[Any] = [store.get, store.delete, store.list, lambda key: store.put_if_absent(key, b"")]
    for operation in operations:
        with pytest.raises(StoreError, match=r"^k: .*AZURE_STORAGE_CONNECTION_STRING") as refused:
            operation("k")
        assert wrong not in str(refused.value)


def alone(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


SETTINGS = [
    ({}, "no storage account is named"),
    ({"AZURE_STORAGE_CONNECTION_STRING": "AccountKey=hush"}, "can't be used"),
    ({"AZURE_STORAGE_CONNECTION_STRING": "hush"}, "can't be used"),
    ({"AZURE_STORAGE_ACCOUNT": "evil.example/hush?"}, "no account's name"),
]


@pytest.mark.parametrize(("environment", "why"), SETTINGS)
def test_settings_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], why: str) -> None:
    pytest.importorskip("azure.storage.blob")
    alone(monkeypatch, **environment)
    with pytest.raises(StoreError, match=why) as refused:
        open_store("az://container/prefix")
    assert "AZURE_STORAGE_ACCOUNT" in environment or "hush" not in str(refused.value)


def test_an_account_alone_means_the_default_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = pytest.importorskip("azure.identity")
    from azure.core.exceptions import ClientAuthenticationError

    asked: list[tuple[str, ...]] = []

    class Nobody:
        def get_token(self, *scopes: str, **_: Any) -> Any:
            asked.append(scopes)
            raise ClientAuthenticationError("tried with hush")

    monkeypatch.setattr(identity, "DefaultAzureCredential", Nobody)
    alone(monkeypatch, AZURE_STORAGE_ACCOUNT="ouraccount")
    store = open_store("az://container/prefix")
    with pytest.raises(StoreError, match=r"^k: no usable Azure credentials .*az login") as refused:
        store.get("k")
    assert "hush" not in str(refused.value)
    assert asked == [("https://storage.azure.com/.default",)]
