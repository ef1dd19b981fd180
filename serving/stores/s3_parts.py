"""A multi-part upload to S3: all of it becomes visible at once, or nothing does.

Data in: a client, a seekable source of known size and sha256, the object's metadata and the condition under which it
may appear. Data out: the object's etag. Errors are botocore's, and StoreError for a source that changed meanwhile.
Invariants: every part travels with its SHA-256, which S3 checks; after an error the parts are removed, and where that
fails too the error says so in a note.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from serving.blobstore import Progress
from serving.errors import StoreError
from serving.stores import common
from serving.stores.s3_errors import said_by

PART_BYTES = 8 << 20  # what is longer is sent in parts of at least this size; S3 wants 5 MiB or more
MAX_PARTS = 10_000


@dataclass(frozen=True)
class Source:
    """A file or buffer, read from its beginning each time it is sent; `sha256` in hexadecimal digits."""

    stream: BinaryIO
    size: int
    sha256: str


def send_parts(
    client: Any,
    where: Mapping[str, str],
    source: Source,
    metadata: Mapping[str, str],
    condition: Mapping[str, str],
    progress: Progress | None = None,
) -> str:
    """Upload to bucket and name `where`; `condition` is IfNoneMatch, IfMatch or empty."""
    from botocore.exceptions import BotoCoreError, ClientError

    created = client.create_multipart_upload(**where, Metadata=metadata, ChecksumAlgorithm="SHA256")
    upload = {**where, "UploadId": created["UploadId"]}
    try:
        parts = _parts(client, upload, source, progress)
        answer = client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
    except BaseException as error:
        try:
            client.abort_multipart_upload(**upload)
        except (BotoCoreError, ClientError) as failure:
            if said_by(failure).code != "NoSuchUpload":  # completed by an earlier try, or removed already
                error.add_note(f"parts of upload {upload['UploadId']} are left: {common.without_urls(failure)}")
        raise
    etag: str = answer["ETag"]
    return etag


def _parts(
    client: Any, upload: Mapping[str, str], source: Source, progress: Progress | None
) -> list[dict[str, str | int]]:
    source.stream.seek(0)
    sent, done = hashlib.sha256(), 0
    parts: list[dict[str, str | int]] = []
    while piece := source.stream.read(max(PART_BYTES, -(-source.size // MAX_PARTS))):
        sent.update(piece)
        checksum = checksum_of(piece)
        number = len(parts) + 1
        answer = client.upload_part(**upload, PartNumber=number, Body=piece, ChecksumSHA256=checksum)
        parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum})
        done += len(piece)
        if progress is not None:
            progress(done, source.size)
    if sent.hexdigest() != source.sha256:
        raise StoreError(f"{upload['Key']}: the file changed while it was uploaded; nothing was stored, try again")
    return parts


def checksum_of(data: bytes) -> str:
    """What S3 compares with the bytes it got."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode("ascii")
