"""`strikeforge-host pull`: brings a channel's release to this host, verified, whole, resumable.

Data in: a store, the root file to trust. Data out: a release under DIR (serving/installed.py) and `current` naming it.
Order: signed metadata, release file, provenance, gate report, manifest, the bundle's other files, the engine packs of
the targets asked for (`pack.json` of each, then its files); then all of it is put
together privately, verified once more from disk, synced, renamed, and `current` replaced. Invariants: nothing is used
that the channel's signatures don't cover by length and sha256; the installed release number never goes down and never
changes its content; whatever is refused, and wherever the process is killed, what was current stays current and whole.
Refusals are TrustErrors naming the file and the reason; a store or disk that fails is a StoreError.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.blobstore import BlobStore
from serving.bundle import bundle_key, load_bundle
from serving.canonical import canonical_json, sha256_hex
from serving.disk import sync_folder
from serving.downloads import Content, fetch
from serving.engine_pack import MAX_PACK_JSON_BYTES, PACK, load_pack, packed_key
from serving.errors import BlobMissingError, BundleError, StoreError, TrustError
from serving.installed import (
    BUNDLE,
    PACKS,
    RELEASE_JSON,
    TRUST,
    UNSIGNED_JSON,
    Installed,
    Place,
    folder_name,
    locked,
    parse_unsigned,
    read_installed,
    remove,
)
from serving.ledger import Ledger, fold
from serving.manifest import MANIFEST, MAX_FILE_BYTES, MAX_MANIFEST_BYTES
from serving.pull_checks import (
    NATIVE_TARGETS,
    check_statement,
    chosen_packs,
    manifest_of_release,
    pack_of_release,
)
from serving.release import (
    MAX_RELEASE_BYTES,
    MAX_REPORT_BYTES,
    MAX_STATEMENT_BYTES,
    ReleaseFile,
    content_target,
    parse_release,
    provenance_key,
    release_target,
    report_key,
)
from serving.released import existing_store, write_lines
from serving.trust import SignedChannel, is_signed, signed_channel

PROVENANCE_JSON, GATE_REPORT_JSON = "provenance.json", "gate-report.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNSIGNED_WARNING = "WARNING: {store} is unsigned: nothing vouches for what is pulled. For development only.\n"

Files = dict[str, Path | bytes]


@dataclass(frozen=True)
class Pulled:
    """What a pull did; `before` is the release that was current, None on the first pull."""

    installed: Installed
    before: int | None
    changed: bool
    removed: tuple[str, ...]


def run_pull(arguments: argparse.Namespace) -> int:
    """The command."""
    store = existing_store(arguments.store)
    if not is_signed(store):
        if not arguments.development:
            raise TrustError(
                f"store {arguments.store}: is unsigned (there is no channel/); have its channel signed, or say "
                "--development to try out an unsigned store"
            )
        sys.stderr.write(UNSIGNED_WARNING.format(store=arguments.store))
        pulled = pull_unsigned(
            store,
            directory=arguments.to,
            model=arguments.model,
            channel=arguments.channel,
            keep=arguments.keep,
            targets=tuple(arguments.target or NATIVE_TARGETS),
        )
    else:
        if arguments.root is None:
            raise TrustError(f"store {arguments.store}: is signed; --root must name the root file to trust")
        pulled = pull(
            store, arguments.root, directory=arguments.to, model=arguments.model, channel=arguments.channel,
            keep=arguments.keep, development=arguments.development, targets=tuple(arguments.target or NATIVE_TARGETS),
        )  # fmt: skip
    done = pulled.installed
    was = f", was release {pulled.before}" if pulled.before not in (None, done.release) else ""
    write_lines([
        f"{done.model} {done.channel}: release {done.release}, version {done.version}, bundle {done.bundle}",
        f"{'installed' if pulled.changed else 'is installed already'} in {done.folder}{was}; "
        f"expires {done.expires_at or 'never'}",
        f"engine packs: {', '.join(done.installed_targets()) or 'none'}",
        *(f"removed {name}" for name in pulled.removed),
    ])  # fmt: skip
    return 0


def pull(
    store: BlobStore,
    root_file: Path,
    *,
    directory: Path,
    model: str,
    channel: str = "champion",
    keep: int = 3,
    development: bool = False,
    targets: Sequence[str] = NATIVE_TARGETS,
) -> Pulled:
    """Install what the signed channel releases; TrustError and nothing changed if any of it can't be trusted.

    `targets`: whose engine packs come along (`chosen_packs`).
    """
    place = Place(directory, model, channel)
    with _pulling(place):
        place.prepare()
        trust = place.directory / TRUST
        with signed_channel(store, root_file, trust, model=model, development=development) as signed:
            content, custom = signed.release(release_target(model, channel), max_bytes=MAX_RELEASE_BYTES)
            raw = fetch(store, content, place.partial).read_bytes()
            release = parse_release(raw)
            _check_release(release, custom, place)
            _check_installed(place, release.release, raw, signed=True)

            packs = chosen_packs(release.packs, targets)

            def files() -> Files:
                return _signed_files(store, signed, release, packs, place) | {RELEASE_JSON: raw}

            return _finish(place, release.release, release.bundle, raw, packs, files, keep)


def pull_unsigned(
    store: BlobStore,
    *,
    directory: Path,
    model: str,
    channel: str,
    keep: int = 3,
    targets: Sequence[str] = NATIVE_TARGETS,
) -> Pulled:
    """Install what the ledger's champion is, on the ledger's word alone; for development."""
    place = Place(directory, model, channel)
    with _pulling(place):
        if (place.directory / TRUST).exists():
            raise TrustError(
                f"{place.directory}: holds releases of a signed store; pull an unsigned one into another folder"
            )
        place.prepare()
        events = Ledger(store, model).events()
        state = fold(model, events)
        version = state.resolve(channel)
        champion = state.champion
        assert champion is not None  # resolve refuses a channel that names nothing
        decided = events[champion.seq - 1].details
        values = {
            "model": model, "channel": channel, "release": champion.number, "version": version.version,
            "bundle": version.bundle, "expires_at": decided.get("expires_at"),
            **({"packs": decided["packs"]} if "packs" in decided else {}),
        }  # fmt: skip
        raw = canonical_json(values)
        parse_unsigned(raw, events[champion.seq - 1].key)
        _check_installed(place, champion.number, raw, signed=False)

        packs = chosen_packs(decided.get("packs", {}), targets)

        def files() -> Files:
            return _unsigned_files(store, version.bundle, packs, place) | {UNSIGNED_JSON: raw}

        return _finish(place, champion.number, version.bundle, raw, packs, files, keep)


def _check_release(release: ReleaseFile, custom: object, place: Place) -> None:
    """What the signatures can't say: that it is the release asked for, and may be used now."""
    target = release_target(release.model, release.channel)
    asked = (place.home.parent.name, place.home.name)
    if (release.model, release.channel) != asked:
        raise TrustError(f"{target}: a release of {release.model} {release.channel}, asked for was {' '.join(asked)}")
    if custom != release.custom():
        raise TrustError(f"{target}: the signed metadata says {custom}, the release file {release.custom()}")
    if release.expired(datetime.now(UTC)):
        raise TrustError(f"{target}: release {release.release} expired at {release.expires_at}; promote a new one")
    if release.canary_percent != 100:
        raise TrustError(
            f"{target}: release {release.release} is meant for {release.canary_percent} % of the hosts; this "
            "version of strikeforge-host takes only releases meant for all: upgrade it"
        )


