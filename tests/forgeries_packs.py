"""Spoilt stores, third part: engine packs that everybody signed, and that still mustn't be installed.

Bytes of packs that were changed by somebody without a key are among the first part's: a pack's files are read like any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.forged import PACKED, Edit, Files, Json, bundle_files, moment, pack_files, sha256
from tests.forgery import Forgery, moments, replaced, sealed, signed_anew
from tests.zip_bombs import bombs

KIND = "engine pack"
REFUSED = f"engine pack {PACKED} is refused"


def _packed(pack: Callable[..., Files] = pack_files, **changes: Any) -> Files:
    return signed_anew(moment(3, pack=pack, **changes))


def _edited(edit: Edit, changed: dict[str, bytes] | None = None) -> Files:
    return _packed(lambda bundle: pack_files(bundle, changed, edit))


def indices() -> Iterator[Forgery]:
    """A `pack.json` that says what it mustn't."""
    another = {name: sha256(raw) for name, raw in bundle_files(2).items() if name.endswith(".onnx")}
    values: dict[str, tuple[str, object]] = {
        "of no bundle": ("bundle_sha256", "0" * 64),
        "of the bundle before": ("bundle_sha256", sha256(bundle_files(2)["manifest.json"])),
        "for another target": ("target", "native_bf16"),
        "for a target that escapes": ("target", "../native_fp32"),
        "for a target without a name": ("target", ""),
        "format 2": ("format", 2),
        "format true": ("format", True),
        "of an unknown back end": ("backend", "guess"),
        "in an unknown precision": ("precision", "fp12"),
        "no SM": ("sm", "89"),
        "runtime is a text": ("runtime", "1"),
        "no version": ("runtime", {"library": "strikeforge", "version": ""}),
        "another version, the same key": ("runtime", {"library": "strikeforge", "version": "2"}),
        "another configuration, the same key": ("configuration", {"semantics": "stateful"}),
        "configuration is a list": ("configuration", []),
        "compiled from nothing": ("onnx_sha256", {}),
        "compiled from another net, the same key": ("onnx_sha256", another),
        "compiled from what escapes": ("onnx_sha256", {"../x.onnx": "0" * 64}),
        "a key of its own": ("key", "0" * 64),
        "ran, says nobody knows": ("executed", None),
        "parity without having run": ("parity", [{"name": "iv", "difference": 0.0, "tolerance": 1.0}]),
        "latency without having run": ("latency", {"step": 1.0}),
        "latency beyond numbers": ("latency", {"step": 10**400}),
        "notes are a text": ("notes", "note"),
        "no files": ("files", {}),
        "files are a list": ("files", []),
        "an enormous file": ("files", {"golden.npz": {"sha256": "0" * 64, "size": 1 << 45}}),
        "five files of a gigabyte": ("files", {str(n): {"sha256": "0" * 64, "size": 1 << 30} for n in range(5)}),
        "too many files": ("files", {f"file-{n}": {"sha256": "0" * 64, "size": 1} for n in range(257)}),
    }
    for what, (name, value) in values.items():
        edit = partial(lambda index, name, value: index.update({name: value}), name=name, value=value)
        yield Forgery(KIND, what, REFUSED, partial(_edited, edit))
    for name in json.loads(pack_files(bundle_files(3))["pack.json"]):
        gone = partial(lambda index, name: index.pop(name), name=name)
        yield Forgery(KIND, f"without {name}", REFUSED, partial(_edited, gone))
    yield Forgery(KIND, "one field more", REFUSED, partial(_edited, lambda index: index.update(more=1)))

    def other_nets(index: Json) -> None:
        index["onnx_sha256"] = another
        index["key"] = sha256(_canonical([another, {}, "1", None, "fp32"]))

    yield Forgery(KIND, "compiled from another net", f"{REFUSED}: .*compiled from", partial(_edited, other_nets))
    for what, change in {
        "pretty": lambda raw: json.dumps(json.loads(raw), indent=1).encode(),
        "without newline": lambda raw: raw.rstrip(),
        "a list": lambda _: b"[]\n",
        "no JSON": lambda _: b"pack\n",
        "nested": lambda _: b"[" * 30_000 + b"]" * 30_000 + b"\n",
        "not UTF-8": lambda _: b"\xff\xfe",
        "empty": lambda _: b"",
        "too long": lambda raw: raw + b" " * (1 << 20),
    }.items():
        made = partial(_packed, partial(_rewritten, change))
        yield Forgery(KIND, f"pack.json {what}", r"pack\.json|engine pack", made)


