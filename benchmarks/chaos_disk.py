"""What a power cut may leave of a folder: the worst disks that the operations and syncs of a process allow.

In: a folder as it was, all of it on disk, and the `Operation`s that followed (chaos_trace.py). Out: `Disk.worst`, the
different worst cases at this moment, each a map from relative path to content (None for a folder, a string for a
symbolic link) and permissions. The model is that of POSIX, which promises least: a name is on disk once its folder was
synced, content once its file was (and then as it was at that sync), each without the other. The cases: no name that
isn't synced; every name, unsynced content empty; the unsynced names of one folder alone, for each of several.
Invariants: what was synced is in every case as it was; a folder that was made but whose name isn't synced is missing
with all it holds. Half-written content isn't tried: a reader that tells empty from whole tells half from whole.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos_trace import Kind, Operation

Leaf = tuple[bytes | str | None, int]
Tree = dict[str, Leaf]


@dataclass(eq=False)
class Node:
    """A file (`content` as last synced), a folder (names as seen and as synced) or a symbolic link (`target`)."""

    is_folder: bool = False
    mode: int = 0o644
    target: str | None = None
    content: bytes = b""
    truncated: bool = False  # and not synced since: it may be empty
    seen: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)


class Disk:
    """A folder on a disk that obeys syncs and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.prefix = f"{folder.resolve()}/"
        self.root = _loaded(folder)

    def apply(self, operation: Operation) -> None:
        """The next operation; failed ones change nothing."""
        if operation.failed:
            return
        kind, path = operation.kind, operation.path
        if kind is Kind.SYNC:
            self._sync(path, operation.content)
        elif kind is Kind.TRUNCATE:
            self._node(path).truncated = True
        elif kind is Kind.CREATE:
            self._place(path, Node(mode=operation.mode))
        elif kind is Kind.MKDIR:
            self._place(path, Node(is_folder=True, mode=operation.mode))
        elif kind is Kind.SYMLINK:
            self._place(path, Node(target=operation.second))
        elif kind is Kind.LINK:
            self._place(operation.second, self._node(path))
        elif kind is Kind.RENAME:
            node = self._node(path)
            self._remove(path)
            self._place(operation.second, node)
        elif kind in (Kind.UNLINK, Kind.RMDIR):
            self._remove(path)

    def worst(self) -> Iterator[tuple[str, Tree]]:
        """The worst disks after a power cut now, each with its name; equal ones once."""
        pending = [(path, node) for path, node in _folders(self.root) if node.seen != node.synced]
        cases: list[tuple[str, set[int]]] = [("unsynced names lost", set())]
        if pending:
            cases.append(("unsynced names kept", {id(node) for _, node in pending}))
        if len(pending) > 1:
            cases += [(f"unsynced names kept in {path or 'the top'} alone", {id(node)}) for path, node in pending]
        found: list[Tree] = []
        for name, kept in cases:
            tree = dict(_tree(self.root, "", kept))
            if tree not in found:
                found.append(tree)
                yield name, tree

    def cuts(self, operations: Sequence[Operation]) -> Iterator[tuple[Operation | None, str, Tree]]:
        """Apply them one by one: every disk that is new, with the operation it was cut after (None: before all)."""
        before: list[Tree] = []
        for operation in (None, *operations):
            if operation is not None:
                self.apply(operation)
            now = list(self.worst())
            for name, tree in now:
                if tree not in before:
                    yield operation, name, tree
            before = [tree for _, tree in now]

    def _parts(self, path: str) -> list[str]:
        if path == self.prefix[:-1]:
            return []
        if not path.startswith(self.prefix):
            raise ValueError(f"{path} isn't below {self.prefix}")
        return path[len(self.prefix) :].split("/")

    def _node(self, path: str) -> Node:
        node = self.root
        for part in self._parts(path):
            node = node.seen[part]
        return node

    def _parent(self, path: str) -> tuple[Node, str]:
        parts = self._parts(path)
        node = self.root
        for part in parts[:-1]:
            node = node.seen[part]
        return node, parts[-1]

    def _place(self, path: str, node: Node) -> None:
        parent, name = self._parent(path)
        parent.seen[name] = node

    def _remove(self, path: str) -> None:
        parent, name = self._parent(path)
        del parent.seen[name]

    def _sync(self, path: str, content: bytes) -> None:
        if path.endswith(" (deleted)"):  # a file without a name can't come back
            return
        node = self._node(path)
        if node.is_folder:
            node.synced = dict(node.seen)
        else:
            node.content, node.truncated = content, False


def write_tree(tree: Tree, folder: Path) -> None:
    """Make the folder what the tree says; it must not exist."""
    folder.mkdir(parents=True)
    for path, (content, mode) in tree.items():
        place = folder / path
        if isinstance(content, str):
            place.symlink_to(content)
            continue
        if content is None:
            place.mkdir()
        else:
            place.write_bytes(content)
        place.chmod(mode)


def _loaded(path: Path) -> Node:
    if path.is_symlink():
        return Node(target=str(path.readlink()))
    mode = stat.S_IMODE(path.stat().st_mode)
    if path.is_dir():
        names = {child.name: _loaded(child) for child in path.iterdir()}
        return Node(is_folder=True, mode=mode, seen=names, synced=dict(names))
    return Node(mode=mode, content=path.read_bytes())


def _folders(root: Node) -> Iterator[tuple[str, Node]]:
    """Every folder that is reached by seen or synced names, with a path to it."""
    known = {id(root)}
    waiting = [("", root)]
    while waiting:
        path, folder = waiting.pop()
        yield path, folder
        for name, child in (*folder.seen.items(), *folder.synced.items()):
            if child.is_folder and id(child) not in known:
                known.add(id(child))
                waiting.append((f"{path}/{name}".lstrip("/"), child))


def _tree(folder: Node, path: str, kept: set[int]) -> Iterator[tuple[str, Leaf]]:
    everything = id(folder) in kept
    for name, node in sorted((folder.seen if everything else folder.synced).items()):
        if node.is_folder:
            yield path + name, (None, node.mode)
            yield from _tree(node, f"{path}{name}/", kept)
        elif node.target is not None:
            yield path + name, (node.target, 0)
        else:
            yield path + name, (b"" if node.truncated and everything else node.content, node.mode)
