"""Spoilt stores, first part: bytes, signatures, versions, expiries and roots that aren't what they must be."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from serving.errors import StoreError
from tests.forged import (
    READ_ROLES,
    Edit,
    Files,
    Json,
    described,
    envelope,
    holders,
    keys,
    moment,
    signature,
    threshold,
    time_text,
)
from tests.forgery import (
    RELEASE,
    TINY,
    Forgery,
    flipped,
    latest_key,
    moments,
    read_files,
    replaced,
    sealed,
    signed_anew,
    whole,
    without,
)

FLIPS = 8
ROLES_BELOW_ROOT = tuple(role for role in READ_ROLES if role != "root")
NAMED_BY_HASH = ("targets", TINY, "snapshot")


def places(raw: bytes, count: int = FLIPS) -> list[int]:
    return [(2 * index + 1) * len(raw) // (2 * count) for index in range(count)]


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not isinstance(value, (dict, list)):
        yield path
    for name, inner in items:
        yield from _leaves(inner, (*path, name))


def _changed(raw: bytes, path: tuple[Any, ...]) -> bytes:
    """The metadata with one value of its signed part changed, the signatures as they were."""
    value = json.loads(raw)
    inner = value["signed"]
    for name in path[:-1]:
        inner = inner[name]
    old = inner[path[-1]]
    inner[path[-1]] = (not old) if isinstance(old, bool) else old + 1 if isinstance(old, int) else f"{old}0"
    return json.dumps(value, separators=(",", ":")).encode()


def damaged() -> Iterator[Forgery]:
    """Bytes changed by somebody without a key."""
    for key, raw, named in read_files():
        for place in places(raw):
            yield Forgery("flipped", f"{key} byte {place}", named, partial(replaced, key, flipped(raw, place)))
        for length in (1, len(raw) // 2, len(raw) - 1):
            yield Forgery("truncated", f"{key} to {length}", named, partial(replaced, key, raw[:length]))
        yield Forgery("emptied", key, named, partial(replaced, key, b""))
        for tail in (b"\0", b"{}", b"x" * (1 << 20)):
            what = f"{key} by {len(tail)} bytes {tail[:2]!r}"
            yield Forgery("extended", what, named, partial(replaced, key, raw + tail))
        yield Forgery("missing", key, "channel/" if key.endswith("root.json") else named, partial(without, key))
    for role in READ_ROLES:
        raw = sealed(3)[latest_key(role)]
        for path in _leaves(json.loads(raw)["signed"]):
            what = f"{role} {'.'.join(map(str, path))}"
            spoilt = _changed(raw, path)
            named = re.escape(latest_key(role))
            yield Forgery("value changed", what, named, partial(replaced, latest_key(role), spoilt))
            if role in ("targets", TINY):  # the parents signed anew over it: only its own signature is wrong now
                after: dict[str, Callable[[bytes], bytes]] = {role: lambda _, spoilt=spoilt: spoilt}
                yield Forgery("value changed, named anew", what, named, partial(signed_anew, after=after))
    for role in NAMED_BY_HASH:
        key = latest_key(role)
        pretty = json.dumps(json.loads(sealed(3)[key]), indent=1).encode()
        yield Forgery("written otherwise", key, re.escape(key), partial(replaced, key, pretty))


def swapped() -> Iterator[Forgery]:
    """One file's bytes in another's place, among metadata and among content."""
    latest = sealed(3)
    for group in ([latest_key(role) for role in READ_ROLES], moments()[2].read_content):
        for key in group:
            for other in group:
                if latest[other] != latest[key]:
                    named = re.escape(key)
                    yield Forgery("swapped", f"{other} as {key}", named, partial(replaced, key, latest[other]))


def replayed() -> Iterator[Forgery]:
    """Files of earlier moments, each properly signed in its time."""
    first, second, third = moments()
    for role in READ_ROLES:
        for number, old in ((1, first), (2, second)):
            if (role, number) == ("timestamp", 2):
                continue  # the host has that very timestamp: nothing new, nothing wrong
            raw = sealed(number)[old.key(role)]
            yield Forgery("replayed", f"{role} of {number}", "channel/", partial(replaced, third.key(role), raw))
    choices = [(a, b, c, d) for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3) for d in (1, 2, 3)]
    for chosen in choices:
        if chosen != (3, 3, 3, 3):
            names = ("root", "targets", TINY, "snapshot")
            of = dict(zip(names, chosen, strict=True))
            mixed = {third.key(role): sealed(number)[moments()[number - 1].key(role)] for role, number in of.items()}
            what = ", ".join(f"{role} of {number}" for role, number in of.items())
            yield Forgery("mixed", what, "channel/", partial(lambda mixed: {**whole(), **mixed}, mixed))
    for role in ("targets", TINY):  # whoever holds the keys of snapshot and timestamp names a role's old version anew

        def back(signed: Json, role: str = role) -> None:
            signed["meta"][f"{role}.json"] = {"version": 100, **described(sealed(1)[first.key(role)])}

        lowered = partial(signed_anew, edit={"snapshot": back})
        yield Forgery("version lowered", f"{role} in snapshot", "snapshot", lowered)
    for role in ROLES_BELOW_ROOT:
        lower = {role: lambda signed: signed.update(version=150)}
        yield Forgery("version lowered", f"{role} to 150, all signed", "channel/", partial(signed_anew, edit=lower))
    for version in (0, -1, 3.0, "300", True, None):
        for role in ROLES_BELOW_ROOT:
            if not isinstance(version, float):  # can't be signed at all
                odd = {role: partial(lambda signed, version: signed.update(version=version), version=version)}
                what = f"{role} version {version!r}"
                yield Forgery("unusable version", what, "channel/", partial(signed_anew, edit=odd))


def expired() -> Iterator[Forgery]:
    """Properly signed, but too late."""
    for age in (timedelta(seconds=1), timedelta(hours=1), timedelta(days=1), timedelta(days=4000)):
        past = datetime.now(UTC) - age

        def edit(signed: Json, past: datetime = past) -> None:
            signed["expires"] = time_text(past)

        def edit_release(values: Json, past: datetime = past) -> None:
            values["expires_at"] = past.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

        for role in READ_ROLES:
            named = "channel/root: has expired" if role == "root" else f"{role}.*has expired"
            yield Forgery("expired", f"{role} for {age}", named, partial(signed_anew, edit={role: edit}))
        late = partial(lambda edit: signed_anew(moment(3, edit_release=edit)), edit_release)
        yield Forgery("expired", f"release for {age}", f"{RELEASE}: release 6 expired", late)


def wrong_signatures() -> Iterator[Forgery]:
    """Signed by others than those who may, by too few, or twice by the same."""
    rightful = {role: holders(role, 3)[: threshold(role)] for role in READ_ROLES}
    names = [name for name in keys() if name not in ("root3", "targets3")]
    for role in READ_ROLES:
        key = re.escape(latest_key(role))
        for name in names:
            if name not in rightful[role]:
                both = [(rightful[role][0], name), (name, name)] if threshold(role) == 2 else []
                for signers in [(name,), *both]:
                    what = f"{role} by {', '.join(signers)}"
                    yield Forgery("wrong key", what, key, partial(signed_anew, signers={role: signers}))
        yield Forgery("unsigned", role, key, partial(signed_anew, signers={role: ()}))
        for name in rightful[role] if threshold(role) == 2 else ():
            alone, twice = (partial(signed_anew, signers={role: (name,) * count}) for count in (1, 2))
            yield Forgery("below threshold", f"{role} by {name} alone", key, alone)
            yield Forgery("counted twice", f"{role} by {name}", key, twice)
            for other in rightful[role]:
                if other != name:

                    def doubled(raw: bytes, name: str = name, other: str = other) -> bytes:
                        signed = json.loads(raw)["signed"]
                        mine = signature(signed, name)
                        return envelope(signed, [mine, {**mine, "keyid": keys()[other].public_key.keyid}])

                    what = f"{role} by {name}, once as {other}"
                    yield Forgery("counted twice", what, key, partial(signed_anew, after={role: doubled}))
    for signers in (("targets1", "targets2"), ("targets1", "targets3")):  # targets1 is revoked by root 3
        yield Forgery(
            "revoked key", f"targets by {signers}", "targets", partial(signed_anew, signers={"targets": signers})
        )


def oversized() -> Iterator[Forgery]:
    """Properly signed metadata that is larger than a host reads, or that no parser should follow."""
    sizes = {"root": 600_000, "timestamp": 20_000, "snapshot": 2_100_000, "targets": 5_100_000, TINY: 5_100_000}
    for role, size in sizes.items():

        def edit(signed: Json, size: int = size) -> None:
            signed["padding"] = "x" * size

        def hide(signed: Json, role: str = role) -> None:
            if role != "snapshot":
                signed["meta"][f"{role}.json"].pop("length", None)
            else:
                signed["meta"]["snapshot.json"].pop("length")

        parent = {"snapshot": "timestamp", "targets": "snapshot", TINY: "snapshot"}.get(role)
        edits: dict[str, Edit] = {role: edit} | ({parent: hide} if parent else {})
        yield Forgery("oversized", role, f"{role}.json: is longer", partial(signed_anew, edit=edits))
    for role in READ_ROLES:
        for what, raw in {"nested": b"[" * 9_000, "not UTF-8": b'{"\xff"', "a number": b"1", "null": b"null"}.items():
            key = latest_key(role)
            yield Forgery("oversized", f"{role} {what}", re.escape(key), partial(replaced, key, raw))


def roots() -> Iterator[Forgery]:
    """The chain of roots, as a host that has pulled nothing yet and one that has follow it."""
    second, key = sealed(2)["channel/2.root.json"], "channel/2.root.json"
    named = re.escape(key)
    for place in places(second):
        spoilt = partial(replaced, key, flipped(second, place))
        yield Forgery("root chain", f"2 flipped at {place}", named, spoilt, True)
    for number in (1, 3):
        other = sealed(number)[f"channel/{number}.root.json"]
        yield Forgery("root chain", f"{number} as 2", named, partial(replaced, key, other), True)
    yield Forgery("root chain", "2 is missing", "channel/", partial(without, key), True)

    def root_2(*signers: str) -> Files:
        old = copy.copy(moments()[1])
        old.signers = {"root": signers}
        return {**whole(), key: old.seal()[key]}

    for signers in (("root1",), ("root3",), ("root1", "root3"), ("root2", "root3"), ("stranger", "root1"), ()):
        what = f"2 signed by {', '.join(signers) or 'nobody'}"
        yield Forgery("root chain", what, named, partial(root_2, *signers), True)
    jump: Edit = lambda signed: signed.update(version=4)  # noqa: E731
    yield Forgery("root chain", "3 says it is 4", "channel/3.root.json", partial(signed_anew, edit={"root": jump}))
    seize: Edit = lambda signed: signed["roles"]["root"].update(threshold=3)  # noqa: E731
    yield Forgery("root chain", "3 wants three keys", "3.root.json", partial(signed_anew, edit={"root": seize}))
    unversioned: Edit = lambda signed: signed.update(consistent_snapshot=False)  # noqa: E731
    yield Forgery("root chain", "3 without versions", "channel/", partial(signed_anew, edit={"root": unversioned}))
    development = {"x-strikeforge-kind": "development"}
    turned: Edit = lambda signed: signed.update(development)  # noqa: E731
    yield Forgery("root chain", "3 is for development", "development root", partial(signed_anew, edit={"root": turned}))

    def other_root() -> bytes:
        mine = moment(1, root_fields={"note": "another"})
        return mine.seal()["channel/1.root.json"]

    def self_made() -> bytes:
        mine = moment(1)
        mine.signers = {"root": ("stranger",)}
        return mine.seal()["channel/1.root.json"]

    def kind() -> bytes:
        return moment(1, root_fields=development).seal()["channel/1.root.json"]

    given: dict[str, tuple[Callable[[], bytes], str]] = {
        "another root 1": (other_root, "root file .*isn't the root 1"),
        "a development root": (kind, "root file .*development root"),
        "a root nobody signed": (self_made, "root file "),
        "targets": (lambda: sealed(1)["channel/100.targets.json"], "root file .*not a root"),
        "no JSON": (lambda: b"trust me", "root file .*isn't TUF root metadata"),
        "empty": (lambda: b"", "root file .*isn't TUF root metadata"),
        "too long": (lambda: b" " * 600_000, "root file .*longer"),
    }
    for what, (raw, reason) in given.items():
        yield Forgery("root file", what, reason, whole, root=raw)
        if what not in ("another root 1",):
            yield Forgery("root file", f"{what}, first pull", reason, whole, True, raw)


def links() -> Iterator[Forgery]:
    """Symbolic links in a folder store, to the very content that belongs there."""

    def move(folder: Path, name: str) -> None:
        outside = folder.with_name("outside")
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    third = moments()[2]
    places = [key for key, _, _ in read_files()] + ["channel", "releases", f"bundles/{third.bundle}", "bundles"]
    for name in places:
        yield Forgery("symbolic link", name, "symbolic link", whole, spoil=partial(move, name=name), refusal=StoreError)
