"""Vendor data in S3, GCS or Azure: fetched into a cache whose folders are named by their content, then read from there.

Data in: `s3://bucket/name`, `gs://...`, `az://container/name`: one file, or the "folder" of that name. Data out: the
path of the file, or of a folder with the same names, below `artifacts/remote/` (STRIKEFORGE_REMOTE_CACHE names another
place). In it:

    <sha256 of names and contents>/NAME    what stages read; made by one rename, so it is whole or not there
    .blobs/<sha256>                        the files themselves; those folders hold hard links to them
    .known/<sha256 of URL>.json            version, size and sha256 of every object as it was fetched
    .parts/                                downloads that broke off; the next one continues them

Invariants: equal content has one name, wherever it came from; every file's sha256 is checked at every use, so what was
damaged here is fetched again, as is what has another version in the store, and nothing else; the store's listing is the
same before and after, so no object is a mixture of two versions; an object's name can't lead out of the cache. The
same rules as for a local folder hold (pipelines/readers.py): README* and hidden files aren't data, anything else that
isn't is refused, by name, before a byte is fetched. The cache may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.blobstore import BACK_ENDS, BlobStore, Entry, open_store
from serving.canonical import canonical_json, sha256_hex
from serving.disk import folder_lock, replace_file
from serving.errors import DataError, StoreError
from serving.stores.common import terminal_progress

CACHE = Path("artifacts/remote")
CACHE_VARIABLE = "STRIKEFORGE_REMOTE_CACHE"
LISTINGS = 3  # how often an object may be replaced while it is fetched
MAX_NAME_BYTES = 255

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """An object as it was when it was fetched."""

    version: str
    size_bytes: int
    sha256: str


def is_remote(path: str | Path) -> bool:
    """Whether this is a URL, of whatever kind, and no local path."""
    return "://" in str(path)


def local(path: str | Path, *, suffixes: Sequence[str] | None = None, ignore: Sequence[str | Path] = ()) -> Path:
    """The path itself, or where what a URL names lies after it was fetched.

    Files of a folder must end in one of the `suffixes`, if given; `ignore` names objects in it to leave out.
    Raises DataError (nothing there, or nothing usable), StoreError (no access, no answer).
    """
    return fetch(str(path), suffixes=suffixes, ignore=ignore) if is_remote(path) else Path(path)


def fetch(
    url: str, *, suffixes: Sequence[str] | None = None, ignore: Sequence[str | Path] = (), cache: Path | None = None
) -> Path:
    """The local file or folder with the content of a URL; see `local`."""
    store, name = _open(url)
    cache = cache or Path(os.environ.get(CACHE_VARIABLE) or CACHE)
    wanted = _Wanted(url.rstrip("/"), store, name, suffixes, tuple(str(path).rstrip("/") for path in ignore))
    try:
        with folder_lock(_made(cache), ".lock"):
            return _fetch(wanted, cache)
    except StoreError as error:  # a store's names the object only
        raise error if wanted.url in str(error) else type(error)(f"{wanted.url}: {error}") from error
    except OSError as error:
        raise StoreError(
            f"{wanted.url}: can't be kept in {cache}: {error.strerror or error}; make room, or name another folder in "
            f"{CACHE_VARIABLE}"
        ) from error


def _open(url: str) -> tuple[BlobStore, str]:
    """The store of the bucket alone (data may lie deeper than a store may), and the name in it."""
    scheme, _, rest = url.partition("://")
    if scheme not in BACK_ENDS:
        known = ", ".join(f"{name}://" for name in BACK_ENDS)
        raise DataError(f"data in {scheme}:// can't be read; give a file, a folder, or a URL that begins with {known}")
    bucket, _, name = rest.partition("/")
    store = open_store(f"{scheme}://{bucket}")
    if "?" in name or "#" in name:
        raise DataError(
            f"{scheme}://{bucket}: the URL of the data has a query or fragment; give the name alone, credentials by "
            "environment (docs/storage.md)"
        )
    return store, name.rstrip("/")


@dataclass(frozen=True)
class _Wanted:
    """What is asked for: an object `name`, or all that lies directly in the folder `name`."""

    url: str
    store: BlobStore
    name: str
    suffixes: Sequence[str] | None
    ignore: tuple[str, ...]

    def listed(self) -> dict[str, Entry]:
        """Objects by the names their files get; DataError for what can't be read."""
        beginning = self.store.entries(self.name, shallow=True) if self.name else []
        if whole := [entry for entry in beginning if entry.key == self.name]:
            name = self.name.rpartition("/")[2]
            if problem := self._problem(name):
                raise DataError(f"{self.url}: nothing was fetched: {problem}")
            return {name: whole[0]}
        folder = f"{self.name}/" if self.name else ""
        found, problems = {}, []
        for entry in self.store.entries(folder, shallow=True):
            name = entry.key.removeprefix(folder)
            hidden = name.startswith(("README", ".")) and name.rstrip("/") not in (".", "..")
            if not name or hidden or f"{self.url}/{name}" in self.ignore:
                continue
            if problem := self._problem(name):
                problems.append(problem)
            else:
                found[name] = entry
        if problems:
            lines = [f"  - {problem}" for problem in sorted(set(problems))]
            raise DataError("\n".join([f"{self.url}: nothing was fetched:", *lines]))
        if not found:
            raise DataError(f"{self.url}: there is no such object, and no data file in a folder of that name")
        return found

    def _problem(self, name: str) -> str | None:
        top, slash, _ = name.partition("/")
        if slash:
            return f"{top}/: a folder in the folder; name it in data.path, or move it away"
        if "\\" in name or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
            return f"{name!r}: can't be the name of a file; rename it"
        if self.suffixes is not None and not name.endswith(tuple(self.suffixes)):
            return f"{name}: not a data file ({', '.join(self.suffixes)}); move it out of the folder"
        return None


