"""From the root key to every byte: is all that the store holds of a model what was decided, signed and recorded?

In: the store; the root file one trusts (`root=FILE`, else the one kept beside the signing keys); MLflow, if it answers.
Out: `Verification`: what was looked at, and every break, in the order of trust: root keys and signatures, release file,
ledger, bundle files, gate reports, engine packs, exams, provenance, MLflow's aliases.
Invariants: nothing is written; a break doesn't keep what comes after it from being looked at; the exit code is 0 only
if there is none, else that of TrustError. An unsigned store is a break once something is released.
Not seen from here: events cut off the ledger's end, or the last of them rewritten, while no signed release came after.

Run: python -m pipelines.verify model=M [root=root.json]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import LengthOrHashMismatchError

from pipelines.channel.kept import Kept
from pipelines.config import Operation
from pipelines.ledger_walk import Walk, walk
from pipelines.lineage import ROOT
from pipelines.plain_text import printable
from pipelines.registry import RegistryError, lazy_registry
from pipelines.verify_channel import SignedSide, read_signed_side
from pipelines.verify_content import Layer, check_bundles, check_exams, check_packs, check_provenance, check_reports
from serving.blobstore import BlobStore, open_store
from serving.bundle import bundle_key
from serving.engine_pack import PACK, PackManifest, packed_key
from serving.errors import ConfigError, StoreError, TrustError
from serving.events import event_key
from serving.manifest import MANIFEST, Manifest
from serving.release import (
    MAX_RELEASE_BYTES,
    ReleaseFile,
    content_target,
    parse_release,
    provenance_key,
    release_key,
    release_target,
    report_key,
)

CHAMPION = "champion"
COUNTED = {  # what a layer counts, where its name alone doesn't say
    "signatures": "metadata files", "release": "signed files", "ledger": "events", "bundle files": "files",
    "gate reports": "events that name one", "engine packs": "files", "exams": "files",
    "provenance": "events that name one", "MLflow's aliases": "aliases",
}  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """What `verify` found; `layers` in the order of trust."""

    model: str
    store: str
    champion: str  # as the ledger has it, in words
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]

    @property
    def breaks(self) -> tuple[str, ...]:
        """Everything that is wrong, the first break first."""
        return tuple(f"{layer.name}: {problem}" for layer in self.layers for problem in layer.problems)

    @property
    def message(self) -> str:
        """Everything as lines of text."""
        lines = [f"{self.model}, {self.store}: {self.champion}"]
        for layer in self.layers:
            verdict = f"{len(layer.problems)} BROKEN" if layer.problems else "fine"
            lines.append(f"  {layer.name}: {verdict}; {layer.looked_at} {COUNTED.get(layer.name, '')}".rstrip())
        if self.breaks:
            first, *others = (printable(one) for one in self.breaks)
            lines += ["", "first break:", f"  {first}"]
            lines += ["all others:", *(f"  {one}" for one in others)] if others else []
        lines += ["", *(f"note: {printable(note)}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)


def verify(
    model: str,
    store: BlobStore,
    *,
    root: bytes | None = None,
    aliases: Mapping[str, int] | None = None,
    now: datetime | None = None,
) -> Verification:
    """Look at all of it; LedgerError if the store holds no ledger of this model.

    `root` is the content of a trusted root file; `aliases` are MLflow's, None if it wasn't asked; `now` has a zone.
    """
    found = walk(store, model)
    side = read_signed_side(store, model, root=root, now=now or datetime.now(UTC))
    bundles, manifests = check_bundles(store, [event.bundle for event in found.events])
    packs, pack_manifests = check_packs(store, found.events)
    layers = [
        _signatures(found, side),
        _release(store, found, side, manifests, pack_manifests),
        Layer("ledger", len(found.events), list(found.problems)),
        bundles,
        check_reports(store, found.events),
        packs,
        check_exams(store, found.events),
        check_provenance(store, found.events, manifests),
    ]
    if aliases is not None and not found.problems:
        layers.append(_aliases(found, aliases))
    champion = found.state.champion
    told = f"champion version {champion.version}, release {champion.number}" if champion else "no champion"
    if found.problems:
        told += " before the ledger's first break"
    notes = tuple(note for layer in layers for note in layer.notes)
    return Verification(model, repr(store), told, tuple(layers), notes)


def _signatures(found: Walk, side: SignedSide) -> Layer:
    """What leads from the root keys to the model's targets."""
    layer = Layer("signatures", side.files, list(side.problems), list(side.notes))
    if not side.is_there:
        text = "channel/: there is no signed channel; the store is unsigned, nothing vouches for what it holds"
        if found.state.releases:
            layer.problems.append(f"{text}: `python -m pipelines.reconcile model={found.state.model}` signs it")
        else:
            layer.notes.append(f"{text}; nothing is released yet")
    return layer


