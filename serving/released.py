"""The bundle a command works with, found and verified; and how the commands write to the terminal.

In: a folder that `strikeforge-host pull` filled, or, for development, a store; a model, a channel. Out: `Released`.
Invariants: from a folder, the release that `current` names, whose signatures were checked when it was pulled; from a
store, what the unsigned ledger names, and only if the person said so. Every byte of the bundle is verified either way.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.blobstore import BlobStore, open_store
from serving.bundle import Bundle, fetch_bundle, load_bundle
from serving.demo import DEMO_CHAIN, DEMO_FILES, unpack_demo
from serving.engine_pack import EnginePack, fetch_pack
from serving.errors import BundleError, DataError, TrustError
from serving.folder_store import FolderStore
from serving.installed import Installed, is_development, open_installed
from serving.ledger import Ledger, fold
from serving.normal import Array
from serving.release import are_packs
from serving.tables import Market

UNSIGNED = "from an unsigned store"


@dataclass(frozen=True)
class Released:
    """A channel's bundle and where it stands in the ledger."""

    bundle: Bundle
    channel: str
    version: int
    release: int | None  # None for a challenger, which hasn't been released
    expires_at: str | None = None  # UTC, TIME_FORMAT; None if it wasn't pulled, or doesn't expire
    expired: bool = False
    packs: tuple[EnginePack, ...] = ()  # engine packs at hand, verified
    note: str = ""  # why nothing, or no more than somebody's development key, vouches for it

    def title(self) -> str:
        """One line that names it fully."""
        release = f"release {self.release}" if self.release is not None else "not released"
        expiry = f", {'EXPIRED' if self.expired else 'expires'} {self.expires_at}" if self.expires_at else ""
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.bundle.manifest.model} {self.channel}: {release}, version {self.version}, "
            f"bundle {self.bundle.sha256}{expiry}{note}"
        )


def resolve(arguments: argparse.Namespace, stack: ExitStack) -> Released:
    """What the arguments `--from` or `--store`, `--model`, `--channel` name; files stay until the stack unwinds."""
    if arguments.folder is not None:
        return _installed(arguments.folder, arguments.model, arguments.channel, stack)
    if not arguments.development:
        raise TrustError(
            f"--store {arguments.store}: a store's ledger is unsigned, nothing vouches for what it names; pull the "
            "signed release and use --from DIR, or say --development to try a store out"
        )
    return _unsigned(arguments.store, arguments.model, arguments.channel, stack)


def _installed(directory: Path, model: str, channel: str, stack: ExitStack) -> Released:
    found: Installed = open_installed(directory, model, channel, stack)
    note = "signed with development keys" if found.signed and is_development(directory) else ""
    bundle = found.load()
    return Released(
        bundle, channel, found.version, found.release, found.expires_at, found.expired(datetime.now(UTC)),
        tuple(found.load_packs(bundle)), note if found.signed else UNSIGNED,
    )  # fmt: skip


def _unsigned(store_url: str, model: str, channel: str, stack: ExitStack) -> Released:
    """The channel's bundle on the ledger's word: verified in place in a folder, else in a temporary copy.

    Of its engine packs those of the native engine come along.
    """
    store = existing_store(store_url)
    events = Ledger(store, model).events()
    state = fold(model, events)
    version = state.resolve(channel)
    if isinstance(store, FolderStore):
        folder = store.root / "bundles" / version.bundle
        if not folder.is_dir():
            raise BundleError(f"bundle {version.bundle}: isn't in store {store_url}, though the ledger names it")
        bundle = load_bundle(folder, expected_sha256=version.bundle, model=model)
    else:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="strikeforge-"))
        bundle = fetch_bundle(store, version.bundle, Path(temporary))
        if bundle.manifest.model != model:
            found = bundle.manifest.model
            raise BundleError(f"bundle {version.bundle}: is of model {found!r}, not {model!r}")
    champion = state.champion
    released = champion.number if champion is not None and channel == "champion" else None
    named = events[champion.seq - 1].details.get("packs", {}) if champion is not None and released else {}
    if not are_packs(named):
        raise BundleError(f"the ledger of {model}: unusable engine packs: {named!r:.100}")
    packs = []
    for target, sha256 in named.items():
        if target.startswith("native_"):
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="strikeforge-"))
            packs.append(fetch_pack(store, sha256, Path(temporary), bundle=bundle, target=target))
    return Released(bundle, channel, version.version, released, packs=tuple(packs), note=UNSIGNED)


def existing_store(store_url: str) -> BlobStore:
    """The store of a URL; DataError for a folder that isn't there."""
    store = open_store(store_url)
    if isinstance(store, FolderStore) and not store.root.is_dir():
        raise DataError(f"store {store_url}: there is no such folder")
    return store


def refuse_expired(released: Released) -> None:
    """TrustError if hosts must not use the release any more."""
    if released.expired:
        raise TrustError(
            f"{released.bundle.manifest.model} {released.channel}: release {released.release} expired at "
            f"{released.expires_at}; strikeforge-host pull a newer one"
        )


def demo_of(bundle: Bundle) -> tuple[Market, Array]:
    """The inputs a bundle brings along, and the volatilities to be found; BundleError where it brings none."""
    for name in DEMO_FILES:
        if name in bundle.manifest.files:
            arrays = bundle.arrays(name)
            if DEMO_CHAIN[0] in arrays:
                return unpack_demo(arrays, name)
    raise BundleError(f"bundle {bundle.sha256} holds no demo; give --chain, --path and --now")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, columns to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def write_lines(lines: Iterable[str]) -> None:
    """To stdout."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
