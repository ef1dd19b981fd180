"""What signs the channel, and for how long.

In: `conf/signing/<kind>.yaml`. Out: a frozen `SigningConfig`. Invariants: no secret stands here, only URIs that lead to
one; they aren't part of its text all the same, in case somebody put a key in the place of its URI.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

Days = Annotated[float, Field(gt=0, le=3650, strict=True)]
Kind = Literal["development", "production"]


def _split(value: Any) -> Any:
    """The environment holds a list as words between spaces."""
    return tuple(value.split()) if isinstance(value, str) else value


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True))
class SigningConfig:
    """Keys and lifetimes.

    `keys` are URIs of the private keys at hand (pipelines/channel/keys.py); which role each one signs for follows from
    the channel's root and targets. `folder` keeps what isn't secret: every root, targets, ceremonies that wait for
    signatures; of a development channel the private keys as well. A role is signed again in the last third of its days.
    """

    kind: Kind
    folder: Annotated[str, Field(min_length=1)]
    root_days: Days
    targets_days: Days
    model_days: Days
    snapshot_days: Days
    timestamp_days: Days
    release_days: Days  # how long hosts use what one decision released
    keys: Annotated[tuple[str, ...], BeforeValidator(_split)] = dataclasses.field(default=(), repr=False)

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    @property
    def is_development(self) -> bool:
        """Whether keys are made on first use."""
        return self.kind == "development"

    @property
    def release_lifetime(self) -> timedelta:
        """How long hosts use what one decision released."""
        return timedelta(days=self.release_days)

    def lifetime(self, role: str) -> timedelta:
        """How long a signature of a role holds; a model's role is any other than TUF's four."""
        days = {
            "root": self.root_days,
            "targets": self.targets_days,
            "snapshot": self.snapshot_days,
            "timestamp": self.timestamp_days,
        }
        return timedelta(days=days.get(role, self.model_days))
