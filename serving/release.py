"""What a channel says is released: one small canonical file that binds a ledger's decision to a bundle's hash.

Data in and out: the exact bytes of `releases/<sha256>.json`. They follow from the ledger alone, so a lost channel is
rebuilt byte for byte. The signed channel names them as target `<model>/<channel>/release.json` and repeats `custom()`
in its own metadata; a host compares both.

Where content lies: the path of a target in the signed metadata is `<model>/<key in the store>`, so that a model's
delegated key can sign nothing of another model; only the release file, whose target path doesn't change, is found by
its hash.

A release with engine packs (serving/engine_pack.py) names them by target and sha256 and is of format 2; one without is
of format 1 and has no such field, so that releases from before there were packs keep their bytes.

Invariants: no unknown and no missing field; a release number is never used twice and only grows, also on a rollback.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from serving.canonical import canonical_json, is_model_name, is_sha256, parse_canonical
from serving.engine_pack import MAX_PACKS, is_target
from serving.errors import TrustError
from serving.events import TIME_FORMAT, is_time

RELEASE_FORMAT = 1
RELEASE_FORMAT_WITH_PACKS = 2
MAX_RELEASE_BYTES = 1 << 16
MAX_REPORT_BYTES = 4 << 20
MAX_STATEMENT_BYTES = 1 << 20
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
RELEASED_CHANNELS = ("champion",)
KINDS = ("promoted", "rolled_back")
RELEASE_LIFETIME = timedelta(days=90)


@dataclass(frozen=True, kw_only=True)
class ReleaseFile:
    """One release; `seq` and `event` (sha256 of its bytes) are the ledger's event that decided it.

    `expires_at` (UTC, TIME_FORMAT) is when hosts stop using it; `canary_percent` (1 to 100: TUF's JSON holds no
    fractions) the share of hosts meant. `packs`: sha256 of each engine pack by its target.
    """

    model: str
    channel: str
    release: int
    kind: str
    version: int
    bundle: str
    seq: int
    event: str
    gate_report: str
    provenance: str
    at: str
    expires_at: str
    canary_percent: int = 100
    packs: Mapping[str, str] = field(default_factory=dict)

    @property
    def format(self) -> int:
        """Follows from what there is to say."""
        return RELEASE_FORMAT_WITH_PACKS if self.packs else RELEASE_FORMAT

    def to_bytes(self) -> bytes:
        values = {name: getattr(self, name) for name in RELEASE_FIELDS - {"format"}} | {"format": self.format}
        return canonical_json(values | {"packs": dict(self.packs)} if self.packs else values)

    def custom(self) -> dict[str, Any]:
        """What the signed metadata repeats beside the release's hash."""
        names = ("model", "channel", "release", "version", "canary_percent", "expires_at")
        return {name: getattr(self, name) for name in names}

    def expired(self, now: datetime) -> bool:
        """Whether hosts must not start using it any more; `now` has a time zone."""
        return now >= datetime.strptime(self.expires_at, TIME_FORMAT).replace(tzinfo=UTC)


RELEASE_FIELDS = frozenset(item.name for item in dataclasses.fields(ReleaseFile)) - {"packs"} | {"format"}


def parse_release(raw: bytes) -> ReleaseFile:
    """The release of these bytes; TrustError naming what is wrong with them."""
    try:
        values = parse_canonical(raw)
    except ValueError as error:
        raise TrustError(f"release file: {error}") from error
    if not isinstance(values, dict) or values.keys() - {"packs"} != RELEASE_FIELDS:
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise TrustError(f"release file: fields {found}, expected {sorted(RELEASE_FIELDS)}")
    said = values.pop("format")
    release = ReleaseFile(**values)
    if type(said) is not int or said not in (RELEASE_FORMAT, RELEASE_FORMAT_WITH_PACKS):
        raise TrustError(f"release file: unusable format: {said!r}")
    if not are_packs(values.get("packs", {})) or (said == RELEASE_FORMAT_WITH_PACKS) != bool(values.get("packs")):
        raise TrustError(f"release file: unusable packs for format {said}: {values.get('packs')!r:.100}")
    if said == RELEASE_FORMAT and "packs" in values:
        raise TrustError("release file: unusable packs: a release of format 1 says nothing of packs")
    for name, fine in _checks(release).items():
        if not fine:
            raise TrustError(f"release file: unusable {name}: {getattr(release, name)!r}")
    return release


def _checks(release: ReleaseFile) -> Mapping[str, bool]:
    hashes = ("bundle", "event", "gate_report", "provenance")
    counts = ("release", "version", "seq")
    return {
        "model": is_model_name(release.model),
        "channel": release.channel in RELEASED_CHANNELS,
        "kind": release.kind in KINDS,
        **{name: is_sha256(getattr(release, name)) for name in hashes},
        **{name: type(getattr(release, name)) is int and getattr(release, name) >= 1 for name in counts},
        "at": is_time(release.at),
        "expires_at": is_time(release.expires_at),
        "canary_percent": type(release.canary_percent) is int and 1 <= release.canary_percent <= 100,
    }


def are_packs(value: object) -> bool:
    """Whether it is a mapping of targets to the sha256 of their engine packs."""
    return (
        isinstance(value, Mapping)
        and len(value) <= MAX_PACKS
        and all(is_target(target) and is_sha256(sha256) for target, sha256 in value.items())
    )


def expiry(lifetime: timedelta) -> str:
    """When hosts stop using a release that is decided now."""
    return (datetime.now(UTC) + lifetime).strftime(TIME_FORMAT)


def release_key(sha256: str) -> str:
    """Where a release file lies in a store."""
    return f"releases/{sha256}.json"


def report_key(sha256: str) -> str:
    """Where a gate report lies in a store; at most MAX_REPORT_BYTES (pipelines/gate_report.py)."""
    return f"gate-reports/{sha256}.json"


def provenance_key(sha256: str) -> str:
    """Where a statement of provenance lies in a store; at most MAX_STATEMENT_BYTES (pipelines/provenance.py)."""
    return f"provenance/{sha256}.json"


def release_target(model: str, channel: str) -> str:
    """The target whose hash says what is released."""
    return f"{model}/{channel}/release.json"


def role_of(model: str) -> str:
    """The delegated role whose key signs a model's targets."""
    return f"model-{model}"


def content_target(model: str, key: str) -> str:
    """Target path of a content-addressed blob, as the model's role may sign it."""
    return f"{model}/{key}"


def content_key(model: str, target: str) -> str:
    """The key in the store of a target path; the inverse of `content_target`."""
    prefix = f"{model}/"
    if not target.startswith(prefix):
        raise TrustError(f"target {target!r} isn't of model {model!r}")
    return target.removeprefix(prefix)
