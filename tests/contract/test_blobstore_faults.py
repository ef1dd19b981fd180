"""Cloud stores behind a network and servers that fail (tests/faulty_proxy.py): the right outcome, or a StoreError.

`site.store` speaks through the proxy, `site.direct` doesn't and tells what is really there. Invariants: nothing
truncated or damaged becomes visible or is accepted; a fault that goes away is overcome, with the outcome a faultless
network would have had; one that stays ends in a StoreError that names the key, within a bounded time. Lost answers to
conditional writes are in tests/contract/test_blobstore_lost_answers.py.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.blobstore import BlobStore, open_store
from serving.canonical import sha256_hex
from serving.errors import BlobMissingError, StoreError
from serving.stores import common
from tests import faulty_proxy as faults
from tests.faulty_site import ATTEMPTS, CLOUDS, ENDPOINTS, EVERY, SEVERAL_PARTS, WRITES, Site, behind

pytestmark = pytest.mark.cloud

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING")
GOES_AWAY = {
    "cut before the server": faults.cut_before,
    "reset before the server": faults.reset_before,
    "answer lost": faults.lose_answer,
    "reset after the server": faults.reset_after,
    "answer half": faults.truncate_down,
    "answer half, then reset": faults.reset_down,
    "request half": faults.truncate_up,
    "500": faults.answering(500),
    "503": faults.answering(503, b"busy"),
    "429": faults.answering(429),
    "500 though done": faults.answering_after(500),
    "503 though done": faults.answering_after(503),
}
HALF_ANSWERS = ("answer half", "answer half, then reset")  # no fault where the answer has no body
STAYS = {name: fault for name, fault in GOES_AWAY.items() if name not in HALF_ANSWERS}
SILENT = pytest.param(faults.never_answer, id="never an answer", marks=pytest.mark.slow)


@pytest.mark.parametrize("fault", GOES_AWAY.values(), ids=GOES_AWAY)
def test_a_fault_that_goes_away_is_overcome(site: Site, fault: faults.Fault, tmp_path: Path) -> None:
    """Each operation suffers it once, and ends as if nothing had been."""
    content = os.urandom(3000)
    (tmp_path / "source").write_bytes(content)
    site.direct.put("old", content)

    def once() -> BlobStore:
        site.proxy.clear()
        site.fail(fault)
        return site.store

    def suffered() -> bool:
        return site.proxy.faulted() == 1

    assert once().put("put", content)
    assert suffered()
    assert once().put_if_absent("created", content) is True
    assert suffered()
    assert once().put_if_absent("created", b"other") is False
    assert suffered()
    etag = site.direct.get_blob("put").etag
    assert once().put_if_match("put", b"swapped", etag) == site.direct.get_blob("put").etag != etag
    assert suffered()
    assert once().put_if_match("put", b"late", etag) is None
    assert suffered()
    assert once().upload("uploaded", tmp_path / "source") == sha256_hex(content)
    assert suffered()
    assert once().get("old") == content
    assert suffered()
    assert b"".join(once().stream("old", start=1000)) == content[1000:]
    assert suffered()
    assert once().download("old", tmp_path / "target") == sha256_hex(content)
    assert suffered()
    assert once().list() == ["created", "old", "put", "uploaded"]
    assert suffered()
    with pytest.raises(BlobMissingError):
        once().get("absent")
    assert suffered()
    once().delete("old")
    assert suffered()
    assert site.direct.list() == ["created", "put", "uploaded"]
    assert (site.direct.get("created"), site.direct.get("put"), site.direct.get("uploaded")) == (
        content, b"swapped", content,
    )  # fmt: skip


def every_operation(store: BlobStore, folder: Path) -> dict[str, Callable[[], object]]:
    (folder / "source").write_bytes(b"new")
    return {
        "get": lambda: store.get("k"),
        "get_blob": lambda: store.get_blob("k"),
        "stream": lambda: list(store.stream("k", start=1)),
        "download": lambda: store.download("k", folder / "target"),
        "put": lambda: store.put("k", b"new"),
        "put_if_absent": lambda: store.put_if_absent("k2", b"new"),
        "put_if_match": lambda: store.put_if_match("k", b"new", '"0" 0123456789abcdef'),
        "upload": lambda: store.upload("k", folder / "source"),
        "delete": lambda: store.delete("k"),
        "list": lambda: store.list("k"),
    }


@pytest.mark.parametrize("fault", [*(pytest.param(fault, id=name) for name, fault in STAYS.items()), SILENT])
def test_a_fault_that_stays_ends_in_an_error_that_names_the_key(
    site: Site, fault: faults.Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(common.ATTEMPTS_VARIABLE, "2")
    monkeypatch.setenv(common.TIMEOUT_VARIABLE, "0.4")
    store = open_store(site.url)
    site.direct.put("k", b"0123456789")
    site.fail(fault, times=EVERY)
    for name, operation in every_operation(store, tmp_path).items():
        began = time.monotonic()
        with pytest.raises(StoreError, match=r"^k") as failed:
            operation()
        assert time.monotonic() - began < 30, name  # two attempts of 0.4 s, back-off, follow-up questions
        assert not isinstance(failed.value, BlobMissingError), name
        assert "://127" not in str(failed.value), name
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("size", [3000, SEVERAL_PARTS])
@pytest.mark.parametrize("passing", [0, 1])
def test_what_was_sent_by_halves_never_becomes_visible(site: Site, tmp_path: Path, size: int, passing: int) -> None:
    """All bodies are halved, or all but the first: the parts before the last one of a long blob."""
    content = os.urandom(size)
    (tmp_path / "source").write_bytes(content)
    etag = site.direct.put("old", b"old")
    operations: list[Callable[[], object]] = [
        lambda: site.store.put_if_absent("new", content),
        lambda: site.store.upload("new", tmp_path / "source"),
        lambda: site.store.upload("old", tmp_path / "source"),
        lambda: site.store.put("old", content),
        lambda: site.store.put_if_match("old", content, etag),
    ]
    for operation in operations:
        site.proxy.clear()
        site.fail(faults.truncate_up, WRITES, skip=passing, times=EVERY)
        try:
            operation()
        except StoreError:
            pass
        else:
            assert passing, "a truncated write succeeded"
            assert site.direct.get("new" if "new" in site.direct.list() else "old") == content
            site.direct.delete("new")
            etag = site.direct.put("old", b"old")
        assert site.direct.list() == ["old"]
        assert site.direct.get("old") == b"old"


@pytest.mark.parametrize("fault", [faults.truncate_down, faults.reset_down])
def test_what_arrived_by_halves_is_never_accepted(site: Site, tmp_path: Path, fault: faults.Fault) -> None:
    content = os.urandom(3000)
    site.direct.put("k", content)
    site.fail(fault, "GET", times=EVERY)
    reads: list[Callable[[], object]] = [
        lambda: site.store.get("k"),
        lambda: site.store.get_blob("k"),
        lambda: site.store.download("k", tmp_path / "target"),
        lambda: site.store.get("absent"),
    ]
    for read in reads:
        with pytest.raises(StoreError, match=r"^(k|absent): "):
            read()
    assert not (tmp_path / "target").exists()


def test_a_broken_download_goes_on_where_it_broke(site: Site, tmp_path: Path) -> None:
    content = os.urandom(SEVERAL_PARTS)
    site.direct.put("k", content)
    site.break_downloads(faults.truncate_down, ATTEMPTS + 2)  # progress between them: more than the attempts of one
    assert site.store.download("k", tmp_path / "target") == sha256_hex(content)
    assert (tmp_path / "target").read_bytes() == content
    assert site.proxy.faulted() == ATTEMPTS + 2


@pytest.mark.parametrize("start", [0, 1])
def test_a_blob_replaced_during_a_broken_download_is_refused(site: Site, start: int) -> None:
    """Also where only a part is read, which no hash of the whole can check."""
    content = os.urandom(SEVERAL_PARTS)
    site.direct.put("k", content)
    site.break_downloads(faults.truncate_down)
    stream = site.store.stream("k", start=start)
    assert content[start:].startswith(next(stream))
    site.direct.put("k", os.urandom(SEVERAL_PARTS))
    with pytest.raises(StoreError, match=r"^k: "):
        list(stream)


def test_damage_on_the_way_down_is_refused(site: Site, tmp_path: Path) -> None:
    site.direct.put("k", os.urandom(3000))
    site.break_downloads(faults.corrupt_down, EVERY)
    with pytest.raises(StoreError, match=r"^k: .*(sha256|checksum)"):
        site.store.get("k")
    with pytest.raises(StoreError, match=r"^k: .*(sha256|checksum)"):
        list(site.store.stream("k"))
    with pytest.raises(StoreError, match=r"^k: .*(sha256|checksum)"):
        site.store.download("k", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("size", [3000, SEVERAL_PARTS])
def test_damage_on_the_way_up_is_never_accepted(site: Site, tmp_path: Path, size: int) -> None:
    """The real services compare checksums and store nothing; moto doesn't, and then every reader does."""
    content = os.urandom(size)
    (tmp_path / "source").write_bytes(content)
    site.fail(faults.corrupt_up, WRITES, times=EVERY)
    try:
        site.store.upload("k", tmp_path / "source")
    except StoreError:
        assert site.direct.list() == []
        return
    with pytest.raises(StoreError, match=r"^k: .*sha256"):
        site.direct.get("k")
    with pytest.raises(StoreError, match=r"^k: .*sha256"):
        site.direct.download("k", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_slow_server_is_waited_for(site: Site) -> None:
    """The whole answer takes longer than the time-out, each piece of it less."""
    site.direct.put("k", b"0123456789")
    site.break_downloads(faults.dripping(pieces=10, pause_seconds=0.3))
    assert site.store.get("k") == b"0123456789"
    assert site.proxy.faulted() == 1


DENIED = {
    "s3": faults.answering(
        403,
        b"<Error><Code>AccessDenied</Code><Message>see http://u:hush@x/?sig=hush</Message></Error>",
        "Content-Type: application/xml",
    ),
    "gcs": faults.answering(
        403,
        b'{"error": {"code": 403, "message": "see http://u:hush@x/?sig=hush"}}',
        "Content-Type: application/json",
    ),
    "azure": faults.answering(
        403,
        b"<Error><Code>AuthorizationFailure</Code><Message>see http://u:hush@x/?sig=hush</Message></Error>",
        "Content-Type: application/xml",
        "x-ms-error-code: AuthorizationFailure",
    ),
}


def test_denied_access_names_key_and_remedy_and_no_secret(site: Site, tmp_path: Path) -> None:
    site.fail(DENIED[site.cloud], times=EVERY)
    for name, operation in every_operation(site.store, tmp_path).items():
        with pytest.raises(StoreError, match=r"^k2?: .*(allow|grant|role|permission)") as denied:
            operation()
        assert not isinstance(denied.value, BlobMissingError)
        told = str(denied.value)
        assert "hush" not in told, name
        assert all(os.environ[secret] not in told for secret in SECRETS if secret in os.environ), name


@pytest.mark.parametrize("cloud", CLOUDS)
def test_an_unknown_bucket_is_said_by_name(cloud: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = request.getfixturevalue(f"{cloud}_store_url")
    scheme = url.partition("://")[0]
    store = open_store(f"{scheme}://strikeforge-nowhere/prefix")
    operations = every_operation(store, tmp_path)
    for name in ("put", "put_if_absent", "upload", "list"):
        with pytest.raises(StoreError, match="strikeforge-nowhere") as missing:
            operations[name]()
        assert not isinstance(missing.value, BlobMissingError), name


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_closed_port_ends_in_an_error(
    cloud: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, short_pauses: None
) -> None:
    url = request.getfixturevalue(f"{cloud}_store_url")
    host, port = behind(cloud)
    monkeypatch.setenv(common.ATTEMPTS_VARIABLE, "2")
    monkeypatch.setenv(common.TIMEOUT_VARIABLE, "1")
    with socket.socket() as nobody:  # bound, so that nobody else takes it, but not listening
        nobody.bind((host, 0))
        named = os.environ[ENDPOINTS[cloud]]
        monkeypatch.setenv(ENDPOINTS[cloud], named.replace(f":{port}", f":{nobody.getsockname()[1]}"))
        for operation in every_operation(open_store(url), tmp_path).values():
            with pytest.raises(StoreError, match=r"^k"):
                operation()


@pytest.mark.parametrize("name", [common.TIMEOUT_VARIABLE, common.ATTEMPTS_VARIABLE])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon", "1e9", ""])
def test_unusable_patience_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=f"^{name}="):
        open_store("s3://bucket/prefix")
