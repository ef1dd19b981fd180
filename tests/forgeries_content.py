"""Spoilt stores, second part: everything is signed by those who may, and still mustn't be installed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.forged import (
    MODEL,
    OTHER,
    Edit,
    Files,
    Json,
    bundle_files,
    moment,
    rebundled,
    sha256,
)
from tests.forgery import RELEASE, TINY, Forgery, flipped, moments, replaced, sealed, signed_anew
from tests.zip_bombs import bombs


def other_models() -> Iterator[Forgery]:
    """What another model's role, or a delegation that reaches too far, could do."""
    third = moments()[2]
    theirs, other = third.signed[TINY]["targets"], f"model-{OTHER}"

    def only(signed: Json, names: list[str], targets: Json) -> None:
        signed["targets"] = {name: targets[name] for name in names}

    empty: Edit = lambda signed: signed.update(targets={})  # noqa: E731
    everything = {TINY: empty, other: lambda signed: signed.update(targets=theirs)}
    yield Forgery("other model", "its role signs ours", "doesn't sign", partial(signed_anew, edit=everything))
    for gone in theirs:
        rest = [name for name in theirs if name != gone]
        edit = {TINY: partial(only, names=rest, targets=theirs), other: lambda signed: signed.update(targets=theirs)}
        yield Forgery("other model", f"its role signs {gone}", "doesn't sign", partial(signed_anew, edit=edit))
        left = {TINY: partial(only, names=rest, targets=theirs)}
        yield Forgery("target left out", gone, "doesn't sign", partial(signed_anew, edit=left))
    yield Forgery(
        "other model", "its metadata as ours", TINY, partial(replaced, third.key(TINY), sealed(3)[third.key(other)])
    )
    yield Forgery("other model", "its key", TINY, partial(signed_anew, signers={TINY: (other,)}))

    def widened(role: str, paths: list[str], first: bool = False) -> Edit:
        def edit(signed: Json) -> None:
            roles = signed["delegations"]["roles"]
            next(one for one in roles if one["name"] == role)["paths"] += paths
            if first:
                roles.reverse()

        return edit

    wide = {
        "other's role for ours": widened(other, [f"{MODEL}/*/*"]),
        "other's role for ours, first": widened(other, [f"{MODEL}/*/*", f"{MODEL}/*/*/*"], first=True),
        "other's role for all": widened(other, ["*/*/*"], first=True),
        "our role for other's": widened(TINY, [f"{OTHER}/*/*"]),
        "our role for all": widened(TINY, ["*"]),
        "not terminating": lambda s: s["delegations"]["roles"][0].update(terminating=False),
        "a role of another name": lambda s: s["delegations"]["roles"][1].update(name="anyone"),
        "paths by hash": lambda s: s["delegations"]["roles"][1].update(paths=None, path_hash_prefixes=["00"]),
        "no role": lambda s: s["delegations"].update(roles=[]),
        "a target signed by the top level": lambda s: s.update(targets={RELEASE: theirs[RELEASE]}),
        "our role left out": lambda s: s["delegations"]["roles"].pop(0),
    }
    for what, edit in wide.items():
        yield Forgery("delegation", what, "targets|doesn't sign", partial(signed_anew, edit={"targets": edit}))


def _refilled(**changes: Any) -> Files:
    return signed_anew(moment(3, **changes))


def release_files() -> Iterator[Forgery]:
    """Release files that every key has signed, and that still aren't what was asked for."""
    third = moments()[2]
    fields: Json = json.loads(third.content[third.release_key])
    for number in (1, 2, 3, 4):
        lower = partial(_refilled, edit_release=lambda values, number=number: values.update(release=number))
        yield Forgery("lower release", str(number), "release 5 is installed", lower)
    same = partial(_refilled, edit_release=lambda values: values.update(release=5))
    yield Forgery("lower release", "5 with other content", "release 5 is installed with other content", same)
    for model in (OTHER, "tiny2", "TINY", "../tiny", ""):
        edit = partial(lambda values, model: values.update(model=model), model=model)
        yield Forgery("wrong model", repr(model), "release", partial(_refilled, edit_release=edit))
    for channel in ("challenger", "Champion", "", None):
        edit = partial(lambda values, channel: values.update(channel=channel), channel=channel)
        yield Forgery("wrong channel", repr(channel), "channel", partial(_refilled, edit_release=edit))
    for name in moments()[2].signed[TINY]["targets"][RELEASE]["custom"]:
        for wrong in ("other", 0, None, [], {}):
            custom = partial(lambda said, name, wrong: {**said, name: wrong}, name=name, wrong=wrong)
            yield Forgery("custom", f"{name} {wrong!r}", "signed metadata says", partial(_refilled, custom=custom))
        gone = partial(lambda said, name: {k: v for k, v in said.items() if k != name}, name=name)
        yield Forgery("custom", f"without {name}", "signed metadata says", partial(_refilled, custom=gone))
    for said in (None, {}, [], "release 6", 6):
        custom = partial(lambda _, said: said, said=said)
        yield Forgery("custom", repr(said), "signed metadata says", partial(_refilled, custom=custom))
    for name, value in fields.items():
        dropped = partial(lambda values, name: values.pop(name), name=name)
        yield Forgery("release file", f"without {name}", "release file", partial(_refilled, edit_release=dropped))
        odd: Any = str(value) if not isinstance(value, str) else 1
        edit = partial(lambda values, name, odd: values.update({name: odd}), name=name, odd=odd)
        yield Forgery("release file", f"{name} {odd!r}", "release file", partial(_refilled, edit_release=edit))
    extra = partial(_refilled, edit_release=lambda values: values.update(more=1))
    yield Forgery("release file", "one field more", "release file: fields", extra)
    for what, change in {
        "pretty": lambda raw: json.dumps(json.loads(raw), indent=1).encode(),
        "without newline": lambda raw: raw.rstrip(),
        "a list": lambda _: b"[]\n",
        "no JSON": lambda _: b"release 6\n",
        "nested": lambda _: b"[" * 30_000 + b"]" * 30_000 + b"\n",
        "not UTF-8": lambda _: b"\xff\xfe",
        "empty": lambda _: b"",
        "too long": lambda raw: raw + b" " * (1 << 16),
    }.items():
        yield Forgery("release file", what, "release", partial(_refilled, release_bytes=change))
    canary = partial(_refilled, edit_release=lambda values: values.update(canary_percent=10))
    yield Forgery("release file", "for a tenth of the hosts", "meant for 10 %", canary)
    for name in ("provenance", "gate_report", "bundle"):
        elsewhere = partial(lambda values, name: values.update({name: "0" * 64}), name=name)
        what = f"names another {name}"
        yield Forgery("release file", what, "doesn't sign", partial(_refilled, edit_release=elsewhere))


