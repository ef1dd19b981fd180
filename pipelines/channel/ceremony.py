"""Root and targets changed by people: proposed as a file, signed one by one on any machine, then published.

Data in and out: `<folder>/pending/N.root.json` and `N.targets.json`; then the store, and the kept copies. The folder
may be carried around: it holds no private key of a production channel.
Invariants: nothing is published before it has the signatures that the roots before and after it want; root goes before
targets; a proposal made from something that isn't the newest any more is refused; each step may be cut off and redone.
Between a root that changes online keys and the `refresh` that follows it, hosts refuse and keep what they have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Root, Targets

from pipelines.channel import documents
from pipelines.channel.key_files import replace_file
from pipelines.channel.keys import short
from pipelines.channel.metadata import FOLDER, FOLLOWS_FIELD, Held, View, accept_root, is_signed, metadata_key, parse
from pipelines.channel.publish import StoreChannel
from pipelines.channel.workbench import Workbench
from pipelines.errors import SigningError
from serving.errors import StrikeforgeError


def propose(bench: Workbench, view: View, *, root: Root | None = None, targets: Targets | None = None) -> list[Path]:
    """Write what is to be signed, and keep what it starts from; SigningError if something else waits already."""
    waiting = pending_files(bench)
    if waiting:
        raise SigningError(f"{waiting[0]}: waits for signatures: sign it or delete it before anything else is changed")
    bench.kept.keep(view)
    made: list[Path] = []
    for held in (documents.unsigned(root, "root"), documents.unsigned(targets, "targets")):
        if held is not None:
            made.append(bench.kept.pending / held.key.removeprefix(FOLDER))
            replace_file(made[-1], held.raw)
    return made


def pending_files(bench: Workbench) -> list[Path]:
    """What waits for signatures, roots first."""
    return [path for role in ("root", "targets") for path in sorted(bench.kept.pending.glob(f"*.{role}.json"))]


def read_pending(path: Path) -> Held[Any]:
    """A file that waits; SigningError or TrustError if it is none."""
    number, _, role = path.name.removesuffix(".json").partition(".")
    if not (number.isdecimal() and role in ("root", "targets") and path.name.endswith(".json")):
        raise SigningError(f"{path}: isn't the name of a file that waits, such as 2.root.json")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SigningError(f"{path}: can't be read: {error.strerror}") from error
    key = metadata_key(role, int(number))
    held: Held[Any] = parse(Root, key, raw) if role == "root" else parse(Targets, key, raw)
    if held.version != int(number):
        raise SigningError(f"{path}: says it is version {held.version}")
    return held


def add_signatures(bench: Workbench, path: Path) -> str:
    """Add a signature by every key at hand that may sign; the line says how many there are now."""
    held = read_pending(path)
    role = held.signed.type
    delegators = _delegators(bench, held)
    named: dict[str, Key] = {}
    for delegator in delegators:
        named |= documents.keys_of(delegator, role)
    missing = {keyid: key for keyid, key in named.items() if keyid not in held.metadata.signatures}
    added = []
    for signer in bench.keyring.at_hand(missing):
        try:
            held.metadata.sign(signer, append=True)
        except UnsignedMetadataError as error:
            raise SigningError(f"{path}: key {short(signer.public_key.keyid)}: {error}") from error
        added.append(short(signer.public_key.keyid))
    if added:
        replace_file(path, held.metadata.to_bytes())
    return f"{path}: signed with {', '.join(added) or 'no further key'}; {_count(held, delegators)}"


def describe_pending(bench: Workbench) -> list[str]:
    """One line for each file that waits."""
    lines = []
    for path in pending_files(bench):
        held = read_pending(path)
        lines.append(f"{path}: {_count(held, _delegators(bench, held))}")
    return lines


def publish_pending(bench: Workbench) -> list[str]:
    """Publish what has all its signatures, then sign what hosts read as far as keys are at hand."""
    lines = []
    for path in pending_files(bench):
        held = read_pending(path)
        if not _is_complete(held, _delegators(bench, held)):
            lines.append(f"{path}: not published; {_count(held, _delegators(bench, held))}")
            continue
        if held.signed.type == "targets" and any(other.name.endswith(".root.json") for other in pending_files(bench)):
            lines.append(f"{path}: not published; waits for the root")
            continue
        view = bench.view()
        if held.signed.type == "root":
            _check_root(bench, path, held, view)
        else:
            _check_targets(bench, path, held, view)
        bench.kept.keep_file(held.key, held.raw)
        if not bench.store.put_if_absent(held.key, held.raw) and bench.store.get(held.key) != held.raw:
            raise SigningError(f"{held.key}: somebody else published another one; look at it, then delete {path}")
        path.unlink()
        lines.append(f"{held.key}: published")
    if not any(line.endswith("published") for line in lines):
        return lines
    return [*lines, *_sign_online(bench)]


def current_targets(bench: Workbench) -> tuple[View, Held[Targets]]:
    """What changes start from; SigningError if there is no channel."""
    view = bench.view()
    held = view.targets or view.named_targets
    if held is None:
        raise bench.no_channel()
    return view, held


def _sign_online(bench: Workbench) -> Sequence[str]:
    try:
        return StoreChannel(bench).refresh()
    except StrikeforgeError as error:
        return [
            f"what hosts read isn't signed anew yet: {error}",
            "run `python -m pipelines.channel.refresh` where the online keys are; until then hosts keep what they have",
        ]


def _delegators(bench: Workbench, held: Held[Any]) -> list[Root]:
    """The roots that must accept a file: of a root the one before and itself, of targets the newest."""
    kept: list[Root] = [root.signed for root in bench.kept.roots()]
    if held.signed.type == "root":
        if held.version > 1 and len(kept) < held.version - 1:
            raise SigningError(
                f"{held.key}: the root before it isn't kept in {bench.kept.folder}: bring the whole folder along"
            )
        return [*kept[held.version - 2 : held.version - 1], held.signed] if held.version > 1 else [held.signed]
    waiting = [read_pending(path).signed for path in bench.kept.pending.glob("*.root.json")]
    newest: Mapping[int, Root] = {root.version: root for root in (*kept, *waiting)}
    if not newest:
        raise SigningError(f"{held.key}: no root is kept in {bench.kept.folder}: bring the whole folder along")
    return [newest[max(newest)]]


def _is_complete(held: Held[Any], delegators: Sequence[Root]) -> bool:
    return all(is_signed(delegator, held.signed.type, held) for delegator in delegators)


def _count(held: Held[Any], delegators: Sequence[Root]) -> str:
    role = held.signed.type
    parts = []
    for delegator in delegators:
        result = delegator.get_verification_result(role, held.metadata.signed_bytes, held.metadata.signatures)
        who = f"root {delegator.version}" if delegator is not held.signed else "itself"
        need = f", may still sign: {', '.join(map(short, result.unsigned))}" if result.missing else ""
        parts.append(f"{len(result.signed)} of the {result.threshold} signatures that {who} wants{need}")
    return "; ".join(parts)


def _check_root(bench: Workbench, path: Path, held: Held[Root], view: View) -> None:
    known = view.roots[: held.version - 1]
    if len(known) < held.version - 1:
        raise SigningError(
            f"{path}: {bench.store!r} has {len(view.roots)} roots only; publish into the channel's store"
        )
    if len(view.roots) >= held.version and view.roots[held.version - 1].raw != held.raw:
        raise SigningError(f"{path}: there is another root {held.version} already; delete this one and propose anew")
    accept_root(known, held)


def _check_targets(bench: Workbench, path: Path, held: Held[Targets], view: View) -> None:
    if not view.roots:
        raise bench.no_channel()
    if not is_signed(view.root, "targets", held):
        raise SigningError(f"{path}: root {view.root.version} wants other signatures; publish the pending root first")
    follows = held.signed.unrecognized_fields.get(FOLLOWS_FIELD)
    newest = view.targets or view.named_targets
    counting = newest.version if newest is not None else 0
    if counting not in (follows, held.version):
        raise SigningError(f"{path}: follows targets {follows}, the newest are {counting}; delete it and propose anew")