def _rewritten(change: Callable[[bytes], bytes], bundle: Files) -> Files:
    files = pack_files(bundle)
    return {**files, "pack.json": change(files["pack.json"])}


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def contents() -> Iterator[Forgery]:
    """Files of packs: names that escape, bombs, and what isn't what `pack.json` says."""
    for name in ("../x", "/etc/passwd", "a/../../x", "..", "C:\\x", "a\\b", "a\0b", "a/b/c", ".hidden", "", "a/", "é"):

        def named(index: Json, name: str = name) -> None:
            index["files"][name] = index["files"]["golden.npz"]

        yield Forgery("path escape", f"pack {name!r}", f"{REFUSED}: file name", partial(_edited, named))
    for name in ("pack.json", "manifest.json", "GOLDEN.npz", "golden.npz/x"):

        def clashing(index: Json, name: str = name) -> None:
            index["files"][name] = index["files"]["golden.npz"]

        yield Forgery("path escape", f"pack lists {name}", f"{REFUSED}: .*file name", partial(_edited, clashing))
    for what, bomb in bombs().items():
        made = partial(lambda bomb: _packed(lambda bundle: pack_files(bundle, {"golden.npz": bomb()})), bomb)
        yield Forgery("zip bomb", f"pack: {what}", REFUSED, made)
    for name in ("golden.npz", "member-0/weights"):
        for what, change in {
            "one byte longer": lambda entry: entry.update(size=entry["size"] + 1),
            "one byte shorter": lambda entry: entry.update(size=entry["size"] - 1),
            "another hash": lambda entry: entry.update(sha256="0" * 64),
        }.items():
            edit = partial(lambda index, name, change: change(index["files"][name]), name=name, change=change)
            yield Forgery(KIND, f"{name}: {what}", name, partial(_edited, edit))
    extra: Edit = lambda index: index["files"].update(other={"sha256": "0" * 64, "size": 1})  # noqa: E731
    yield Forgery(KIND, "a file nobody signed", "doesn't sign", partial(_edited, extra))


def named_by_releases() -> Iterator[Forgery]:
    """Releases that name another pack than they may."""
    third, second = moments()[2], moments()[1]
    mine, before = (_pack_of(one.content) for one in (third, second))
    packs: dict[str, tuple[object, str]] = {
        "nobody signed": ({PACKED: "0" * 64}, "doesn't sign"),
        "of the release before": ({PACKED: before}, "doesn't sign"),
        "for another target": ({"native_bf16": mine}, "engine pack native_bf16 is refused"),
        "for two targets": ({PACKED: mine, "native_bf16": mine}, "engine pack native_bf16 is refused"),
        "for a target that escapes": ({"../x": mine}, "release file: unusable packs"),
        "for a target with a folder": ({"native_/x": mine}, "release file: unusable packs"),
        "without a hash": ({PACKED: ""}, "release file: unusable packs"),
        "by a path": ({PACKED: "../../bundles"}, "release file: unusable packs"),
        "none, in format 2": ({}, "release file: unusable packs"),
        "as a list": ([mine], "release file: unusable packs"),
        "too many": ({f"native_{number}": mine for number in range(65)}, "release file: unusable packs"),
    }
    for what, (value, reason) in packs.items():
        edit = partial(lambda values, value: values.update(packs=value), value=value)
        yield Forgery(KIND, f"released: {what}", reason, partial(_packed, edit_release=edit))
    older: Edit = lambda values: values.update(format=1)  # noqa: E731
    yield Forgery(KIND, "released: in format 1", "release file", partial(_packed, edit_release=older))
    played = partial(_packed, lambda _: pack_files(bundle_files(2)))
    yield Forgery(KIND, "released: of the bundle before, signed anew", REFUSED, played)
    for name in ("pack.json", "golden.npz", "member-0/weights"):
        key = f"packs/{mine}/{name}"
        old = sealed(2)[f"packs/{before}/{name}"]
        if old != sealed(3)[key]:
            yield Forgery("replayed", f"{name} of the pack before", key, partial(replaced, key, old))


def _pack_of(content: Files) -> str:
    return next(key.split("/")[1] for key in content if key.startswith("packs/"))
