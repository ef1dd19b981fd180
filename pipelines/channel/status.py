"""The channel in plain text: roles, keys, thresholds, versions, expiries, what is due, what waits for signatures.

Data in: the store's channel, verified; the keys folder's public side. Data out: lines. Invariants: no private key is
opened and nothing is written.

Run: python -m pipelines.channel.status [signing=production]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuf.api.metadata import Root, Targets

from pipelines.channel import documents
from pipelines.channel.ceremony import describe_pending
from pipelines.channel.commands import ChannelCommand, channel_command
from pipelines.channel.content import expiry_note, released_number
from pipelines.channel.keys import short
from pipelines.channel.metadata import Held, View, delegated_roles, kind_of, read_model
from pipelines.channel.workbench import Workbench
from pipelines.errors import SigningError
from serving.release import release_target, role_of

HEADINGS = ("role", "keys needed", "key ids", "version", "expires (UTC)", "")


def status(bench: Workbench) -> list[str]:
    """A table, then what waits; SigningError if there should be a channel and there is none."""
    view = bench.view()
    waiting = [f"waits: {line}" for line in describe_pending(bench)]
    if not view.roots:
        if not waiting and (bench.kept.roots() or not bench.is_development):
            raise bench.no_channel()
        return [f"{bench.store!r}: there is no channel yet", *waiting]
    rows: list[tuple[str, ...]] = [HEADINGS]
    held: dict[str, Held[Any] | None] = {
        "root": view.roots[-1], "targets": view.targets, "snapshot": view.snapshot, "timestamp": view.timestamp,
    }  # fmt: skip
    rows += [_row(bench, view.root, role, held[role]) for role in documents.ROLES]
    if view.targets is not None:
        targets = view.targets.signed
        rows += [_model_row(bench, view, targets, role) for role in delegated_roles(targets)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = f"{kind_of(view.root)} channel of {bench.store!r}, root {view.root.version}"
    if view.snapshot is None:
        waiting.insert(0, "hosts find nothing yet: the first promotion, or refresh, signs snapshot and timestamp")
    elif not view.settled:
        waiting.insert(0, f"what hosts read isn't signed as root {view.root.version} wants it: refresh")
    return [head, *table, *waiting]


def offline_warnings(bench: Workbench, view: View) -> list[str]:
    """A line for root and targets if people must renew them soon; SigningError once one has expired."""
    if bench.is_development or not view.roots:
        return []
    lines: list[str] = []
    expired: list[str] = []
    offline: dict[str, Held[Any] | None] = {"root": view.roots[-1], "targets": view.targets}
    for role, held in offline.items():
        if held is None or not documents.is_due(held, bench.signing.lifetime(role), bench.now()):
            continue
        ends = f"{held.signed.expires:%Y-%m-%d}"
        line = f"{role}: expires {ends}: `python -m pipelines.channel.rotate role={role}` renews it"
        (expired if held.signed.is_expired(bench.now()) else lines).append(line)
    if expired:
        raise SigningError("\n  - ".join(["hosts refuse the channel, what people must sign has expired:", *expired]))
    return lines


def release_warnings(bench: Workbench, view: View) -> list[str]:
    """A line for every model whose release hosts refuse, or soon will: only a new decision helps."""
    lines = []
    for role in delegated_roles(view.targets.signed) if view.targets is not None else ():
        held = read_model(bench.store, view, role)
        number = released_number(held.signed, role.removeprefix(role_of(""))) if held is not None else None
        if held is not None and number is not None:
            note = expiry_note(number, _expires_at(held.signed, role), bench.signing.release_lifetime, bench.now())
            lines += [f"{role}: {note}"] if note else []
    return lines


def _expires_at(targets: Targets, role: str) -> str:
    custom = targets.targets[release_target(role.removeprefix(role_of("")), "champion")].custom or {}
    return str(custom["expires_at"])


def _row(bench: Workbench, by: Root | Targets, role: str, held: Held[Any] | None) -> tuple[str, ...]:
    keys = documents.keys_of(by, role)
    who = (role, f"{documents.threshold_of(by, role)} of {len(keys)}", " ".join(map(short, keys)))
    if held is None:
        return (*who, "-", "-", "not signed")
    note = ""
    if held.signed.is_expired(bench.now()):
        note = "EXPIRED"
    elif documents.is_due(held, bench.signing.lifetime(role), bench.now()):
        note = "due"
    return (*who, str(held.version), f"{held.signed.expires:%Y-%m-%d %H:%M}", note)


def _model_row(bench: Workbench, view: View, targets: Targets, role: str) -> tuple[str, ...]:
    held = read_model(bench.store, view, role)
    row = _row(bench, targets, role, held)
    if held is None:
        return row
    model = role.removeprefix(role_of(""))
    number = released_number(held.signed, model)
    if number is None:
        return (*row[:-1], f"{row[-1]} no release".strip())
    ends = _expires_at(held.signed, role)
    late = expiry_note(number, ends, bench.signing.release_lifetime, bench.now())
    until = f"EXPIRED {ends[:10]}" if "EXPIRED" in late else f"until {ends[:10]}{': soon' if late else ''}"
    return (*row[:-1], f"{row[-1]} release {number}, {until}".strip())


def run(cfg: ChannelCommand) -> Sequence[str]:
    """Show the channel of the store."""
    return status(cfg.bench)


if __name__ == "__main__":
    raise SystemExit(channel_command(__doc__, run))
