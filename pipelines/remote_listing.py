"""What lies in a cloud store under a prefix, with what changes when an object does.

Data in: a store opened at its bucket's top, and a prefix of names. Data out: one `Entry` per object up to the next
slash, and one whose name ends in a slash for all that lies deeper. Invariants: `version` is another one after every
write, also of the same bytes; names are told as they are, also those no blob store would take as a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from serving.blobstore import BlobStore


@dataclass(frozen=True)
class Entry:
    """An object: its whole name in the bucket, its size, and what names this version of it."""

    key: str
    size_bytes: int
    version: str


def entries(store: BlobStore, prefix: str) -> list[Entry]:
    """All objects and deeper "folders" whose names begin with the prefix, in order of name; StoreError."""
    return sorted(LISTINGS[type(store).__name__](store, prefix), key=lambda entry: entry.key)


def _s3(store: Any, prefix: str) -> Iterator[Entry]:
    from serving.stores.s3_errors import explain

    location = store._location
    with explain(prefix or "list", "s3:ListBucket", location, store._patience):
        pages = store._client.get_paginator("list_objects_v2").paginate(
            Bucket=location.bucket, Prefix=prefix, Delimiter="/"
        )
        for page in pages:
            for found in page.get("Contents", ()):
                # the etag alone is the content's: it comes back when the content does
                version = f"{found['ETag']} {found['LastModified'].isoformat()}"
                yield Entry(found["Key"], found["Size"], version)
            yield from (Entry(deeper["Prefix"], 0, "") for deeper in page.get("CommonPrefixes", ()))


def _gcs(store: Any, prefix: str) -> Iterator[Entry]:
    from serving.stores.gcs_errors import explain

    location = store._location
    with explain(prefix or "list", "storage.objects.list", location, store._patience):
        fields = "items(name,size,generation),prefixes,nextPageToken"
        found = store._client.list_blobs(store._bucket, prefix=prefix, delimiter="/", fields=fields, **store._tries())
        for blob in found:
            yield Entry(blob.name, blob.size, str(blob.generation))
        yield from (Entry(deeper, 0, "") for deeper in found.prefixes)


def _azure(store: Any, prefix: str) -> Iterator[Entry]:
    from azure.storage.blob import BlobPrefix

    from serving.stores.azure import decode, encode
    from serving.stores.azure_errors import explain

    def told(name: str) -> str:
        """As the store takes it; a name it has no key for stays as it is."""
        return decode(name) if encode(decode(name)) == name else name

    with explain(prefix or "list", store._location, store._patience):
        for found in store._container.walk_blobs(name_starts_with=encode(prefix) or None, delimiter="/"):
            if isinstance(found, BlobPrefix):
                yield Entry(told(found.name), 0, "")
            else:
                yield Entry(told(found.name), found.size, found.etag)


LISTINGS: dict[str, Callable[[Any, str], Iterator[Entry]]] = {"S3Store": _s3, "GcsStore": _gcs, "AzureStore": _azure}