def _release(
    store: BlobStore,
    found: Walk,
    side: SignedSide,
    manifests: Mapping[str, Manifest],
    packs: Mapping[str, PackManifest],
) -> Layer:
    """The signed release file: its bytes, the ledger's event it rests on, all it names signed as well."""
    layer = Layer("release")
    champion = found.state.champion
    path = release_target(found.state.model, CHAMPION)
    target = side.targets.get(path)
    if target is None:
        if side.is_there and champion is not None:
            layer.problems.append(f"{path}: isn't signed, yet release {champion.number} was decided; reconcile")
        return layer
    layer.looked_at += len(side.targets)
    key = release_key(target.hashes.get("sha256", ""))
    try:
        raw = store.get(key, max_bytes=MAX_RELEASE_BYTES)
        target.verify_length_and_hashes(raw)
        release = parse_release(raw)
    except LengthOrHashMismatchError as error:
        layer.problems.append(f"{key}: isn't what was signed: {error}")
        return layer
    except (StoreError, TrustError) as error:
        layer.problems.append(f"{key}: {error}")
        return layer
    if target.custom != release.custom():
        layer.problems.append(f"{path}: signed was {target.custom}, the release file says {release.custom()}")
    layer.problems += [f"{key}: {problem}" for problem in _against_ledger(release, found)]
    if release.bundle in manifests and set(release.packs.values()) <= packs.keys():  # else it was said
        layer.problems += _content_targets(release, side, manifests[release.bundle], packs)
    return layer


def _against_ledger(release: ReleaseFile, found: Walk) -> list[str]:
    """What the release says that the ledger doesn't."""
    named_event = event_key(found.state.model, release.seq)
    place = next((at for at, event in enumerate(found.events) if event.seq == release.seq), None)
    if place is None:
        return [f"rests on {named_event}, which isn't there or can't be read: the ledger was cut or damaged"]
    event, sha256 = found.events[place], found.hashes[place]
    if release.event != sha256:
        return [f"rests on {named_event} with sha256 {release.event}; the one there has {sha256}: it was rewritten"]
    named = {name: event.details.get(name) for name in ("gate_report", "provenance", "expires_at")}
    named["packs"] = event.details.get("packs", {})
    said = {
        "model": event.model,
        "kind": event.kind,
        "version": event.version,
        "bundle": event.bundle,
        "at": event.at,
        **named,
    }
    problems = [
        f"{name} is {getattr(release, name)!r}, event {release.seq} says {value!r}"
        for name, value in said.items()
        if getattr(release, name) != value
    ]
    latest = found.state.champion
    if latest is not None and not found.problems and (latest.number, latest.seq) != (release.release, release.seq):
        problems.append(
            f"is release {release.release} of event {release.seq}; the ledger decided release {latest.number} in event "
            f"{latest.seq}: reconcile"
        )
    return problems