def described_wrongly() -> Iterator[Forgery]:
    """Targets whose signed length or hash isn't the content's."""
    for target, entry in moments()[2].signed[TINY]["targets"].items():
        length, right = entry["length"], entry["hashes"]["sha256"]
        wrong = {
            "one longer": {"length": length + 1},
            "one shorter": {"length": length - 1},
            "empty": {"length": 0},
            "enormous": {"length": 1 << 45},
            "negative": {"length": -1},
            "another hash": {"hashes": {"sha256": flipped(right.encode(), 5).decode().replace("g", "0")}},
            "another file's hash": {"hashes": {"sha256": sha256(b"another")}},
            "no sha256": {"hashes": {"sha512": hashlib.sha512(b"").hexdigest()}},
            "no hash": {"hashes": {}},
            "a hash of another kind": {"hashes": {"sha256": "../../etc/passwd"}},
        }
        for what, change in wrong.items():
            edit = partial(lambda s, target, change: s["targets"][target].update(change), target=target, change=change)
            named = f"{re.escape(target)}|{re.escape(moments()[2].target_key(target))}|{TINY}"
            yield Forgery("length or hash", f"{target} {what}", named, partial(signed_anew, edit={TINY: edit}))


def bundles() -> Iterator[Forgery]:
    """Bundles that every key has signed, and that are none: names that escape, bombs, contents that don't fit."""
    files = bundle_files(3)
    out = ("../x", "/etc/passwd", "a/../../x", "..", "C:\\x", "a\\b", "a\0b")
    for name in (*out, "a/b/c", ".hidden", "", "a/", "é", "a" * 300):

        def named(manifest: Json, name: str = name) -> None:
            manifest["files"][name] = manifest["files"]["reference.npz"]

        made = partial(lambda edit: _refilled(bundle=rebundled(files, {}, edit)), named)
        yield Forgery("path escape", repr(name[:20]), "bundle is refused: file name", made)
    itself = partial(lambda: _refilled(bundle=rebundled(files, {"manifest.json": b"{}"})))
    yield Forgery("path escape", "manifest.json lists itself", "manifest.json", itself)
    edits: dict[str, Edit] = {
        "of another model": lambda manifest: manifest.update(model=OTHER),
        "one field more": lambda manifest: manifest.update(more=1),
        "one field less": lambda manifest: manifest.pop("semantics"),
        "format 2": lambda manifest: manifest.update(format=2),
        "no files": lambda manifest: manifest.update(files={}),
        "a member's file isn't listed": lambda manifest: manifest["files"].pop("member-0/head.onnx"),
        "an enormous file": lambda manifest: manifest["files"]["golden.npz"].update(size=1 << 45),
        "a file one byte longer": lambda m: m["files"]["golden.npz"].update(size=m["files"]["golden.npz"]["size"] + 1),
        "another hash": lambda manifest: manifest["files"]["golden.npz"].update(sha256="0" * 64),
    }
    for what, change in edits.items():
        made = partial(lambda change: _refilled(bundle=rebundled(files, {}, change)), change)
        yield Forgery("manifest", what, "manifest|golden", made)
    for name in ("golden.npz", "reference.npz"):
        for what, bomb in bombs().items():
            made = partial(lambda name, bomb: _refilled(bundle=rebundled(files, {name: bomb()})), name, bomb)
            yield Forgery("zip bomb", f"{name}: {what}", name, made)


def statements() -> Iterator[Forgery]:
    """Provenance of something else."""
    changes: dict[str, Callable[[Json], Any]] = {
        "no JSON": lambda _: b"built by me",
        "nested": lambda _: b"[" * 100_000,
        "a list": lambda _: [],
        "another type": lambda statement: {**statement, "_type": "https://in-toto.io/Statement/v0.1"},
        "no subject": lambda statement: {k: v for k, v in statement.items() if k != "subject"},
        "empty subject": lambda statement: {**statement, "subject": []},
        "subject is no list": lambda statement: {**statement, "subject": statement["subject"][0]},
        "another digest": lambda s: {**s, "subject": [{**s["subject"][0], "digest": {"sha256": "0" * 64}}]},
        "another name": lambda s: {**s, "subject": [{**s["subject"][0], "name": "bundles/x/manifest.json"}]},
        "no digest": lambda s: {**s, "subject": [{"name": s["subject"][0]["name"]}]},
    }
    for what, change in changes.items():
        yield Forgery("provenance", what, "provenance/", partial(_refilled, edit_statement=change))
