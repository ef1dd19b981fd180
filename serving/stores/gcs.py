"""Blobs as objects of a Google Cloud Storage bucket.

Data in and out: as in serving/blobstore.py; a blob is the object `prefix/key`, with its sha256 and its writers in the
metadata (serving/stores/common.py); the store's own etag is the object's generation. Credentials come from Google's
default chain (GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, workload identity); where
STORAGE_EMULATOR_HOST names an emulator, none are looked for.
Invariants: conditions are the server's (`ifGenerationMatch`), so a race has one winner, and a winner whose answer was
lost still returns as one. Every write carries its CRC32C, which the service checks before anything is visible; every
whole read is checked against that and the recorded sha256. A read is two requests, for content and for metadata, of one
generation; where the blob is replaced between them it begins anew.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.blobstore import Blob, Entries, Entry, Keys, Progress, check_prefix, save_new
from serving.canonical import sha256_hex
from serving.errors import BlobMissingError, StoreError
from serving.stores import common
from serving.stores.gcs_errors import (
    DELETE,
    LIST,
    READ,
    WRITE,
    absent,
    attempts_of,
    beyond_end,
    crc32c,
    explain,
    names_bucket,
    refused,
    unreadable,
)
from serving.stores.gcs_upload import RESUMABLE_BYTES, Watched, in_base64, is_generation, send, send_resumably
from serving.stores.pieces import PIECE_BYTES, pieces_from, split

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
EMULATOR = "STORAGE_EMULATOR_HOST"
NO_BACKGROUND = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"
NO_GENERATION = "1"  # generations are microseconds since 1970
PAGE = 1000  # names in an answer, the service's most
RACES = 50  # times a blob may be replaced between the two requests of a read


def open(url: str) -> GcsStore:
    """The store of a `gs://bucket/prefix` URL; nothing is sent to it yet."""
    import google.auth
    import google.cloud.storage
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import AuthorizedSession

    location = common.parse_location(url)
    patience = common.patience()
    os.environ.setdefault(NO_BACKGROUND, "true")  # or the SDK asks for the bucket in a thread, tracing or not
    emulator = os.environ.get(EMULATOR)
    if emulator and "://" not in emulator:
        raise StoreError(f"{location}: {EMULATOR} needs its scheme, as in http://localhost:9023")
    try:
        credentials: Any = google.auth.default(scopes=[SCOPE])[0] if not emulator else _anonymous()
        client = google.cloud.storage.Client(project=None, credentials=credentials)
    except (GoogleAuthError, OSError, ValueError) as error:  # OSError and ValueError: a credentials file can't be used
        raise StoreError(
            f"{location}: no usable Google credentials ({type(error).__name__}); run `gcloud auth application-default "
            "login`, let GOOGLE_APPLICATION_CREDENTIALS name a key file, or run where a service account is attached"
        ) from error
    session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    return GcsStore(client, session, location, patience)


@dataclass(frozen=True)
class Described:
    """One version of an object; `crc32c` in base64."""

    generation: str
    size: int
    crc32c: str | None
    sha256: str | None
    chain: str | None

    @property
    def etag(self) -> str:
        return common.join_etag(self.generation, self.chain)


class GcsStore:
    """See the module. Threads may share a store, forked processes may not."""

    def __init__(self, client: Any, session: Any, location: common.Location, patience: common.Patience) -> None:
        self._client = client
        self._session = session
        self._bucket = client.bucket(location.bucket)
        self._location = location
        self._patience = patience

    def __repr__(self) -> str:
        return f"GcsStore({str(self._location)!r})"

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        return self.get_blob(key, max_bytes=max_bytes).data

    def get_blob(self, key: str, *, max_bytes: int | None = None) -> Blob:
        described, chunks = self._read(key, max_bytes=max_bytes)
        return Blob(b"".join(chunks), described.etag)

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        yield from self._read(key, start=start)[1]

    def put(self, key: str, data: bytes) -> str:
        chain = common.chain_after(common.new_writer())
        with explain(key, WRITE, self._location, self._patience):
            return self._send(key, data, chain)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if len(data) > RESUMABLE_BYTES and self._exists(key):  # saves the transfer only; the condition decides
            return False
        writer = common.new_writer()
        chain = common.chain_after(writer)
        return self._conditional(key, writer, lambda: self._send(key, data, chain, generation="0")) is not None

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        native, replaced = common.split_etag(etag)
        writer = common.new_writer()
        chain = common.chain_after(writer, replaced)
        generation = native if is_generation(native) else NO_GENERATION
        return self._conditional(key, writer, lambda: self._send(key, data, chain, generation=generation))

    def list(self, prefix: str = "") -> Keys:
        return [entry.key for entry in self.entries(prefix)]

    def entries(self, prefix: str = "", *, shallow: bool = False) -> Entries:
        wanted = {
            "prefix": self._location.names_under(check_prefix(prefix)),
            "delimiter": "/" if shallow else None,
            "fields": "items(name,size,generation),prefixes,nextPageToken",
            "page_size": PAGE,
        }
        with explain(prefix or "list", LIST, self._location, self._patience):
            answer = self._client.list_blobs(self._bucket, **wanted, **self._tries())
            blobs = list(answer)
        found = []
        for blob in blobs:
            version, size = self._version_and_size(blob.name, blob)
            found.append(Entry(blob.name, size, version))
        found.extend(Entry(deeper, 0, "") for deeper in answer.prefixes)
        return self._location.entries_of(found, foreign=shallow)

    def delete(self, key: str) -> None:
        with explain(key, DELETE, self._location, self._patience):
            try:
                self._blob(key).delete(**self._tries())
            except absent() as error:
                if names_bucket(error):
                    raise

    def upload(self, key: str, source: Path, *, progress: Progress | None = None) -> str:
        self._location.name_of(key)
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= RESUMABLE_BYTES:
                data = file.read()
                self.put(key, data)
                return sha256_hex(data)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            metadata = {common.WRITERS: common.chain_after(common.new_writer()), common.SHA256: sha256}
            whole = Watched(file, key, size, sha256, progress or common.terminal_progress(key, size))
            with explain(key, WRITE, self._location, self._patience):
                send_resumably(self._blob(key), whole, size, metadata, **self._tries())
        return sha256

    def download(
        self, key: str, target: Path, *, max_bytes: int | None = None, progress: Progress | None = None
    ) -> str:
        _, chunks = self._read(key, max_bytes=max_bytes, progress=progress, shown=True)
        return save_new(target, chunks)

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
            first, generation = self._piece(key, start, count)
            try:
                described = self._describe(key, generation)
            except BlobMissingError:  # replaced or deleted since the first piece; asking for that again tells which
                continue
            size = described.size
            if max_bytes is not None and size > max_bytes:
                raise common.too_long(key, max_bytes)
            if start > size:
                raise StoreError(f"{key}: byte {start} lies beyond its {size} bytes")
            if generation is None and start < size:  # it grew since there was nothing at `start`
                continue
            if shown:
                progress = progress or common.terminal_progress(key, size)
            return described, self._content(key, described, start, first, progress)
        raise StoreError(f"{key}: was replaced {RACES} times in {self._location} while it was read; read it again")

    def _content(
        self, key: str, described: Described, start: int, first: bytes, progress: Progress | None
    ) -> Iterator[bytes]:
        """From the first piece to the end, checked there."""
        digest, checksum = hashlib.sha256(), crc32c()

        def fetch(at: int) -> bytes:
            try:
                return self._piece(key, at, PIECE_BYTES, described.generation)[0]
            except BlobMissingError as error:
                raise StoreError(f"{key}: was replaced in {self._location} while it was read; read it again") from error

        for piece in pieces_from(key, start, described.size, first, fetch, progress):
            digest.update(piece)
            checksum.update(piece)
            yield from split(piece)
        if start == 0:
            common.require_sha256(key, digest.hexdigest(), described.sha256)
            if described.crc32c is not None and described.crc32c != in_base64(checksum.digest()):
                raise StoreError(f"{key}: arrived with another CRC32C checksum than {self._location} has; try again")

    def _piece(self, key: str, start: int, count: int, generation: str | None = None) -> tuple[bytes, str | None]:
        """At most `count` bytes from `start` on, of this version or else the latest, and which version that is.

        No bytes and None where there are none. BlobMissingError where there is no blob, or none of that version.
        """
        blob = self._blob(key, generation)
        sink = io.BytesIO()
        with explain(key, READ, self._location, self._patience):
            try:
                blob.download_to_file(
                    sink, start=start, end=start + count - 1, raw_download=True, checksum=None, **self._tries(sink.tell)
                )
            except beyond_end():
                return b"", None
        if blob.generation is None:
            raise StoreError(f"{key}: {unreadable(self._location)}")
        return sink.getvalue(), str(blob.generation)

    def _describe(self, key: str, generation: str | None = None) -> Described:
        """This version of the object, or else the latest."""
        blob = self._blob(key, generation)
        with explain(key, READ, self._location, self._patience):
            blob.reload(**self._tries())
        metadata = blob.metadata or {}
        version, size = self._version_and_size(key, blob)
        return Described(version, size, blob.crc32c, metadata.get(common.SHA256), metadata.get(common.WRITERS))

    def _version_and_size(self, key: str, blob: Any) -> tuple[str, int]:
        try:
            return str(int(blob.generation)), int(blob.size)
        except (TypeError, ValueError) as error:
            raise StoreError(f"{key}: {unreadable(self._location)}") from error

    def _exists(self, key: str) -> bool:
        try:
            self._describe(key)
        except BlobMissingError:
            return False
        return True

    def _blob(self, key: str, generation: str | None = None) -> Any:
        return self._bucket.blob(self._location.name_of(key), generation=generation)

    def _tries(self, progress: Callable[[], int] | None = None) -> dict[str, Any]:
        """Time-out and retries of one request, as the SDK wants them."""
        seconds = self._patience.timeout_seconds
        return {"timeout": (seconds, seconds), "retry": attempts_of(self._patience, progress)}

    def _send(self, key: str, data: bytes, chain: str, *, generation: str | None = None) -> str:
        """The new etag; `generation` is that of the version to be replaced. Errors are Google's."""
        upload = f"{self._client.api_endpoint}/upload/storage/v1/b/{self._location.bucket}/o"
        metadata = {common.WRITERS: chain, common.SHA256: sha256_hex(data)}
        written = send(self._session, upload, self._location.name_of(key), data, metadata, generation, **self._tries())
        if not is_generation(written):
            raise StoreError(f"{key}: {unreadable(self._location)}. Whether it was written, only a read can tell")
        return common.join_etag(written, chain)

    def _conditional(self, key: str, writer: str, send: Callable[[], str]) -> str | None:
        """The new etag, None where the condition doesn't hold; an earlier try of this writer counts as success."""
        with explain(key, WRITE, self._location, self._patience):
            try:
                return send()
            except refused():
                try:
                    now = self._describe(key)
                except BlobMissingError:
                    return None
                return common.earlier_success(writer, now.generation, now.chain)


def _anonymous() -> Any:
    from google.auth.credentials import AnonymousCredentials

    return AnonymousCredentials()  # type: ignore[no-untyped-call]
