"""What the cloud back ends share: names of objects, patience, writer ids, messages without secrets, progress.

Each of serving/stores/{s3,gcs,azure}.py has `open(url) -> BlobStore` and imports its SDK inside functions, so that a
host without it can import every module.

How a retried write knows its own success. A conditional write whose answer was lost is sent again by the SDK, and
refused, because its own first try changed the object. So every write carries a random writer id in the object's
metadata (`WRITERS`), behind the ids of the versions it replaced (`chain_after`); a refused writer that finds its id
there had succeeded, even if others have replaced its version since. Etags handed to callers hold the store's own etag
and that chain (`join_etag`), so `put_if_match` knows which versions it replaces. The content's sha256 lies beside it
(`SHA256`) and is checked by every whole read.

Environment, for all clouds:
    STRIKEFORGE_STORE_TIMEOUT_SECONDS   longest wait for a connection, and for the next byte of an answer (default 30)
    STRIKEFORGE_STORE_ATTEMPTS          tries of one request, and of one download between two new chunks (default 5)
"""

from __future__ import annotations

import math
import os
import random
import re
import secrets
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

from serving.blobstore import Entries, Entry, Progress, check_key, is_key
from serving.errors import StoreError

WRITERS = "strikeforgewriters"  # metadata names; Azure wants identifiers, and gateways drop underscores
SHA256 = "strikeforgesha256"
CHAIN_LENGTH = 64  # writer ids kept (S3 takes 2 KB): so many swaps may happen while one writer waits for an answer
SUPERSEDED = '"superseded"'  # no store's etag, and no generation
MAX_PREFIX_BYTES = 120  # with the longest key it stays below the 1024 bytes S3 and GCS allow
SHOWN_FROM_BYTES = 32 << 20  # transfers from this size on show their progress on a terminal
TIMEOUT_VARIABLE = "STRIKEFORGE_STORE_TIMEOUT_SECONDS"
ATTEMPTS_VARIABLE = "STRIKEFORGE_STORE_ATTEMPTS"


@dataclass(frozen=True)
class Location:
    """A bucket or container and the prefix of every object's name, without slashes at its ends."""

    scheme: str
    bucket: str
    prefix: str

    def name_of(self, key: str) -> str:
        """The object's name of a key; StoreError for a bad key."""
        return self._prefixed(check_key(key))

    def names_under(self, key_prefix: str) -> str:
        """The prefix of the names of all keys with this (checked) prefix."""
        return self._prefixed(key_prefix)

    def entries_of(self, objects: Iterable[Entry], *, foreign: bool = False) -> Entries:
        """Sorted, under their keys; foreign names (such as a console's folder markers) are left out unless wanted."""
        start = len(self._prefixed(""))
        entries = (replace(one, key=one.key[start:]) for one in objects)
        return sorted((entry for entry in entries if foreign or is_key(entry.key)), key=lambda entry: entry.key)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    def _prefixed(self, text: str) -> str:
        return f"{self.prefix}/{text}" if self.prefix else text


def parse_location(url: str) -> Location:
    """Of `scheme://bucket/prefix`; nothing is unquoted. StoreError, which never repeats what may be a secret."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.removesuffix("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        problem = "credentials belong into the environment" if "@" in bucket else "as in " + f"{scheme}://bucket/prefix"
        raise StoreError(f"{scheme}:// URL: its bucket isn't a plain name; {problem}")
    if "?" in prefix or "#" in prefix:
        raise StoreError(
            f"{scheme}://{bucket}: has a query or fragment; endpoint and credentials are the environment's"
        )
    if prefix:
        check_key(prefix)
    if len(prefix.encode()) > MAX_PREFIX_BYTES:
        raise StoreError(f"{scheme}://{bucket}: its prefix is longer than {MAX_PREFIX_BYTES} bytes; take a shorter one")
    return Location(scheme, bucket, prefix)


@dataclass(frozen=True)
class Patience:
    """How long and how often a request is tried."""

    timeout_seconds: float = 30.0
    attempts: int = 5

    def pause_seconds(self, attempt: int) -> float:
        """A random wait (full jitter) after the 1st, 2nd, ... failure in a row."""
        return random.uniform(0.0, min(20.0, 0.25 * 2.0**attempt))


def patience() -> Patience:
    """From the environment; StoreError for unusable values."""
    timeout, attempts = os.environ.get(TIMEOUT_VARIABLE, "30"), os.environ.get(ATTEMPTS_VARIABLE, "5")
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds <= 3600.0:
        raise StoreError(f"{TIMEOUT_VARIABLE}={timeout!r}: give seconds above 0, at most 3600")
    if not (attempts.isascii() and attempts.isdigit() and 1 <= int(attempts) <= 100):
        raise StoreError(f"{ATTEMPTS_VARIABLE}={attempts!r}: give a whole number from 1 to 100")
    return Patience(seconds, int(attempts))


def new_writer() -> str:
    """The id of one write, however often it is sent."""
    return secrets.token_hex(8)


def chain_after(writer: str, replaced: Iterable[str] = ()) -> str:
    """The metadata's text: the ids of the latest versions, the newest last."""
    return ",".join([*replaced, writer][-CHAIN_LENGTH:])


def writers_of(chain: str | None) -> tuple[str, ...]:
    """The ids in a metadata's text; none where somebody else wrote the object."""
    return tuple(one for one in (chain or "").split(",") if re.fullmatch(r"[0-9a-f]{16}", one))


def join_etag(native: str, chain: str | None) -> str:
    """The etag a caller sees; a native etag holds no space."""
    return f"{native} {chain or ''}"


def split_etag(etag: str) -> tuple[str, tuple[str, ...]]:
    """The store's own etag, and the ids of the version it names."""
    native, _, chain = etag.partition(" ")
    return native, writers_of(chain)


def earlier_success(writer: str, native: str, chain: str | None) -> str | None:
    """After a refused condition, from the object as it is now: the etag of our version, None if we wrote none.

    A version replaced since gets an etag that nothing has any more.
    """
    writers = writers_of(chain)
    if writer not in writers:
        return None
    return join_etag(native if writers[-1] == writer else SUPERSEDED, chain)


def too_long(key: str, max_bytes: int) -> StoreError:
    """The error of a blob longer than allowed."""
    return StoreError(f"{key}: longer than the {max_bytes} bytes allowed")


def require_sha256(key: str, found: str, recorded: str | None) -> None:
    """StoreError unless content has the sha256 recorded with it; foreign objects have none."""
    if recorded is not None and found != recorded:
        raise StoreError(
            f"{key}: arrived with sha256 {found[:12]}..., was written with {recorded[:12]}...: damaged on the way or "
            "in the store; try again, and if it stays so write it anew"
        )


def without_urls(text: object) -> str:
    """An SDK's message, without URLs, which may hold secrets, in at most 300 signs."""
    return " ".join(re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+", "(URL)", str(text)).split())[:300]


def terminal_progress(key: str, size: int) -> Progress | None:
    """A line on stderr rewritten at each whole percent, for long transfers on a terminal; else None."""
    if size < SHOWN_FROM_BYTES or not sys.stderr.isatty():
        return None
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // total
        if percent > shown:
            shown = percent
            end = "\n" if done >= total else ""
            sys.stderr.write(f"\r{key}: {percent:3d} % of {total / 2**20:.0f} MiB{end}")
            sys.stderr.flush()

    return show
