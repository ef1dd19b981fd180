"""The folder a host keeps its releases in: what is installed, how the next one gets there whole, what is thrown away.

    DIR/.lock                                     one pull at a time (flock; the system drops it with the process)
    DIR/.trust/                                   signed metadata this host trusts (serving/trust.py)
    DIR/<model>/<channel>/.partial/<sha256>       downloads not finished yet, private to the pull that holds the lock
    DIR/<model>/<channel>/.staging/               a release being put together
    DIR/<model>/<channel>/releases/<release:08d>-<bundle's sha256[:12]>/
        {release.json,bundle/...,packs/<target>/...,...}
    DIR/<model>/<channel>/current                 symbolic link to one of them

Data in: verified files. Data out: `Installed`. Invariants: a folder under `releases/` is complete and on disk from the
moment it has its name; `current` is replaced by one rename, so it names the old release or the new one; what a reader
has open isn't removed (it holds a shared flock); names that begin with a dot are nobody's but the pull's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.bundle import Bundle, load_bundle
from serving.canonical import is_model_name, is_sha256, parse_canonical
from serving.disk import make_folder, sync_file, sync_folder
from serving.engine_pack import EnginePack, load_pack
from serving.errors import StoreError, TrustError
from serving.events import TIME_FORMAT, is_time
from serving.release import MAX_RELEASE_BYTES, are_packs, parse_release

RELEASE_JSON, UNSIGNED_JSON, BUNDLE, PACKS = "release.json", "unsigned.json", "bundle", "packs"
TRUST = ".trust"
ROOT_KIND, DEVELOPMENT = "x-strikeforge-kind", "development"  # a field of root metadata and its value
FOLDER_NAME = re.compile(r"([0-9]{8,})-([0-9a-f]{12})", re.ASCII)
INSTALLED_FIELDS = {"model", "channel", "release", "version", "bundle", "expires_at", "packs"}
ATTEMPTS = 100  # a reader that finds `current` replaced under it looks again


@dataclass(frozen=True)
class Installed:
    """A release on this host; `expires_at` (UTC, TIME_FORMAT) may be None where nothing was signed."""

    folder: Path
    model: str
    channel: str
    release: int
    version: int
    bundle: str
    expires_at: str | None
    packs: Mapping[str, str]  # sha256 by target, of all the release has; those asked for are installed
    raw: bytes  # of release.json, or of unsigned.json
    signed: bool

    def expired(self, now: datetime) -> bool:
        """Whether this host must not start using it any more; `now` has a time zone."""
        if self.expires_at is None:
            return False
        return now >= datetime.strptime(self.expires_at, TIME_FORMAT).replace(tzinfo=UTC)

    def load(self) -> Bundle:
        """Its bundle, every byte verified; BundleError names the file that was changed."""
        return load_bundle(self.folder / BUNDLE, expected_sha256=self.bundle, model=self.model)

    def installed_targets(self) -> list[str]:
        """Targets whose engine packs lie here; TrustError for one the release doesn't name."""
        folder = self.folder / PACKS
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        for name in there:
            if name not in self.packs:
                raise TrustError(f"{folder / name}: the release names no engine pack {name!r}; pull again")
        return there

    def load_packs(self, bundle: Bundle) -> list[EnginePack]:
        """The engine packs that lie here, every byte verified, all of this bundle; BundleError or TrustError."""
        return [
            load_pack(self.folder / PACKS / target, expected_sha256=self.packs[target], bundle=bundle, target=target)
            for target in self.installed_targets()
        ]


def folder_name(release: int, bundle: str) -> str:
    """The name of a release's folder."""
    return f"{release:08d}-{bundle[:12]}"


