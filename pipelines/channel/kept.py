"""The public material that is kept beside the keys: every root and targets, and what still waits for signatures.

Data in and out: `<folder>/public/channel/N.root.json` and `N.targets.json`, byte for byte as in the store, and
`<folder>/pending/*.json`. Nothing of it is secret: it may be carried from machine to machine, and copied to safety.
Invariants: what is kept is never replaced; an emptied store is rebuilt from it (`python -m pipelines.channel.restore`),
and hosts go on with the root they have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuf.api.metadata import Root, Targets

from pipelines.channel.metadata import Held, View, metadata_key, newest_targets, read_roots
from serving.blobstore import BlobStore
from serving.errors import BlobMissingError, TrustError
from serving.folder_store import FolderStore


class Kept:
    """What a keys folder knows of its channel; the folder needn't exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pending = folder / "pending"
        self._store = FolderStore(folder / "public")

    def __repr__(self) -> str:
        return f"Kept({str(self.folder)!r})"

    def roots(self) -> tuple[Held[Root], ...]:
        """The chain of kept roots; empty if there is none."""
        return read_roots(self._store)

    def targets(self) -> Held[Targets] | None:
        """The newest kept targets that the newest kept root accepts."""
        roots = self.roots()
        return newest_targets(self._store, roots[-1].signed, None) if roots else None

    def root_file(self) -> Path:
        """The first root: the file that a host is given."""
        return self.folder / "public" / metadata_key("root", 1)

    def keep(self, view: View) -> None:
        """Keep what counts of a channel; TrustError if another file is kept under that name."""
        files: list[Held[Any]] = [*view.roots, *([view.targets] if view.targets is not None else [])]
        for held in files:
            self.keep_file(held.key, held.raw)

    def keep_file(self, key: str, raw: bytes) -> None:
        """Keep one file; TrustError if another is kept under that name."""
        if not self._store.put_if_absent(key, raw) and self._store.get(key) != raw:
            raise TrustError(
                f"{key}: {self.folder} keeps another one; name the folder of this channel in STRIKEFORGE_KEYS"
            )

    def first_root(self, raw: bytes) -> Held[Root]:
        """Keep a channel's first root, or take the one that was kept before."""
        self._store.put_if_absent(metadata_key("root", 1), raw)
        return self.roots()[0]

    def reserve(self, key: str, raw: bytes) -> bool:
        """Keep a file under a number that is still free here; False if it is taken."""
        return self._store.put_if_absent(key, raw)

    def bring_back(self, store: BlobStore) -> tuple[str, ...]:
        """Write the kept roots and the newest kept targets into a store that lacks or changed them; a line for each."""
        done = []
        targets = self.targets()
        files: list[Held[Any]] = [*self.roots(), *([targets] if targets is not None else [])]
        for held in files:
            try:
                there: bytes | None = store.get(held.key)
            except BlobMissingError:
                there = None
            if there != held.raw:
                store.put(held.key, held.raw)
                was = "was missing" if there is None else "was another one"
                done.append(f"{held.key}: {was}, the kept one is back")
        return tuple(done)
