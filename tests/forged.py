"""A signed store made by hand, at three moments, so that any part of it can be forged (tests/forgeries.py).

Written from the layout of the channel alone, with securesystemslib's keys and canonical JSON: nothing of the code that
publishes channels is used, so a mistake there isn't repeated here. The metadata are plain dictionaries that are signed
as they are, also where TUF's own classes would refuse them.

    moment   root   others   release   bundle    what changed
    1        1      100      4         first
    2        2      200      5         second    one more root key
    3        3      300      6         third     one of the two targets keys replaced, so that root 3 is needed

Each release has one engine pack, which hosts take unasked.

Root and targets have a threshold of two keys and carry exactly two signatures, the others one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner

from serving.canonical import canonical_json
from serving.release import ReleaseFile
from tests.tiny_bundle import npz_bytes, tiny_bundle

MODEL, OTHER = "tiny", "other"
ROLES = ("root", "targets", f"model-{MODEL}", f"model-{OTHER}", "snapshot", "timestamp")
READ_ROLES = ("root", "targets", f"model-{MODEL}", "snapshot", "timestamp")  # those a host of MODEL reads
PACKED = "native_fp32"  # the target of the release's engine pack
KEY_NAMES = ("root1", "root2", "root3", "targets1", "targets2", "targets3", *ROLES[2:], "stranger")
FAR = timedelta(days=30)

Json = dict[str, Any]
Files = dict[str, bytes]
Edit = Callable[[Json], object]


@cache
def keys() -> dict[str, CryptoSigner]:
    """Every key, by name; made anew in each process."""
    return {name: CryptoSigner.generate_ed25519() for name in KEY_NAMES}


def holders(role: str, moment: int) -> tuple[str, ...]:
    """Names of the keys that may sign a role."""
    if role == "root":
        return ("root1", "root2", "root3")[: 2 if moment == 1 else 3]
    if role == "targets":
        return ("targets1", "targets2") if moment < 3 else ("targets2", "targets3")
    return (role,)


def threshold(role: str) -> int:
    return 2 if role in ("root", "targets") else 1


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def time_text(when: datetime) -> str:
    """As TUF writes times."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def described(raw: bytes) -> Json:
    return {"length": len(raw), "hashes": {"sha256": sha256(raw)}}


def signature(signed: Json, name: str) -> Json:
    signer = keys()[name]
    return {"keyid": signer.public_key.keyid, "sig": signer.sign(encode_canonical(signed).encode()).signature}


def envelope(signed: Json, signatures: Sequence[Json]) -> bytes:
    return json.dumps({"signatures": list(signatures), "signed": signed}, separators=(",", ":")).encode()


@dataclass
class Moment:
    """What the channel says at one time: the signed parts, editable, and the content they name."""

    number: int
    signed: dict[str, Json]
    content: Files
    release_key: str
    bundle: str = ""
    signers: dict[str, Sequence[str]] = field(default_factory=dict)

    def key(self, role: str) -> str:
        """Where the role's metadata lies."""
        if role == "timestamp":
            return "channel/timestamp.json"
        return f"channel/{self.number if role == 'root' else 100 * self.number}.{role}.json"

    def seal(
        self, *, edit: Mapping[str, Edit] | None = None, after: Mapping[str, Callable[[bytes], bytes]] | None = None
    ) -> Files:
        """Content and metadata, signed from the bottom up; each role's snapshot entry follows from its bytes.

        `edit` changes a role's signed part before it is signed, `after` its bytes before they are named above.
        """
        files, meta = dict(self.content), {}
        for role in ROLES:
            signed = copy.deepcopy(self.signed[role])
            if role == "snapshot":
                signed["meta"] = meta
            if role == "timestamp":
                raw = files[self.key("snapshot")]
                signed["meta"] = {"snapshot.json": {"version": 100 * self.number, **described(raw)}}
            ((edit or {}).get(role) or (lambda _: None))(signed)
            names = self.signers.get(role, holders(role, self.number)[: threshold(role)])
            raw = ((after or {}).get(role) or bytes)(envelope(signed, [signature(signed, name) for name in names]))
            files[self.key(role)] = raw
            if role not in ("root", "snapshot", "timestamp"):
                meta[f"{role}.json"] = {"version": signed.get("version"), **described(raw)}
        return files

    def target_key(self, target: str) -> str:
        """Where the content of one of MODEL's targets lies."""
        return self.release_key if target.endswith("/release.json") else target.removeprefix(f"{MODEL}/")

    @property
    def read_content(self) -> list[str]:
        """Keys of the content a host of MODEL reads."""
        return [self.target_key(target) for target in self.signed[f"model-{MODEL}"]["targets"]]


