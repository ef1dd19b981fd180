"""More than five hundred stores that a host must refuse, enumerated: each is the store of tests/forged.py at its third
moment, spoilt in one way, offered to a host that holds the second moment's release (or nothing yet).

Left out because nothing is wrong with them: what a host doesn't read, a store that hasn't moved on from what the host
has (TUF can't tell that from a quiet day before the timestamp expires), and changes that leave the signed content as it
is (white space, another case of hexadecimal digits) in files that no other file names by hash.

`run_forged(count)` offers `count` of them, evenly spread over all kinds, and returns how many there were and how many
were accepted.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from serving.blobstore import BlobStore
from serving.errors import StoreError, TrustError
from serving.folder_store import FolderStore
from serving.pull import pull
from tests.forged import MODEL, write_store
from tests.forgeries_content import bundles, described_wrongly, other_models, release_files, statements
from tests.forgeries_metadata import damaged, expired, links, oversized, replayed, roots, swapped, wrong_signatures
from tests.forgeries_packs import contents, indices, named_by_releases
from tests.forgery import Forgery, sealed


@dataclass
class Outcome:
    repositories: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # refused, but with another error or no reason, or something changed


KINDS = (
    damaged, swapped, replayed, expired, wrong_signatures, other_models, release_files, described_wrongly, bundles,
    statements, oversized, roots, links, indices, contents, named_by_releases,
)  # fmt: skip


def forgeries() -> list[Forgery]:
    """All of them, in a fixed order."""
    return [forgery for kind in KINDS for forgery in kind()]


@cache
def pulled_before() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """A host that pulled moments 1 and 2."""
    folder = tempfile.TemporaryDirectory(prefix="forged-")
    home = Path(folder.name)
    (home / "root.json").write_bytes(sealed(1)["channel/1.root.json"])
    for number in (1, 2):
        write_store(home / "store", sealed(number))
        pull(FolderStore(home / "store"), home / "root.json", directory=home / "host", model=MODEL)
    return folder, home


def tree(folder: Path) -> str:
    """One hash of all names, links and bytes below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.relative_to(folder)}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def installed_tree(host: Path) -> str:
    """What is installed of MODEL: releases and the current one; private names of the pull aside."""
    home = host / MODEL / "champion"
    current = str((home / "current").readlink()) if (home / "current").is_symlink() else "nothing"
    return f"{current} {tree(home / 'releases')}"


def offer(forgery: Forgery, outcome: Outcome, open_store: Callable[[Path], BlobStore] = FolderStore) -> None:
    """Offer one to a host and note what happened."""
    name = f"{forgery.kind}: {forgery.what}"
    outcome.repositories += 1
    outcome.by_kind[forgery.kind] += 1
    with tempfile.TemporaryDirectory(prefix="forged-") as scratch:
        here, home = Path(scratch), pulled_before()[1]
        if not forgery.fresh:
            shutil.copytree(home / "host", here / "host", symlinks=True)
        root = home / "root.json"
        if forgery.root is not None:
            root = here / "root.json"
            root.write_bytes(forgery.root())
        store = write_store(here / "store", forgery.files())
        if forgery.spoil is not None:
            forgery.spoil(store)
        before = installed_tree(here / "host")
        try:
            pull(open_store(store), root, directory=here / "host", model=MODEL)
        except (TrustError, StoreError) as error:
            if not isinstance(error, forgery.refusal) or not re.search(forgery.reason, str(error)):
                outcome.wrong.append(f"{name}: refused without its reason ({forgery.reason}): {error!r}")
        except Exception as error:  # noqa: BLE001 (any other error is a finding, to be listed with the rest)
            outcome.wrong.append(f"{name}: {error!r}")
        else:
            outcome.accepted.append(name)
        if installed_tree(here / "host") != before:
            outcome.wrong.append(f"{name}: what is installed was changed")


def chosen(count: int | None) -> list[Forgery]:
    """`count` of all, evenly spread, the same every time; all if None."""
    everything = forgeries()
    if count is None or count >= len(everything):
        return everything
    return [everything[index * len(everything) // count] for index in range(count)]


def run(count: int | None = None) -> Outcome:
    outcome = Outcome()
    for forgery in chosen(count):
        offer(forgery, outcome)
    return outcome


def run_forged(count: int | None = None) -> tuple[int, int]:
    """How many spoilt stores were offered, and how many a host accepted; AssertionError for any other finding."""
    outcome = run(count)
    assert not outcome.wrong, "\n".join(outcome.wrong)
    return outcome.repositories, len(outcome.accepted)