def _check_installed(place: Place, number: int, raw: bytes, *, signed: bool) -> None:
    """Release numbers never go down, a number never changes its content, signed and unsigned don't mix."""
    floor = place.floor()
    if number < floor:
        raise TrustError(
            f"{place.home}: the store offers release {number}, release {floor} is installed; an older release played "
            "back, or the ledger was cut (a rollback gets a new, higher number)"
        )
    for folder in place.of_number(floor):
        if (folder / UNSIGNED_JSON).exists() == signed:
            raise TrustError(f"{place.directory}: signed and unsigned releases don't share a folder; pull into another")
        found = next((folder / name for name in (RELEASE_JSON, UNSIGNED_JSON) if (folder / name).exists()), None)
        if number == floor and found is not None and found.read_bytes() != raw:
            raise TrustError(
                f"{found}: release {number} is installed with other content than the store's release {number}; one of "
                "them was forged or damaged, a release number is never used twice"
            )


def _signed_files(
    store: BlobStore, signed: SignedChannel, release: ReleaseFile, packs: Mapping[str, str], place: Place
) -> Files:
    """Everything a signed release names, on disk and verified; cheap checks come before large downloads."""
    model = release.model

    def named(key: str, sha256: str, max_bytes: int) -> Content:
        content = signed.content(content_target(model, key), max_bytes=max_bytes)
        if content.sha256 != sha256:
            raise TrustError(f"{content.target}: signed with sha256 {content.sha256}, but named by {sha256}")
        return content

    provenance = named(provenance_key(release.provenance), release.provenance, MAX_STATEMENT_BYTES)
    gate_report = named(report_key(release.gate_report), release.gate_report, MAX_REPORT_BYTES)
    manifest_content = named(bundle_key(release.bundle, MANIFEST), release.bundle, MAX_MANIFEST_BYTES)
    manifest_file = fetch(store, manifest_content, place.partial)
    manifest = manifest_of_release(manifest_file.read_bytes(), model)
    contents = {}
    for name, entry in manifest.files.items():
        content = named(bundle_key(release.bundle, name), entry.sha256, MAX_FILE_BYTES)
        if content.length != entry.size:
            raise TrustError(f"{content.target}: {content.length} bytes were signed, {entry.size} in the manifest")
        contents[name] = content
    indices = {target: named(packed_key(sha256, PACK), sha256, MAX_PACK_JSON_BYTES) for target, sha256 in packs.items()}
    packed: dict[str, Content] = {}
    for target, index in indices.items():
        pack = pack_of_release(fetch(store, index, place.partial).read_bytes(), target, release.bundle)
        packed[f"{PACKS}/{target}/{PACK}"] = index
        for name, entry in pack.files.items():
            content = named(packed_key(index.sha256, name), entry.sha256, MAX_FILE_BYTES)
            if content.length != entry.size:
                raise TrustError(f"{content.target}: {content.length} bytes were signed, {entry.size} in {PACK}")
            packed[f"{PACKS}/{target}/{name}"] = content
    wanted = (provenance, gate_report, manifest_content, *contents.values(), *packed.values())
    place.drop_partials({item.sha256 for item in wanted})
    statement = fetch(store, provenance, place.partial)
    check_statement(statement.read_bytes(), release.bundle, provenance.target)
    return {
        PROVENANCE_JSON: statement,
        GATE_REPORT_JSON: fetch(store, gate_report, place.partial),
        f"{BUNDLE}/{MANIFEST}": manifest_file,
        **{f"{BUNDLE}/{name}": fetch(store, content, place.partial) for name, content in contents.items()},
        **{name: fetch(store, content, place.partial) for name, content in packed.items()},
    }


