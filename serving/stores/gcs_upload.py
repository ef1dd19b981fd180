"""Writing an object of Google Cloud Storage: all of it becomes visible at once, or nothing does.

Data in: bytes, with the generation they may replace, or a file, which replaces any. Data out: the new generation.
Errors are Google's, and StoreError for a file that changed meanwhile.
Invariants: every write carries its CRC32C, which the service checks before anything is visible. Objects are written
`no-store`: a public bucket would otherwise let caches answer with what was there an hour ago.

Bytes are one request of our own, whatever their length: the SDK makes a resumable upload of more than 8 MiB, on which
fake-gcs-server ignores conditions, as it does on compose and rewrite; the service itself honours them on all of these.
Files of more than that, which have no condition, are resumable uploads; the service forgets an unfinished one after a
week.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from typing import Any, BinaryIO

from serving.blobstore import Progress
from serving.errors import StoreError
from serving.stores.gcs_errors import crc32c

CONTENT_TYPE = "application/octet-stream"
CACHE_CONTROL = "no-store"
RESUMABLE_BYTES = 8 << 20  # files that are longer are sent in chunks of this size, a multiple of 256 KiB


def send(
    session: Any,
    upload_url: str,
    name: str,
    data: bytes,
    metadata: Mapping[str, str],
    generation: str | None,
    *,
    timeout: tuple[float, float],
    retry: Any,
) -> str:
    """One multipart upload; `generation` is that of the version to be replaced, "0" for none, None for any.

    https://cloud.google.com/storage/docs/uploading-objects (JSON API). `retry` is a google.api_core Retry.
    """
    from google.api_core.exceptions import from_http_response

    described = {
        "name": name,
        "contentType": CONTENT_TYPE,
        "cacheControl": CACHE_CONTROL,
        "crc32c": in_base64(crc32c(data).digest()),
        "metadata": dict(metadata),
    }
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n{json.dumps(described)}\r\n"
    middle = f"--{boundary}\r\ncontent-type: {CONTENT_TYPE}\r\n\r\n"
    body = b"".join([head.encode(), middle.encode(), data, f"\r\n--{boundary}--\r\n".encode()])
    parameters = {"uploadType": "multipart"}
    if generation is not None:
        parameters["ifGenerationMatch"] = generation

    def post() -> str:
        answer = session.post(
            upload_url,
            params=parameters,
            data=body,
            headers={"content-type": f"multipart/related; boundary={boundary}"},
            timeout=timeout,
        )
        if answer.status_code != 200:
            raise from_http_response(answer)  # type: ignore[no-untyped-call]
        return str(answer.json().get("generation"))

    written: str = retry(post)()
    return written


def send_resumably(blob: Any, source: Watched, size: int, metadata: Mapping[str, str], **tries: Any) -> None:
    """A resumable upload to the SDK's blob; a broken chunk is sent again, not the file."""
    blob.metadata = dict(metadata)
    blob.cache_control = CACHE_CONTROL
    blob.chunk_size = RESUMABLE_BYTES
    blob.upload_from_file(source, size=size, content_type=CONTENT_TYPE, checksum="crc32c", **tries)


def is_generation(text: str) -> bool:
    """Whether it can be a generation: a positive 64-bit number."""
    return text.isascii() and text.isdigit() and not text.startswith("0") and len(text) < 19


def in_base64(digest: bytes) -> str:
    """As Google writes checksums."""
    return base64.b64encode(digest).decode("ascii")


class Watched:
    """A file as the SDK reads it while uploading, held to the sha256 found before; `progress` never goes back."""

    def __init__(self, file: BinaryIO, key: str, size: int, sha256: str, progress: Progress | None) -> None:
        file.seek(0)
        self._file = file
        self._key = key
        self._size = size
        self._sha256 = sha256
        self._progress = progress
        self._digest = hashlib.sha256()
        self._seen = 0

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, count: int = -1) -> bytes:
        """The next bytes; StoreError instead of the last ones where the file isn't what it was."""
        position = self._file.tell()
        data = self._file.read(count)
        fresh = data[self._seen - position :] if position <= self._seen else b""
        self._digest.update(fresh)
        self._seen += len(fresh)
        ended = self._seen >= self._size or not data
        if ended and (self._seen != self._size or self._digest.hexdigest() != self._sha256):
            raise StoreError(f"{self._key}: the file changed while it was uploaded; nothing was stored, try again")
        if self._progress is not None and fresh:
            self._progress(self._seen, self._size)
        return data