def read_installed(folder: Path) -> Installed:
    """The release of a folder under `releases/`; TrustError where it says another than its name does."""
    signed = (folder / RELEASE_JSON).exists()
    path = folder / (RELEASE_JSON if signed else UNSIGNED_JSON)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_RELEASE_BYTES + 1)
    except OSError as error:
        raise TrustError(f"{path}: can't be read: {error.strerror}; pull again") from error
    values = parse_unsigned(raw, str(path)) if not signed else vars(parse_release(raw))
    fields = {name: values.get(name, {}) for name in INSTALLED_FIELDS}
    found = Installed(folder=folder, raw=raw, signed=signed, **fields)
    at = (found.model, found.channel, folder_name(found.release, found.bundle))
    if at != (folder.parents[2].name, folder.parents[1].name, folder.name):
        raise TrustError(f"{path}: is of {'/'.join(at)}, which isn't where it lies; pull again")
    return found


def parse_unsigned(raw: bytes, path: str) -> dict[str, Any]:
    """The fields of an unsigned.json; TrustError, naming `path`, for what can't be used."""
    try:
        values = parse_canonical(raw)
    except ValueError as error:
        raise TrustError(f"{path}: {error}; pull again") from error
    if not isinstance(values, dict) or values.keys() | {"packs"} != INSTALLED_FIELDS:
        raise TrustError(f"{path}: fields {values!r:.100}, expected {sorted(INSTALLED_FIELDS)}; pull again")
    fine = {
        "release": type(values["release"]) is int and values["release"] >= 1,
        "version": type(values["version"]) is int and values["version"] >= 1,
        "bundle": is_sha256(values["bundle"]),
        "expires_at": values["expires_at"] is None or is_time(values["expires_at"]),
        "packs": are_packs(values.get("packs", {})),
    }
    for name, holds in fine.items():
        if not holds:
            raise TrustError(f"{path}: unusable {name}: {values.get(name)!r}; pull again")
    return values


class Place:
    """One model's channel in a folder; everything but reading is for the holder of `locked`."""

    def __init__(self, directory: Path, model: str, channel: str) -> None:
        if not is_model_name(model):
            raise TrustError(f"model name {model!r}: use lower case letters, digits, '_' and '-', at most 63")
        self.directory = directory.absolute()
        self.home = self.directory / model / channel
        self.releases = self.home / "releases"
        self.link = self.home / "current"
        self.partial = self.home / ".partial"
        self.staging = self.home / ".staging"

    def linked_name(self) -> str | None:
        """The name of the release folder that `current` leads to."""
        linked = self.linked()
        return None if linked is None else linked.name

    def linked(self) -> Path | None:
        """Where `current` leads, there or not."""
        try:
            name = self.link.readlink().name
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise unreadable(self.link, error) from error
            raise TrustError(f"{self.link}: isn't a symbolic link; remove it and pull again") from error
        if not FOLDER_NAME.fullmatch(name):
            raise TrustError(f"{self.link}: leads to {name!r}, which isn't a release; remove it and pull again")
        return self.releases / name

    def floor(self) -> int:
        """The highest release number that was ever completed or current here, as far as names tell; 0 if none."""
        numbers = [number for number, _ in self._numbered()]
        linked = self.linked()
        if linked is not None:
            numbers.append(int(linked.name.partition("-")[0]))
        return max(numbers, default=0)

    def of_number(self, release: int) -> list[Path]:
        """Folders of that release number; one, unless somebody else put another there."""
        return [path for number, path in self._numbered() if number == release]

    def _numbered(self) -> list[tuple[int, Path]]:
        if not self.releases.is_dir():
            return []
        named = ((FOLDER_NAME.fullmatch(path.name), path) for path in self.releases.iterdir())
        return sorted((int(match[1]), path) for match, path in named if match)

    def prepare(self) -> None:
        """Make the folders; clear away what a killed pull left, except partial files."""
        for folder in (self.partial, self.releases):
            make_folder(folder)
        for path in self.home.glob(".*"):
            if path != self.partial:
                remove(path)

    def drop_partials(self, wanted: set[str]) -> None:
        """Remove partial files (named by sha256) that no release wants any more."""
        for path in self.partial.iterdir():
            if path.name not in wanted:
                remove(path)

    def stage(self, files: dict[str, Path | bytes]) -> Path:
        """A private folder with these files, hard links to verified ones or bytes, all on disk."""
        remove(self.staging)
        self.staging.mkdir(mode=0o755)
        for name, content in files.items():
            path = self.staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                os.link(content, path)
            else:
                path.write_bytes(content)
                sync_file(path)
        for parent, _, _ in os.walk(self.staging):
            sync_folder(Path(parent))
        return self.staging

    def install(self, name: str) -> None:
        """The staged folder gets its name; a damaged one of that name goes first."""
        target = self.releases / name
        if target.exists():
            self._throw_away(target)
        self.staging.rename(target)
        sync_folder(self.releases)

    def add_packs(self, name: str, targets: Sequence[str]) -> None:
        """Staged engine packs move into an installed release, each whole by one rename; all else in it stays."""
        packs = self.releases / name / PACKS
        packs.mkdir(exist_ok=True)
        for target in targets:
            (self.staging / PACKS / target).rename(packs / target)
        sync_folder(packs)
        sync_folder(packs.parent)
        remove(self.staging)

    def switch(self, name: str) -> None:
        """`current` names another release from now on, in one rename."""
        temporary = self.home / ".current"
        remove(temporary)
        temporary.symlink_to(Path("releases") / name)
        temporary.replace(self.link)
        sync_folder(self.home)

    def collect(self, keep: int) -> list[str]:
        """Remove all but the `keep` highest releases and the current one; the names of those removed."""
        remove(self.partial)
        current = self.linked()
        old = [path for _, path in self._numbered()[:-keep] if path != current]
        return [path.name for path in old if self._throw_away(path, unless_read=True)]

    def _throw_away(self, folder: Path, *, unless_read: bool = False) -> bool:
        """Renamed first, so that a release's name never stands for half of one."""
        with open_folder(folder) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if unless_read:
                    return False
            garbage = self.home / f".garbage-{folder.name}"
            remove(garbage)
            folder.rename(garbage)
        sync_folder(self.releases)
        remove(garbage)
        return True


