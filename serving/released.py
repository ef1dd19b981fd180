"""A channel's bundle, found through the ledger and verified; and how the commands write to the terminal.

In: a store's URL, a model, a channel. Out: `Released`.
Invariant: a bundle is used only if the ledger's channel names it and every byte of it was verified.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from serving.blobstore import FolderStore, open_store
from serving.bundle import Bundle, fetch_bundle, load_bundle
from serving.demo import DEMO_CHAIN, DEMO_FILES, unpack_demo
from serving.errors import BundleError, DataError
from serving.ledger import Ledger
from serving.normal import Array
from serving.tables import Market


@dataclass(frozen=True)
class Released:
    """A channel's bundle and where it stands in the ledger."""

    bundle: Bundle
    channel: str
    version: int
    release: int | None  # None for a challenger, which hasn't been released

    def title(self) -> str:
        """One line that names it fully."""
        release = f"release {self.release}" if self.release is not None else "not released"
        return (
            f"{self.bundle.manifest.model} {self.channel}: {release}, version {self.version}, "
            f"bundle {self.bundle.sha256}"
        )


def resolve(store_url: str, model: str, channel: str, stack: ExitStack) -> Released:
    """The channel's bundle: verified in place in a folder, else in a temporary copy."""
    store = open_store(store_url)
    if isinstance(store, FolderStore) and not store.root.is_dir():
        raise DataError(f"store {store_url}: there is no such folder")
    state = Ledger(store, model).state()
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
    return Released(bundle, channel, version.version, released)


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
