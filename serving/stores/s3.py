"""Blobs as objects of an S3 bucket, or of a server that speaks S3 with conditional writes.

Data in and out: as in serving/blobstore.py; a blob is the object `prefix/key`, with its sha256 and its writers in the
metadata (serving/stores/common.py). Credentials, region and endpoint come from boto3's default chain (AWS_PROFILE,
AWS_ENDPOINT_URL and so on).
Invariants: conditions are the server's (`If-None-Match: *`, `If-Match`), so a race has one winner, and a winner whose
answer was lost still returns as one. Every body travels with its SHA-256, which S3 checks before anything is visible;
every whole read is checked against the recorded one. Parts of an upload that failed are removed; those of a killed
process stay until the bucket's lifecycle rule (AbortIncompleteMultipartUpload) takes them. Requests are retried by
botocore (standard mode: back-off with jitter), broken downloads here, from where they broke and of the same version.
S3's etag is of the content: a blob that goes back to earlier bytes gets its earlier etag back.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serving.blobstore import CHUNK_BYTES, Blob, Entries, Entry, Keys, Progress, check_prefix, save_new
from serving.canonical import sha256_hex
from serving.errors import BlobMissingError, StoreError
from serving.stores import common
from serving.stores.s3_errors import answered, broken, broken_refusal, explain, said_by
from serving.stores.s3_parts import PART_BYTES, Source, checksum_of, send_parts


def open(url: str) -> S3Store:
    """The store of an `s3://bucket/prefix` URL; nothing is sent yet."""
    import boto3.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    location = common.parse_location(url)
    patience = common.patience()
    config = Config(
        connect_timeout=patience.timeout_seconds,
        read_timeout=patience.timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": patience.attempts},
        tcp_keepalive=True,
        user_agent_extra="strikeforge",
    )
    try:
        client = boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:  # an unknown profile, an endpoint that is no URL
        raise StoreError(f"{location}: AWS settings can't be used: {common.without_urls(error)}") from error

    def retry_busy(response: Any, attempts: int, **_: Any) -> float | None:
        """429 is some servers' 503 and no error botocore knows; seconds until the next try, None for none."""
        busy = response is not None and response[0].status_code == 429 and attempts < patience.attempts
        return patience.pause_seconds(attempts) if busy else None

    client.meta.events.register("needs-retry.s3", retry_busy)
    return S3Store(client, location, patience)


