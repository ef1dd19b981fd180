"""Blobs as block blobs of an Azure Storage container.

Data in and out: as in serving/blobstore.py; a blob is the Azure blob `prefix/key`, with its sha256 and its writers in
the metadata (serving/stores/common.py). The account and its credentials come from AZURE_STORAGE_CONNECTION_STRING
(account key, shared access signature, emulator, other clouds), or, where only AZURE_STORAGE_ACCOUNT names an account,
from azure-identity's default chain (environment, workload or managed identity, `az login`).
Invariants: conditions are the server's (`If-None-Match: *`, `If-Match`), so a race has one winner, and a winner whose
answer was lost still returns as one. Every body travels with its MD5, which Azure checks before anything is visible;
every whole read is checked against the recorded sha256, or a foreign blob's MD5. A read is of one etag.
Azure can't list names with U+FFFE or U+FFFF; these and `%` are percent-encoded in names. An account with a hierarchical
namespace lists folders as if they were blobs; take one without.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from serving.blobstore import Blob, Entries, Entry, Keys, Progress, check_prefix, save_new
from serving.canonical import sha256_hex
from serving.errors import BlobMissingError, StoreError
from serving.stores import common
from serving.stores.azure_blocks import BLOCK_BYTES, Source, send
from serving.stores.azure_errors import answered, code_of, explain, is_broken, retries, retry_busy
from serving.stores.pieces import PIECE_BYTES, pieces_from, split

CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
ACCOUNT = "AZURE_STORAGE_ACCOUNT"
MAX_NAME = 1024  # characters
PAGE = 5000  # names in an answer, Azure's most
NO_ETAG = '"0x0"'
REFUSED = ("ConditionNotMet", "BlobAlreadyExists", "BlobNotFound")  # the condition of a write doesn't hold
SWEPT = "InvalidBlockList"  # another's commit took our blocks away: stage them again
RACES = 50  # times a blob may grow between the two requests of a read at its end


def open(url: str) -> AzureStore:
    """The store of an `az://container/prefix` URL; nothing is sent yet."""
    from azure.storage.blob import BlobServiceClient

    location = common.parse_location(url)
    patience = common.patience()
    options: dict[str, Any] = {
        "connection_timeout": patience.timeout_seconds,
        "read_timeout": patience.timeout_seconds,
        "retry_policy": retries(patience),
        "raw_response_hook": retry_busy,
        "max_single_put_size": BLOCK_BYTES,
        "max_single_get_size": PIECE_BYTES,
        "max_chunk_get_size": PIECE_BYTES,
        "user_agent": "strikeforge",
    }
    text, account = os.environ.get(CONNECTION_STRING), os.environ.get(ACCOUNT)
    if text:
        try:
            service = BlobServiceClient.from_connection_string(text, **options)
        except ValueError:  # its words may repeat the string
            raise StoreError(
                f"{location}: {CONNECTION_STRING} can't be used; copy it anew from the account's access keys"
            ) from None
    elif account:
        if not re.fullmatch(r"[a-z0-9]{3,24}", account):
            raise StoreError(f"{location}: {ACCOUNT}={account!r} is no account's name (3 to 24 letters and digits)")
        from azure.identity import DefaultAzureCredential

        address = f"https://{account}.blob.core.windows.net"
        service = BlobServiceClient(address, credential=DefaultAzureCredential(), **options)
    else:
        raise StoreError(
            f"{location}: no storage account is named; set {ACCOUNT} (with `az login` or a managed identity) or "
            f"{CONNECTION_STRING}"
        )
    return AzureStore(service.get_container_client(location.bucket), location, patience)


@dataclass(frozen=True)
class Described:
    """One version of a blob; `md5` is empty where none is recorded."""

    native: str
    size: int
    metadata: dict[str, str]
    md5: bytes

    @property
    def etag(self) -> str:
        return common.join_etag(self.native, self.metadata.get(common.WRITERS))


class AzureStore:
    """See the module; `container` is a ContainerClient, which threads may share but forked processes may not."""

    def __init__(self, container: Any, location: common.Location, patience: common.Patience) -> None:
        self._container = container
        self._location = location
        self._patience = patience

    def __repr__(self) -> str:
        return f"AzureStore({str(self._location)!r})"

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        return self.get_blob(key, max_bytes=max_bytes).data

    def get_blob(self, key: str, *, max_bytes: int | None = None) -> Blob:
        described, content = self._read(key, max_bytes=max_bytes)
        return Blob(b"".join(content), described.etag)

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        yield from self._read(key, start=start)[1]

    def put(self, key: str, data: bytes) -> str:
        etag = self._write(key, _source(data), {})
        assert etag is not None, "without a condition"
        return etag

    def put_if_absent(self, key: str, data: bytes) -> bool:
        from azure.core import MatchConditions

        if len(data) > BLOCK_BYTES and self._exists(key):  # saves the transfer only; the condition decides
            return False
        return self._write(key, _source(data), {"match_condition": MatchConditions.IfMissing}) is not None

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        from azure.core import MatchConditions

        native, replaced = common.split_etag(etag)
        known = native if re.fullmatch(r'"0x[0-9A-Fa-f]+"', native) else NO_ETAG
        condition = {"match_condition": MatchConditions.IfNotModified, "etag": known}
        return self._write(key, _source(data), condition, replaced)

    def list(self, prefix: str = "") -> Keys:
        return [entry.key for entry in self.entries(prefix)]

    def entries(self, prefix: str = "", *, shallow: bool = False) -> Entries:
        from azure.storage.blob import BlobPrefix

        beginning = encode(self._location.names_under(check_prefix(prefix)))
        listing = self._container.walk_blobs if shallow else self._container.list_blobs
        with explain(prefix or "list", self._location, self._patience):
            blobs = list(listing(name_starts_with=beginning, results_per_page=PAGE))
        found = []
        for blob in blobs:
            ours = encode(decode(blob.name)) == blob.name
            name = decode(blob.name) if ours else blob.name
            if ours or shallow:
                deeper = isinstance(blob, BlobPrefix)
                found.append(Entry(name, 0, "") if deeper else Entry(name, blob.size, blob.etag))
        return self._location.entries_of(found, foreign=shallow)

    def delete(self, key: str) -> None:
        blob = self._blob(key)
        with explain(key, self._location, self._patience):
            try:
                blob.delete_blob()
            except answered() as error:
                if code_of(error) != "BlobNotFound":
                    raise

    def upload(self, key: str, source: Path, *, progress: Progress | None = None) -> str:
        self._location.name_of(key)
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            whole = Source(file, size, hashlib.file_digest(file, "sha256").hexdigest())
            self._write(key, whole, {}, progress=progress or common.terminal_progress(key, size))
        return whole.sha256

    def download(
        self, key: str, target: Path, *, max_bytes: int | None = None, progress: Progress | None = None
    ) -> str:
        _, content = self._read(key, max_bytes=max_bytes, progress=progress, shown=True)
        return save_new(target, content)

    def _read(
        self,
        key: str,
        *,
        start: int = 0,
        max_bytes: int | None = None,
        progress: Progress | None = None,
        shown: bool = False,
    ) -> tuple[Described, Iterator[bytes]]:
        """A version of the blob and its content from byte `start` on; the first piece has arrived."""
        count = PIECE_BYTES if max_bytes is None else min(PIECE_BYTES, max_bytes + 1)
        for _ in range(RACES):
            first, described = self._piece(key, start, count)
            if described is None:
                described = self._describe(key)
                if start < described.size:  # it grew since there was nothing at `start`
                    continue
            size = described.size
            if max_bytes is not None and size > max_bytes:
                raise common.too_long(key, max_bytes)
            if start > size:
                raise StoreError(f"{key}: byte {start} lies beyond its {size} bytes")
            if shown:
                progress = progress or common.terminal_progress(key, size)
            return described, self._content(key, described, start, first, progress)
        raise StoreError(f"{key}: was replaced {RACES} times in {self._location} while it was read; read it again")

    def _content(
        self, key: str, described: Described, start: int, first: bytes, progress: Progress | None
    ) -> Iterator[bytes]:
        """From the first piece to the end, checked there."""
        digest, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

        def fetch(at: int) -> bytes:
            return self._piece(key, at, PIECE_BYTES, described.native)[0]

        for piece in pieces_from(key, start, described.size, first, fetch, progress):
            digest.update(piece)
            md5.update(piece)
            yield from split(piece)
        if start == 0:
            recorded = described.metadata.get(common.SHA256)
            common.require_sha256(key, digest.hexdigest(), recorded)
            if recorded is None and described.md5 and described.md5 != md5.digest():
                raise StoreError(f"{key}: arrived with another MD5 checksum than {self._location} has; try again")

    def _piece(self, key: str, start: int, count: int, etag: str | None = None) -> tuple[bytes, Described | None]:
        """At most `count` bytes from `start` on, of this version or else the latest; None where there are no bytes."""
        from azure.core import MatchConditions

        blob = self._blob(key)
        condition = {"etag": etag, "match_condition": MatchConditions.IfNotModified} if etag else {}
        with explain(key, self._location, self._patience):
            for attempt in range(1, self._patience.attempts + 1):
                try:
                    answer = blob.download_blob(offset=start, length=count, **condition)
                    data = answer.readall()
                except answered() as error:
                    if code_of(error) == "InvalidRange":
                        return b"", None
                    if not is_broken(error) or attempt == self._patience.attempts:
                        raise
                else:
                    return data, _described(key, answer.properties) if data else None
                time.sleep(self._patience.pause_seconds(attempt))
        raise AssertionError("the last attempt returns or raises")

    def _describe(self, key: str) -> Described:
        with explain(key, self._location, self._patience):
            return _described(key, self._blob(key).get_blob_properties())

    def _exists(self, key: str) -> bool:
        try:
            self._describe(key)
        except BlobMissingError:
            return False
        return True

    def _blob(self, key: str) -> Any:
        name = encode(self._location.name_of(key))
        if len(name) > MAX_NAME:
            raise StoreError(
                f"key {key!r}: its name in Azure has {len(name)} characters, at most {MAX_NAME} are allowed"
            )
        return self._container.get_blob_client(name)

    def _write(
        self,
        key: str,
        source: Source,
        condition: dict[str, Any],
        replaced: tuple[str, ...] = (),
        progress: Progress | None = None,
    ) -> str | None:
        """The new etag, None where the condition doesn't hold; an earlier try of this writer counts as success."""
        blob = self._blob(key)
        writer = common.new_writer()
        chain = common.chain_after(writer, replaced)
        with explain(key, self._location, self._patience):
            for attempt in range(1, self._patience.attempts + 1):
                try:
                    return common.join_etag(send(blob, key, source, chain, condition, progress), chain)
                except answered() as error:
                    code = code_of(error)
                    etag = None
                    if code in REFUSED or code == SWEPT:
                        etag = self._earlier_success(key, writer)
                    if code in REFUSED or etag is not None:
                        return etag
                    if code != SWEPT or attempt == self._patience.attempts:
                        raise
                time.sleep(self._patience.pause_seconds(attempt))
        raise AssertionError("the last attempt returns or raises")

    def _earlier_success(self, key: str, writer: str) -> str | None:
        try:
            now = self._describe(key)
        except BlobMissingError:
            return None
        return common.earlier_success(writer, now.native, now.metadata.get(common.WRITERS))


def encode(name: str) -> str:
    """A name that Azure takes and lists; most are their own."""
    return re.sub("[%\ufffe\uffff]", lambda found: quote(found[0]), name)


def decode(name: str) -> str:
    """The inverse of `encode`; what that never made comes out as something else."""
    return re.sub("%(?:25|EF%BF%B[EF])", lambda found: unquote(found[0]), name)


def _source(data: bytes) -> Source:
    return Source(io.BytesIO(data), len(data), sha256_hex(data))


def _described(key: str, properties: Any) -> Described:
    """Of the properties of a blob, or of one range of it."""
    ranged = re.fullmatch(r"bytes \d+-\d+/(\d+)", properties.content_range or "")
    size = int(ranged[1]) if ranged else properties.size
    md5 = properties.content_settings.content_md5 or b""  # text where a range was asked for
    if not properties.etag or not isinstance(size, int):
        raise StoreError(f"{key}: the server described it without etag or size")
    return Described(
        properties.etag, size, dict(properties.metadata), base64.b64decode(md5) if isinstance(md5, str) else bytes(md5)
    )