def _content_targets(
    release: ReleaseFile, side: SignedSide, manifest: Manifest, packs: Mapping[str, PackManifest]
) -> list[str]:
    """The role signs the release's files, each with the size and hash it has by its manifest or name, nothing else."""
    listed = {bundle_key(release.bundle, name): entry for name, entry in manifest.files.items()}
    for sha256 in release.packs.values():
        listed |= {packed_key(sha256, name): entry for name, entry in packs[sha256].files.items()}
    wanted = {key: entry.sha256 for key, entry in listed.items()}
    wanted |= {packed_key(sha256, PACK): sha256 for sha256 in release.packs.values()}
    wanted[bundle_key(release.bundle, MANIFEST)] = release.bundle
    wanted[report_key(release.gate_report)] = release.gate_report
    wanted[provenance_key(release.provenance)] = release.provenance
    by_path = {content_target(release.model, key): sha256 for key, sha256 in wanted.items()}
    own = release_target(release.model, release.channel)
    signed = {path: target.hashes.get("sha256") for path, target in side.targets.items() if path != own}
    sizes = {content_target(release.model, key): entry.size for key, entry in listed.items()}
    return [
        *(f"{path}: isn't signed" for path in sorted(by_path.keys() - signed.keys())),
        *(f"{path}: is signed, but isn't of the release" for path in sorted(signed.keys() - by_path.keys())),
        *(
            f"{path}: signed with sha256 {signed[path]}, expected {by_path[path]}"
            for path in sorted(by_path.keys() & signed.keys())
            if signed[path] != by_path[path]
        ),
        *(
            f"{path}: signed with {side.targets[path].length} bytes, expected {size}"
            for path, size in sorted(sizes.items())
            if path in signed and side.targets[path].length != size
        ),
    ]


def _aliases(found: Walk, aliases: Mapping[str, int]) -> Layer:
    """MLflow's aliases, which decide nothing, against the ledger."""
    champion, challenger = found.state.champion, found.state.challenger
    aims = {
        "champion": champion.version if champion else None,
        "challenger": challenger.version if challenger else None,
    }
    differing = [
        f"{alias} is version {aliases.get(alias) or 'none'}, the ledger says {aim or 'none'}: reconcile"
        for alias, aim in aims.items()
        if aliases.get(alias) != aim
    ]
    return Layer("MLflow's aliases", len(aims), differing)


def run(cfg: Operation) -> str:
    """Everything of `model`; TrustError, after all of it is shown, if anything is wrong."""
    root, about_root = _trusted_root(cfg)
    aliases, about_aliases = _aliases_of(cfg)
    found = verify(cfg.model.name, open_store(cfg.storage.url), root=root, aliases=aliases)
    text = "\n".join([found.message, *(f"note: {printable(note)}" for note in (about_root, about_aliases) if note)])
    if found.breaks:
        sys.stdout.write(f"{text}\n")
        raise TrustError(f"{found.model}: broken in {len(found.breaks)} places, first {printable(found.breaks[0])}")
    return text


def _trusted_root(cfg: Operation) -> tuple[bytes | None, str]:
    """The root to start from, and where it is from."""
    if cfg.root is not None:
        path = Path(cfg.root)
        if not path.is_file():
            raise ConfigError([f"root: there is no file {path}; give the root.json that your hosts were given"])
        return path.read_bytes(), ""
    kept = Kept(cfg.signing.path).roots()
    return (kept[-1].raw, f"the root trusted is the newest kept in {cfg.signing.folder}") if kept else (None, "")


def _aliases_of(cfg: Operation) -> tuple[Mapping[str, int] | None, str]:
    """MLflow's aliases if it can be asked, and else why not; a database that isn't there isn't made."""
    uri = cfg.registry.tracking_uri
    if uri.startswith("sqlite:///") and not (ROOT / uri.removeprefix("sqlite:///")).is_file():
        return None, f"MLflow's aliases weren't looked at: there is no {uri.removeprefix('sqlite:///')}"
    try:
        return lazy_registry(uri).aliases(cfg.model.name), ""
    except RegistryError as error:
        return None, f"MLflow's aliases weren't looked at: {error}"


if __name__ == "__main__":
    from pipelines.command import operation

    raise SystemExit(operation(__doc__, run))
