"""Two hosts of a place: one that has a release installed, and one that starts from nothing.

In: a place. Out: the release a host offers after it pulled. Invariant: hosts see the store and the pinned root, nothing
else; what they offer is verified byte by byte.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_places import MODEL, Place
from serving import pull as host
from serving.errors import StrikeforgeError
from serving.installed import read_installed

CHANNEL = "champion"


@dataclass(frozen=True)
class Seen:
    """A release as a host has it."""

    release: int
    version: int
    bundle: str
    packs: tuple[tuple[str, str], ...] = ()  # target and sha256


def installed(folder: Path) -> Seen | None:
    """What a host's folder offers, engine packs too; BundleError or TrustError if any of it is damaged."""
    current = folder / MODEL / CHANNEL / "current"
    if not current.is_symlink():
        return None
    found = read_installed(current.resolve())
    packs = found.load_packs(found.load())
    return Seen(found.release, found.version, found.bundle, tuple((one.manifest.target, one.sha256) for one in packs))


def pull_or_fail(place: Place, folder: Path) -> None:
    """Bring the channel's release into the folder, as `strikeforge-host pull` does; its errors."""
    pinned = place.folder / "root.json"
    if not pinned.exists():
        pinned.write_bytes(place.store.get("channel/1.root.json"))
    host.pull(place.store, pinned, directory=folder, model=MODEL, channel=CHANNEL, development=True)


def pull(place: Place, folder: Path) -> str | None:
    """The words of a refusal, or None."""
    try:
        pull_or_fail(place, folder)
    except StrikeforgeError as error:
        return f"{type(error).__name__}: {error}"
    return None


def fresh_host(place: Place) -> tuple[Seen | None, str | None]:
    """What a host without anything gets, or why it gets nothing."""
    folder = place.folder / "fresh-host"
    try:
        refusal = pull(place, folder)
        return installed(folder), refusal
    finally:
        shutil.rmtree(folder, ignore_errors=True)