@cache
def bundle_files(seed: int) -> Mapping[str, bytes]:
    """Files of a small real bundle, manifest.json among them."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny_bundle(Path(folder) / "bundle", model=MODEL, seed=seed)
        return {name: bundle.read(name) for name in ("manifest.json", *bundle.manifest.files)}


def rebundled(files: Mapping[str, bytes], changed: Mapping[str, bytes], edit: Edit | None = None) -> Files:
    """The bundle with other files, its manifest made to fit, then edited."""
    made = {**files, **changed}
    manifest = json.loads(files["manifest.json"])
    manifest["files"] |= {name: {"sha256": sha256(raw), "size": len(raw)} for name, raw in changed.items()}
    (edit or (lambda _: None))(manifest)
    made["manifest.json"] = canonical_json(manifest)
    return made


def pack_files(
    bundle: Mapping[str, bytes], changed: Mapping[str, bytes] | None = None, edit: Edit | None = None
) -> Files:
    """An engine pack of the bundle, with other files, its `pack.json` made to fit, then edited."""
    onnx = {name: sha256(raw) for name, raw in bundle.items() if name.endswith(".onnx")}
    files = {"golden.npz": npz_bytes(iv=np.zeros(3)), "member-0/weights": b"packed" * 99} | dict(changed or {})
    index: Json = {
        "format": 1, "bundle_sha256": sha256(bundle["manifest.json"]), "target": PACKED, "backend": "native",
        "precision": "fp32", "runtime": {"library": "strikeforge", "version": "1"}, "sm": None, "configuration": {},
        "onnx_sha256": onnx, "key": sha256(canonical_json([onnx, {}, "1", None, "fp32"])), "executed": False,
        "parity": [], "latency": None, "notes": [],
        "files": {name: {"sha256": sha256(raw), "size": len(raw)} for name, raw in files.items()},
    }  # fmt: skip
    (edit or (lambda _: None))(index)
    return {**files, "pack.json": canonical_json(index)}


def moment(
    number: int,
    *,
    bundle: Mapping[str, bytes] | None = None,
    pack: Callable[[Mapping[str, bytes]], Files] | None = None,
    edit_release: Edit | None = None,
    release_bytes: Callable[[bytes], bytes] | None = None,
    custom: Callable[[Json], Any] | None = None,
    edit_statement: Callable[[Json], Any] | None = None,
    root_fields: Json | None = None,
) -> Moment:
    """One of the three moments; what is given changes the content before it is signed.

    `pack` makes another engine pack of the bundle's files.
    `edit_release` and `release_bytes` change the release file, `custom` what the metadata repeats of it (returned),
    `edit_statement` the provenance statement (returned: bytes as they are, else as JSON).
    """
    files = bundle if bundle is not None else bundle_files(number)
    name = sha256(files["manifest.json"])
    packed = (pack or pack_files)(files)
    pack_name = sha256(packed["pack.json"])
    statement: Any = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": f"bundles/{name}/manifest.json", "digest": {"sha256": name}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {"moment": number},
    }
    statement = edit_statement(statement) if edit_statement else statement
    statement = statement if isinstance(statement, bytes) else canonical_json(statement)
    report = canonical_json({"moment": number, "passed": True})
    now = datetime.now(UTC)
    release = ReleaseFile(
        model=MODEL, channel="champion", release=3 + number, kind="promoted", version=number, bundle=name,
        seq=3 * number, event=sha256(str(number).encode()), gate_report=sha256(report), provenance=sha256(statement),
        at="2025-01-01T00:00:00.000000Z", expires_at=(now + FAR).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        packs={PACKED: pack_name},
    )  # fmt: skip
    values = json.loads(release.to_bytes())
    if edit_release:
        edit_release(values)
        if values.keys() == json.loads(release.to_bytes()).keys():
            release = ReleaseFile(**{name: value for name, value in values.items() if name != "format"})
    repeated = custom(release.custom()) if custom else release.custom()
    raw = (release_bytes or bytes)(canonical_json(values))
    content = {
        f"releases/{sha256(raw)}.json": raw,
        f"provenance/{sha256(statement)}.json": statement,
        f"gate-reports/{sha256(report)}.json": report,
        **{f"bundles/{name}/{file}": data for file, data in files.items()},
        **{f"packs/{pack_name}/{file}": data for file, data in packed.items()},
    }
    targets = {f"{MODEL}/{key}": described(data) for key, data in content.items() if not key.startswith("releases/")}
    targets[f"{MODEL}/champion/release.json"] = {**described(raw), "custom": repeated}
    signed = _signed(number, now + FAR, targets, root_fields or {})
    return Moment(number, signed, content, f"releases/{sha256(raw)}.json", name)


def _signed(number: int, expires: datetime, targets: Json, root_fields: Json) -> dict[str, Json]:
    def part(kind: str, version: int, **rest: Any) -> Json:
        return {"_type": kind, "spec_version": "1.0.31", "version": version, "expires": time_text(expires), **rest}

    def public(names: Sequence[str]) -> Json:
        found = [keys()[name].public_key for name in names]
        return {key.keyid: key.to_dict() for key in found}

    def role_of(role: str) -> Json:
        return {"keyids": list(public(holders(role, number))), "threshold": threshold(role)}

    top = ("root", "targets", "snapshot", "timestamp")
    delegated = {
        "keys": public([f"model-{model}" for model in (MODEL, OTHER)]),
        "roles": [
            {
                "name": f"model-{model}",
                **role_of(f"model-{model}"),
                "terminating": True,
                "paths": [f"{model}/*/*", f"{model}/*/*/*", f"{model}/*/*/*/*"],
            }
            for model in (MODEL, OTHER)
        ],
    }
    all_keys = [name for role in top for name in holders(role, number)]
    version = 100 * number
    return {
        "root": part(
            "root", number, consistent_snapshot=True, keys=public(all_keys),
            roles={role: role_of(role) for role in top}, **root_fields,
        ),
        "targets": part("targets", version, targets={}, delegations=delegated),
        f"model-{MODEL}": part("targets", version, targets=targets),
        f"model-{OTHER}": part("targets", version, targets={}),
        "snapshot": part("snapshot", version, meta={}),
        "timestamp": part("timestamp", version, meta={}),
    }  # fmt: skip


def write_store(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A folder store that holds these blobs."""
    for key, raw in files.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return folder