def open_installed(directory: Path, model: str, channel: str, stack: ExitStack) -> Installed:
    """The current release for reading; it isn't removed before the stack unwinds."""
    place = Place(directory, model, channel)
    for _ in range(ATTEMPTS):
        folder = place.linked()
        if folder is None:
            raise TrustError(f"{place.link}: nothing is installed of {model} {channel}; strikeforge-host pull first")
        try:
            descriptor = stack.enter_context(open_folder(folder))
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_ino == folder.stat().st_ino:
                return read_installed(folder)
        except FileNotFoundError:  # a pull replaced it meanwhile
            continue
        except OSError as error:
            raise unreadable(folder, error) from error
    raise TrustError(f"{place.link}: the release it names isn't there; strikeforge-host pull again")


def is_development(directory: Path) -> bool:
    """Whether the newest root this folder trusts says it is a development root."""
    newest: Path | None = None
    try:
        roots = (path for path in (directory / TRUST / "root_history").iterdir() if path.name.endswith(".root.json"))
        newest = max(roots, key=lambda path: int(path.name.partition(".")[0]), default=None)
        if newest is None:
            return False
        return bool(json.loads(newest.read_bytes())["signed"].get(ROOT_KIND) == DEVELOPMENT)
    except FileNotFoundError:  # pulled from an unsigned store
        return False
    except OSError as error:
        raise unreadable(newest or directory / TRUST, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrustError(f"{newest}: isn't readable root metadata: {error!r}; pull into a new folder") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One pull into this folder at a time; waits, saying so, for another one."""
    make_folder(directory)
    with (directory / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"another pull into {directory} is running; waiting for it\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unreadable(path: Path, error: OSError) -> StoreError:
    """What is said where this host's disk or its permissions keep a release from being read."""
    return StoreError(
        f"{error.filename or path}: can't be read: {error.strerror}; whoever runs strikeforge-host must be able to "
        "read all of the folder that was pulled into"
    )


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """A file, link or whole folder; absent is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
