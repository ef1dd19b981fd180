"""What a channel says is released: one small canonical file that binds a ledger's decision to a bundle's hash.

Data in and out: the exact bytes of `releases/<sha256>.json`. They follow from the ledger alone, so a lost channel is
rebuilt byte for byte. The signed channel names them as target `<model>/<channel>/release.json` and repeats `custom()`
in its own metadata; a host compares both.

Where content lies: the path of a target in the signed metadata is `<model>/<key in the store>`, so that a model's
delegated key can sign nothing of another model; only the release file, whose target path doesn't change, is found by
its hash.

Invariants: no unknown and no missing field; a release number is never used twice and only grows, also on a rollback.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from serving.canonical import canonical_json, is_model_name, is_sha256, parse_canonical
from serving.errors import TrustError
from serving.events import TIME_FORMAT, is_time

RELEASE_FORMAT = 1
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
    fractions) the share of hosts meant.
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
    format: int = RELEASE_FORMAT

    def to_bytes(self) -> bytes:
        return canonical_json(dataclasses.asdict(self))

    def custom(self) -> dict[str, Any]:
        """What the signed metadata repeats beside the release's hash."""
        names = ("model", "channel", "release", "version", "canary_percent", "expires_at")
        return {name: getattr(self, name) for name in names}

    def expired(self, now: datetime) -> bool:
        """Whether hosts must not start using it any more; `now` has a time zone."""
        return now >= datetime.strptime(self.expires_at, TIME_FORMAT).replace(tzinfo=UTC)


RELEASE_FIELDS = frozenset(item.name for item in dataclasses.fields(ReleaseFile))


def parse_release(raw: bytes) -> ReleaseFile:
    """The release of these bytes; TrustError naming what is wrong with them."""
    try:
        values = parse_canonical(raw)
    except ValueError as error:
        raise TrustError(f"release file: {error}") from error
    if not isinstance(values, dict) or values.keys() != RELEASE_FIELDS:
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise TrustError(f"release file: fields {found}, expected {sorted(RELEASE_FIELDS)}")
    release = ReleaseFile(**values)
    for name, fine in _checks(release).items():
        if not fine:
            raise TrustError(f"release file: unusable {name}: {getattr(release, name)!r}")
    return release


def _checks(release: ReleaseFile) -> Mapping[str, bool]:
    hashes = ("bundle", "event", "gate_report", "provenance")
    counts = ("release", "version", "seq")
    return {
        "format": type(release.format) is int and release.format == RELEASE_FORMAT,
        "model": is_model_name(release.model),
        "channel": release.channel in RELEASED_CHANNELS,
        "kind": release.kind in KINDS,
        **{name: is_sha256(getattr(release, name)) for name in hashes},
        **{name: type(getattr(release, name)) is int and getattr(release, name) >= 1 for name in counts},
        "at": is_time(release.at),
        "expires_at": is_time(release.expires_at),
        "canary_percent": type(release.canary_percent) is int and 1 <= release.canary_percent <= 100,
    }


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
