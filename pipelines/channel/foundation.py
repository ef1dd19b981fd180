"""A development channel's own root and targets: made on first use, brought back, renewed, opened to new models.

Data in: a keys folder (it may be empty), a store. Data out: key files, `N.root.json`, `N.targets.json` in both. A
production channel gets these from ceremonies (pipelines/channel/ceremony.py), never from here.
Invariants: the folder decides what root 1 is, so that any number of processes and stores that share a folder share one
root; every step may be cut off and is completed by the next run.
"""

from __future__ import annotations

import dataclasses

from tuf.api.metadata import Targets

from pipelines.channel import documents
from pipelines.channel.draft import Draft
from pipelines.channel.key_files import make_key
from pipelines.channel.metadata import View, next_version
from pipelines.channel.workbench import Workbench
from serving.release import role_of


def found(bench: Workbench) -> tuple[str, ...]:
    """Root and targets into a store that lacks them, from the folder or newly made; one line for each change."""
    assert bench.is_development
    lines = []
    if not bench.kept.roots() and not bench.view().roots:
        folder = bench.signing.path
        keys = {role: [make_key(folder / f"{role}.pem", development=True)] for role in documents.ROLES}
        root = documents.first_root("development", keys, {}, bench.expires("root"))
        bench.kept.first_root(documents.sign(root, "root", [root], bench.keyring).raw)
        lines.append(f"root: development keys made in {folder}")
    roots = bench.kept.roots()
    for held in roots:
        if bench.store.put_if_absent(held.key, held.raw) and not lines:
            lines.append(f"root {held.version}: brought back from {bench.signing.path}")
    view = bench.view()
    if view.targets is not None or view.snapshot is not None:
        return tuple(lines)
    targets = bench.kept.targets()
    if targets is not None:
        bench.store.put_if_absent(targets.key, targets.raw)
        return (*lines, f"targets {targets.version}: brought back from {bench.signing.path}")
    bench.put(
        "targets", view.root, next_version(0, bench.now()),
        lambda version: documents.first_targets(bench.expires("targets"), version),
    )  # fmt: skip
    return (*lines, "targets: made, without a model")


def renew_offline(bench: Workbench, view: View, draft: Draft) -> View:
    """The root and targets that a draft wants newly signed, written; the view with them."""
    if draft.renew_root:
        old = view.root
        new = documents.next_root(old, bench.expires("root"))
        held = documents.sign(new, "root", [old, new], bench.keyring)
        bench.kept.reserve(held.key, held.raw)
        found(bench)  # the folder's root of that number, be it ours or that of somebody faster
        view = dataclasses.replace(view, roots=bench.view().roots)
    if draft.renew_targets or draft.delegate:
        old_targets = bench.targets_of(view)
        keys = {
            model: make_key(bench.signing.path / f"{role_of(model)}.pem", development=True) for model in draft.delegate
        }

        def build(version: int) -> Targets:
            made = documents.next_targets(old_targets, bench.expires("targets"), version)
            for model, key in keys.items():
                documents.set_keys(made, documents.delegate(made, model), kind="development", add=[key], threshold=1)
            return made

        held_targets = bench.put("targets", view.root, next_version(old_targets.version, bench.now()), build)
        view = dataclasses.replace(view, targets=held_targets)
    return view