def _fetch(wanted: _Wanted, cache: Path) -> Path:
    record = _made(cache / ".known") / f"{sha256_hex(wanted.url.encode())}.json"
    known, fetched_bytes = _read_record(record), 0
    checked: set[str] = set()  # sha256 of files that were read in this run
    listed = wanted.listed()
    for _ in range(LISTINGS):
        stale = [name for name, entry in sorted(listed.items()) if not _is_here(known.get(name), entry, cache, checked)]
        if not stale:
            there = {name: known[name] for name in listed}
            folder = _assemble(there, cache)
            total = sum(one.size_bytes for one in there.values())
            logger.info("%s: %d bytes, %d of them fetched now: %s", wanted.url, total, fetched_bytes, folder)
            return folder / next(iter(there)) if [entry.key for entry in listed.values()] == [wanted.name] else folder
        for name in stale:
            _download(wanted, listed[name], cache)
        before, listed = listed, wanted.listed()
        for name in stale:
            if listed.get(name) == before[name]:
                known[name] = _keep(wanted, before[name], cache)
                checked.add(known[name].sha256)
                fetched_bytes += known[name].size_bytes
        known = {name: one for name, one in known.items() if name in listed}
        _write_record(record, wanted.url, known)
    raise StoreError(
        f"{wanted.url}: was written to again and again while it was fetched; run again when it is complete"
    )


def _is_here(known: Known | None, entry: Entry, cache: Path, checked: set[str]) -> bool:
    """Whether the object as it is now lies in the cache, undamaged."""
    if known is None or (known.version, known.size_bytes) != (entry.version, entry.size_bytes):
        return False
    path = cache / ".blobs" / known.sha256
    if not path.exists():
        return False
    if known.sha256 not in checked and _file_sha256(path) != known.sha256:
        logger.warning("%s was damaged in the cache; it is fetched again", path)
        path.unlink()
        return False
    checked.add(known.sha256)
    return True


def _part(wanted: _Wanted, entry: Entry, cache: Path) -> Path:
    """Where this version of an object is put together; a version doesn't come again, so nothing else gets into it."""
    identity = canonical_json([repr(wanted.store), entry.key, entry.version, entry.size_bytes])
    return _made(cache / ".parts") / sha256_hex(identity)


def _download(wanted: _Wanted, entry: Entry, cache: Path) -> None:
    """Fetch one object, from where an earlier try of the same version broke off."""
    part = _part(wanted, entry, cache)
    done = part.stat().st_size if part.exists() else 0
    show = terminal_progress(entry.key, entry.size_bytes)
    with part.open("ab") as file:
        for chunk in wanted.store.stream(entry.key, start=done) if done < entry.size_bytes else ():
            file.write(chunk)
            done += len(chunk)
            if show is not None:
                show(done, entry.size_bytes)
        file.flush()
        os.fsync(file.fileno())


def _keep(wanted: _Wanted, entry: Entry, cache: Path) -> Known:
    """A complete download under its hash; the listing has said that it is of one version."""
    part = _part(wanted, entry, cache)
    size_bytes = part.stat().st_size
    if size_bytes != entry.size_bytes:
        part.unlink()
        raise StoreError(
            f"{wanted.url}: {entry.key} gave {size_bytes} bytes of the {entry.size_bytes} listed; run again"
        )
    digest = _file_sha256(part)
    part.chmod(0o444)
    part.replace(_made(cache / ".blobs") / digest)
    return Known(entry.version, size_bytes, digest)


def _assemble(files: dict[str, Known], cache: Path) -> Path:
    """The folder of these files, named by names and contents; made anew unless it holds exactly them."""
    content = {name: one.sha256 for name, one in sorted(files.items())}
    folder = cache / sha256_hex(canonical_json(content))
    blobs = {name: cache / ".blobs" / digest for name, digest in content.items()}
    if folder.is_dir():
        there = {path.name: path for path in folder.iterdir()}
        if there.keys() == blobs.keys() and all(there[name].samefile(blob) for name, blob in blobs.items()):
            return folder
        shutil.rmtree(folder)
    for left in cache.glob(".new-*"):  # by a killed process
        shutil.rmtree(left)
    new = cache / f".new-{secrets.token_hex(8)}"
    new.mkdir()
    for name, blob in blobs.items():
        os.link(blob, new / name)
    new.replace(folder)
    return folder


def _read_record(path: Path) -> dict[str, Known]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: Known(**one) for name, one in content["objects"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s can't be read (%s); everything is fetched again", path, error)
        return {}


def _write_record(path: Path, url: str, known: dict[str, Known]) -> None:
    text = json.dumps({"url": url, "objects": {name: asdict(one) for name, one in known.items()}}, indent=1)
    replace_file(path, f"{text}\n".encode())


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