def _unsigned_files(store: BlobStore, bundle: str, packs: Mapping[str, str], place: Place) -> Files:
    raw = _named_by_the_ledger(store, bundle_key(bundle, MANIFEST), bundle, MAX_MANIFEST_BYTES)
    manifest = manifest_of_release(raw, place.home.parent.name)
    files: Files = {f"{BUNDLE}/{MANIFEST}": raw}
    contents = {}
    for name, entry in manifest.files.items():
        key = bundle_key(bundle, name)
        contents[f"{BUNDLE}/{name}"] = Content(key, key, entry.size, entry.sha256)
    for target, sha256 in packs.items():
        index = _named_by_the_ledger(store, packed_key(sha256, PACK), sha256, MAX_PACK_JSON_BYTES)
        files[f"{PACKS}/{target}/{PACK}"] = index
        for name, entry in pack_of_release(index, target, bundle).files.items():
            key = packed_key(sha256, name)
            contents[f"{PACKS}/{target}/{name}"] = Content(key, key, entry.size, entry.sha256)
    place.drop_partials({content.sha256 for content in contents.values()})
    return files | {name: fetch(store, content, place.partial) for name, content in contents.items()}


def _named_by_the_ledger(store: BlobStore, key: str, sha256: str, max_bytes: int) -> bytes:
    try:
        raw = store.get(key, max_bytes=max_bytes)
    except BlobMissingError as error:
        raise TrustError(f"{key}: is missing in the store, though the ledger names it") from error
    if sha256_hex(raw) != sha256:
        raise TrustError(f"{key}: has sha256 {sha256_hex(raw)}, the ledger names {sha256}")
    return raw


def _finish(
    place: Place, number: int, bundle: str, raw: bytes, packs: Mapping[str, str], files: Callable[[], Files], keep: int
) -> Pulled:
    """Put the release together unless it is there and intact; make it current; clear away what is old."""
    name = folder_name(number, bundle)
    target = place.releases / name
    old = place.linked_name()
    was_current = old == name
    whole = _intact(target, raw, packs)
    if not whole:
        staging = place.stage(files())
        try:
            staged = load_bundle(staging / BUNDLE, expected_sha256=bundle, model=place.home.parent.name)
        except BundleError as error:
            raise TrustError(f"the bundle is refused: {error}") from error
        for name_of_pack, sha256 in packs.items():
            try:
                load_pack(staging / PACKS / name_of_pack, expected_sha256=sha256, bundle=staged, target=name_of_pack)
            except BundleError as error:
                raise TrustError(f"the engine pack {name_of_pack} is refused: {error}") from error
        place.install(name)
    sync_folder(place.releases)  # an earlier pull may have been killed before that
    if not was_current:
        place.switch(name)
    sync_folder(place.home)
    removed = place.collect(keep)
    before = None if old is None else int(old.partition("-")[0])
    return Pulled(read_installed(target), before, not (whole and was_current), tuple(removed))


def _intact(folder: Path, raw: bytes, packs: Mapping[str, str]) -> bool:
    """Whether the release is there already, with these engine packs, every byte of all of it as it should be."""
    if not folder.is_dir():
        return False
    try:
        installed = read_installed(folder)
        installed.load_packs(installed.load())
    except (BundleError, TrustError) as error:
        sys.stderr.write(f"{folder} is damaged and is fetched again: {error}\n")
        return False
    return installed.raw == raw and packs.keys() <= set(installed.installed_targets())


@contextmanager
def _pulling(place: Place) -> Iterator[None]:
    """One pull at a time. A disk that can't be written is said; a full one gets back what this pull took of it."""
    try:
        with locked(place.directory):
            try:
                yield
            except OSError as error:
                if error.errno in NO_SPACE:  # while the lock is held: nobody else's files
                    for path in (place.partial, place.staging, place.directory / f"{TRUST}-new"):
                        remove(path)
                raise
    except OSError as error:
        kept = place.linked_name()
        still = f"{kept} is the current release in {place.home}, and whole" if kept else "nothing is installed yet"
        where = error.filename or place.directory
        raise StoreError(f"{where}: {error.strerror}; the pull was given up, {still}") from error
