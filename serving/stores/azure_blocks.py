"""Writing an Azure block blob: all of it becomes visible at once, or nothing does.

Data in: a blob's client, a seekable source of known size and sha256, and the condition under which it may appear. Data
out: the new etag. Errors are the SDK's, and StoreError for a source that changed meanwhile.
Invariants: every body travels with its MD5, which Azure checks. Block ids are unique, since all writers of a blob share
its uncommitted blocks: ids that only count, as the SDK's own uploads have them, would let one writer commit another's
content. A commit sweeps all other uncommitted blocks of the blob away (then its code is InvalidBlockList); blocks that
a killed writer left are gone after a week.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from serving.blobstore import Progress
from serving.errors import StoreError
from serving.stores import common

BLOCK_BYTES = 4 << 20  # what is longer is sent in blocks of at least this size
MAX_BLOCKS = 50_000
CONTENT_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class Source:
    """A file or buffer, read from its beginning each time it is sent; `sha256` in hexadecimal digits."""

    stream: BinaryIO
    size: int
    sha256: str


def send(
    blob: Any, key: str, source: Source, chain: str, condition: Mapping[str, Any], progress: Progress | None
) -> str:
    """Write the source with `chain` in its metadata; `condition` holds the SDK's etag and match_condition."""
    from azure.storage.blob import ContentSettings

    metadata = {common.WRITERS: chain, common.SHA256: source.sha256}
    source.stream.seek(0)
    if source.size <= BLOCK_BYTES:
        data = source.stream.read(BLOCK_BYTES + 1)
        _require_unchanged(key, source, hashlib.sha256(data))
        answer = blob.upload_blob(
            data,
            length=len(data),
            metadata=metadata,
            content_settings=ContentSettings(content_type=CONTENT_TYPE),
            overwrite=True,
            validate_content=True,
            **condition,
        )
        if progress is not None and data:
            progress(len(data), source.size)
    else:
        ids, md5 = _stage(blob, key, source, progress)
        answer = blob.commit_block_list(
            ids,
            metadata=metadata,
            content_settings=ContentSettings(content_type=CONTENT_TYPE, content_md5=bytearray(md5)),
            validate_content=True,
            **condition,
        )
    etag: str = answer["etag"]
    return etag


def _stage(blob: Any, key: str, source: Source, progress: Progress | None) -> tuple[list[Any], bytes]:
    """Send all blocks; their list, to be committed, and the content's MD5."""
    from azure.storage.blob import BlobBlock

    whole, md5, done = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    writer = secrets.token_hex(8)
    blocks: list[Any] = []
    while piece := source.stream.read(max(BLOCK_BYTES, -(-source.size // MAX_BLOCKS))):
        whole.update(piece)
        md5.update(piece)
        block = BlobBlock(f"{writer}-{len(blocks):05d}")
        blob.stage_block(block.id, piece, length=len(piece), validate_content=True)
        blocks.append(block)
        done += len(piece)
        if progress is not None:
            progress(min(done, source.size), source.size)
    _require_unchanged(key, source, whole)
    return blocks, md5.digest()


def _require_unchanged(key: str, source: Source, found: Any) -> None:
    if found.hexdigest() != source.sha256:
        raise StoreError(f"{key}: the file changed while it was uploaded; nothing was stored, try again")
