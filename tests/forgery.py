"""One spoilt store, and the ways to spoil the one of tests/forged.py (the kinds: tests/forgeries_*.py)."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from serving.errors import TrustError
from tests.forged import (
    MODEL,
    READ_ROLES,
    Edit,
    Files,
    Moment,
    moment,
)

TINY = f"model-{MODEL}"
RELEASE = f"{MODEL}/champion/release.json"


@dataclass(frozen=True)
class Forgery:
    """One spoilt store; the refusal's message must match `reason`."""

    kind: str
    what: str
    reason: str
    files: Callable[[], Files]
    fresh: bool = False  # offered to a host that has pulled nothing yet
    root: Callable[[], bytes] | None = None  # another root file than moment 1's
    spoil: Callable[[Path], object] | None = None  # done to the folder store
    refusal: type[Exception] = TrustError


@cache
def moments() -> tuple[Moment, Moment, Moment]:
    return moment(1), moment(2), moment(3)


@cache
def sealed(number: int) -> Files:
    return moments()[number - 1].seal()


def whole(latest: Files | None = None) -> Files:
    """A store that has seen all three moments."""
    return {**sealed(1), **sealed(2), **(sealed(3) if latest is None else latest)}


def replaced(key: str, raw: bytes) -> Files:
    return {**whole(), key: raw}


def without(key: str) -> Files:
    files = whole()
    del files[key]
    return files


def signed_anew(
    made: Moment | None = None,
    *,
    edit: dict[str, Edit] | None = None,
    after: dict[str, Callable[[bytes], bytes]] | None = None,
    signers: dict[str, tuple[str, ...]] | None = None,
) -> Files:
    """The third moment changed and signed anew, as somebody could who holds some or all of the keys."""
    latest = copy.copy(made or moments()[2])
    latest.signers = signers or {}
    return whole(latest.seal(edit=edit, after=after))


def latest_key(role: str) -> str:
    return moments()[2].key(role)


def flipped(raw: bytes, place: int) -> bytes:
    """Another lowest bit: never the same JSON, never the same hexadecimal digit."""
    spoilt = bytearray(raw)
    spoilt[place] ^= 1
    return bytes(spoilt)


def read_files() -> list[tuple[str, bytes, str]]:
    """Key, bytes and a pattern of how a refusal names it, of every file a host reads."""
    latest = sealed(3)
    read = [*(latest_key(role) for role in READ_ROLES), *moments()[2].read_content]
    return [(key, latest[key], re.escape(key)) for key in read]