class S3Store:
    """See the module; `client` is a boto3 S3 client, which threads may share but forked processes may not."""

    def __init__(self, client: Any, location: common.Location, patience: common.Patience) -> None:
        self._client = client
        self._location = location
        self._patience = patience

    def __repr__(self) -> str:
        return f"S3Store({str(self._location)!r})"

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        return self.get_blob(key, max_bytes=max_bytes).data

    def get_blob(self, key: str, *, max_bytes: int | None = None) -> Blob:
        answer = self._request(key)
        data = b"".join(self._body(key, answer, max_bytes=max_bytes))
        return Blob(data, common.join_etag(answer["ETag"], answer["Metadata"].get(common.WRITERS)))

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        if start == 0:
            yield from self._body(key, self._request(key))
            return
        size = self._head(key)["ContentLength"]  # S3 has no empty range, so the end needs a question of its own
        if start > size:
            raise StoreError(f"{key}: byte {start} lies beyond its {size} bytes")
        if start < size:
            yield from self._body(key, self._request(key, start), start=start)

    def put(self, key: str, data: bytes) -> str:
        chain = common.chain_after(common.new_writer())
        with explain(key, "s3:PutObject", self._location, self._patience):
            return self._send(key, data, chain)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        writer = common.new_writer()
        chain = common.chain_after(writer)
        if len(data) <= PART_BYTES:
            return self._conditional(key, writer, lambda: self._send(key, data, chain, IfNoneMatch="*")) is not None
        if self._exists(key):  # saves the transfer only; the condition decides
            return False
        source = Source(io.BytesIO(data), len(data), sha256_hex(data))
        return self._conditional(key, writer, lambda: self._send_all(key, source, chain, IfNoneMatch="*")) is not None

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        native, replaced = common.split_etag(etag)
        writer = common.new_writer()
        chain = common.chain_after(writer, replaced)
        return self._conditional(key, writer, lambda: self._send(key, data, chain, IfMatch=native))

    def list(self, prefix: str = "") -> Keys:
        return [entry.key for entry in self.entries(prefix)]

    def entries(self, prefix: str = "", *, shallow: bool = False) -> Entries:
        wanted = {"Bucket": self._location.bucket, "Prefix": self._location.names_under(check_prefix(prefix))}
        if shallow:
            wanted["Delimiter"] = "/"
        found: Entries = []
        with explain(prefix or "list", "s3:ListBucket", self._location, self._patience):
            for page in self._client.get_paginator("list_objects_v2").paginate(**wanted):
                for one in page.get("Contents", ()):
                    # with the time also a write of the same bytes is told, as by the other stores
                    version = f"{one['ETag']} {one['LastModified'].isoformat()}"
                    found.append(Entry(one["Key"], one["Size"], version))
                found.extend(Entry(deeper["Prefix"], 0, "") for deeper in page.get("CommonPrefixes", ()))
        return self._location.entries_of(found, foreign=shallow)

    def delete(self, key: str) -> None:
        with explain(key, "s3:DeleteObject", self._location, self._patience):
            self._client.delete_object(**self._where(key))

    def upload(self, key: str, source: Path, *, progress: Progress | None = None) -> str:
        self._location.name_of(key)
        writer = common.new_writer()
        chain = common.chain_after(writer)
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= PART_BYTES:
                data = file.read()
                self.put(key, data)
                return sha256_hex(data)
            whole = Source(file, size, hashlib.file_digest(file, "sha256").hexdigest())
            progress = progress or common.terminal_progress(key, size)
            self._conditional(key, writer, lambda: self._send_all(key, whole, chain, progress))
            return whole.sha256

    def download(
        self, key: str, target: Path, *, max_bytes: int | None = None, progress: Progress | None = None
    ) -> str:
        def chunks() -> Iterator[bytes]:
            answer = self._request(key)
            show = progress or common.terminal_progress(key, answer["ContentLength"])
            yield from self._body(key, answer, max_bytes=max_bytes, progress=show)

        return save_new(target, chunks())

    def _request(self, key: str, start: int = 0, etag: str | None = None) -> Any:
        """The answer to a GET from byte `start` on, of the version `etag` if given."""
        wanted = self._where(key)
        if start:
            wanted["Range"] = f"bytes={start}-"
        if etag is not None:
            wanted["IfMatch"] = etag
        with explain(key, "s3:GetObject", self._location, self._patience):
            answer = self._get_object(wanted)
        if start and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            raise StoreError(f"{key}: the server of {self._location} ignores ranges; it can't continue a download")
        return answer

    def _get_object(self, wanted: dict[str, str]) -> Any:
        """botocore doesn't try again where the body of a refusal breaks."""
        for attempt in range(1, self._patience.attempts):
            try:
                return self._client.get_object(**wanted)
            except broken_refusal():
                time.sleep(self._patience.pause_seconds(attempt))
        return self._client.get_object(**wanted)

    def _body(
        self,
        key: str,
        answer: Any,
        *,
        start: int = 0,
        max_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[bytes]:
        """The chunks of an answer that begins at `start`; asks for the rest where one breaks."""
        etag, recorded = answer["ETag"], answer["Metadata"].get(common.SHA256)
        size = start + answer["ContentLength"]
        if max_bytes is not None and size > max_bytes:
            answer["Body"].close()
            raise common.too_long(key, max_bytes)
        digest, done, failures = hashlib.sha256(), start, 0
        try:
            while done < size:
                try:
                    with explain(key, "s3:GetObject", self._location, self._patience):
                        chunk = _read(answer["Body"], min(CHUNK_BYTES, size - done))
                except BrokenError as error:
                    failures += 1
                    if failures == self._patience.attempts:
                        raise StoreError(
                            f"{key}: the download broke {failures} times at byte {done} of {size} ({error}); check the "
                            "network and try again"
                        ) from error
                    time.sleep(self._patience.pause_seconds(failures))
                    answer["Body"].close()
                    answer = self._request(key, done, etag)
                    if answer["ETag"] != etag:  # a server without If-Match
                        raise StoreError(f"{key}: was replaced while it was read; read it again") from error
                    continue
                failures = 0
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, size)
                yield chunk
        finally:
            answer["Body"].close()
        if start == 0:
            common.require_sha256(key, digest.hexdigest(), recorded)

    def _head(self, key: str) -> Any:
        with explain(key, "s3:GetObject", self._location, self._patience):
            return self._client.head_object(**self._where(key))

    def _exists(self, key: str) -> bool:
        try:
            self._head(key)
        except BlobMissingError:
            return False
        return True

    def _where(self, key: str) -> dict[str, str]:
        return {"Bucket": self._location.bucket, "Key": self._location.name_of(key)}

    def _send(self, key: str, data: bytes, chain: str, **condition: str) -> str:
        """One PutObject; the etag. Errors are botocore's."""
        answer = self._client.put_object(
            **self._where(key),
            Body=data,
            Metadata={common.WRITERS: chain, common.SHA256: sha256_hex(data)},
            ChecksumSHA256=checksum_of(data),
            **condition,
        )
        return common.join_etag(answer["ETag"], chain)

    def _send_all(
        self, key: str, source: Source, chain: str, progress: Progress | None = None, **condition: str
    ) -> str:
        metadata = {common.WRITERS: chain, common.SHA256: source.sha256}
        return common.join_etag(
            send_parts(self._client, self._where(key), source, metadata, condition, progress), chain
        )

    def _conditional(self, key: str, writer: str, send: Callable[[], str]) -> str | None:
        """The new etag, None where the condition doesn't hold; an earlier try of this writer counts as success."""
        with explain(key, "s3:PutObject", self._location, self._patience):
            for attempt in range(1, self._patience.attempts + 1):
                try:
                    return send()
                except answered() as error:
                    said = said_by(error)
                    if said.code in ("PreconditionFailed", "NoSuchUpload") or said.status == 412:
                        etag = self._earlier_success(key, writer)
                        if etag is None and said.code == "NoSuchUpload":
                            raise
                        return etag
                    if said.code == "NoSuchKey":  # If-Match of what isn't there
                        return None
                    if said.code != "ConditionalRequestConflict" or attempt == self._patience.attempts:
                        raise
                time.sleep(self._patience.pause_seconds(attempt))
        raise AssertionError("the last attempt returns or raises")

    def _earlier_success(self, key: str, writer: str) -> str | None:
        try:
            head = self._head(key)
        except BlobMissingError:
            return None
        return common.earlier_success(writer, head["ETag"], head["Metadata"].get(common.WRITERS))


class BrokenError(Exception):
    """An answer's body ended too early or stopped coming; the rest can be asked for."""


def _read(body: Any, count: int) -> bytes:
    """Up to `count` bytes, at least one."""
    try:
        chunk: bytes = body.read(count)
    except broken() as error:
        raise BrokenError(type(error).__name__) from error
    if not chunk:
        raise BrokenError("shorter than announced")
    return chunk
