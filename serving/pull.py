"""`strikeforge-host pull`: brings a channel's release to this host, verified, whole, resumable.

Data in: a store, the root file to trust. Data out: a release under DIR (serving/installed.py) and `current` naming it.
Order: signed metadata, release file, provenance, gate report, manifest, the bundle's other files, the engine packs of
the targets asked for (serving/pull_files.py); then all of it is put
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
from serving.bundle import Bundle, load_bundle
from serving.canonical import canonical_json
from serving.disk import sync_folder
from serving.downloads import fetch
from serving.engine_pack import load_pack
from serving.errors import BundleError, StoreError, TrustError
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
from serving.pull_checks import NATIVE_TARGETS, chosen_packs
from serving.pull_files import Files, signed_files, signed_packs, unsigned_files, unsigned_packs
from serving.release import MAX_RELEASE_BYTES, ReleaseFile, parse_release, release_target
from serving.released import existing_store, write_lines
from serving.trust import is_signed, signed_channel

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNSIGNED_WARNING = "WARNING: {store} is unsigned: nothing vouches for what is pulled. For development only.\n"


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
                return signed_files(store, signed, release, packs, place) | {RELEASE_JSON: raw}

            def more(lacking: Mapping[str, str]) -> Files:
                return signed_packs(store, signed, release, lacking, place)

            return _finish(place, release.release, release.bundle, raw, packs, files, more, keep)


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
            return unsigned_files(store, version.bundle, packs, place) | {UNSIGNED_JSON: raw}

        def more(lacking: Mapping[str, str]) -> Files:
            return unsigned_packs(store, version.bundle, lacking, place)

        return _finish(place, champion.number, version.bundle, raw, packs, files, more, keep)


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


def _finish(
    place: Place, number: int, bundle: str, raw: bytes, packs: Mapping[str, str], files: Callable[[], Files],
    more: Callable[[Mapping[str, str]], Files], keep: int,
) -> Pulled:  # fmt: skip
    """Put the release together unless it is there and intact; make it current; clear away what is old.

    Engine packs that an intact release lacks are put beside those it has: nothing of it is replaced under its readers.
    """
    name = folder_name(number, bundle)
    target = place.releases / name
    old = place.linked_name()
    was_current = old == name
    there = _intact(target, raw)
    lacking = packs if there is None else {one: sha256 for one, sha256 in packs.items() if one not in there}
    if there is None:
        staging = place.stage(files())
        try:
            staged = load_bundle(staging / BUNDLE, expected_sha256=bundle, model=place.home.parent.name)
        except BundleError as error:
            raise TrustError(f"the bundle is refused: {error}") from error
        _check_packs(staging, staged, packs)
        place.install(name)
    elif lacking:
        _check_packs(place.stage(more(lacking)), read_installed(target).load(), lacking)
        place.add_packs(name, sorted(lacking))
    sync_folder(place.releases)  # an earlier pull may have been killed before that
    if not was_current:
        place.switch(name)
    sync_folder(place.home)
    removed = place.collect(keep)
    before = None if old is None else int(old.partition("-")[0])
    unchanged = there is not None and not lacking and was_current
    return Pulled(read_installed(target), before, not unchanged, tuple(removed))


def _check_packs(staging: Path, bundle: Bundle, packs: Mapping[str, str]) -> None:
    """TrustError naming an engine pack that isn't of this bundle, or isn't what it should be on disk."""
    for target, sha256 in packs.items():
        try:
            load_pack(staging / PACKS / target, expected_sha256=sha256, bundle=bundle, target=target)
        except BundleError as error:
            raise TrustError(f"the engine pack {target} is refused: {error}") from error


def _intact(folder: Path, raw: bytes) -> list[str] | None:
    """The targets whose packs lie there, if the release does, every byte of all of it as it should be; else None."""
    if not folder.is_dir():
        return None
    try:
        installed = read_installed(folder)
        installed.load_packs(installed.load())
        targets = installed.installed_targets()
    except (BundleError, TrustError) as error:
        sys.stderr.write(f"{folder} is damaged and is fetched again: {error}\n")
        return None
    return targets if installed.raw == raw else None


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
