"""Limits from files: everything named, nothing assumed; signed where a key is configured; never an older one."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ConfigError, HostError, TrustError
from serving.host.limits import (
    FIELDS,
    FOREVER_NS,
    TIMES,
    Limits,
    changed_limits,
    parse_limits,
    read_limits,
    read_numbered_limits,
)
from serving.host.limits_signature import signature_path

EXAMPLE = Path(__file__).parents[3] / "serving" / "host" / "limits.example.toml"
EXAMPLE_LIMITS = parse_limits(EXAMPLE.read_bytes(), "example")[0]


def toml(serial: Any = 1, **changes: Any) -> bytes:
    values = asdict(EXAMPLE_LIMITS) | {"serial": serial} | changes
    return "".join(f"{name} = {value}\n" for name, value in values.items() if value is not None).encode()


class Signer:
    """A desk with a key: writes limits and signs them."""

    def __init__(self, folder: Path) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.limits, self.public = folder / "limits.toml", folder / "limits.pem"
        self.state = folder / "limits.toml.accepted"
        public = self.private.public_key()
        self.public.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def write(self, data: bytes) -> None:
        self.limits.write_bytes(data)
        signature_path(self.limits).write_bytes(base64.b64encode(self.private.sign(data)) + b"\n")

    def read(self) -> Limits:
        return read_limits(self.limits, self.public)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path)


def problems_of(data: bytes) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse_limits(data, "limits.toml")
    return refused.value.problems


def test_the_example_is_read_and_every_key_explained(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_bytes(EXAMPLE.read_bytes())
    assert read_limits(path) == EXAMPLE_LIMITS
    assert not list(tmp_path.glob("*.accepted"))  # unsigned: nothing is kept


@pytest.mark.parametrize("name", [*FIELDS, "serial"])
def test_a_missing_limit_is_refused(name: str) -> None:
    (problem,) = problems_of(toml(**{name: None}))
    assert name in problem
    assert "missing" in problem


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", ["nan", "-nan", "-1", "-inf", "true", '"5"', "[1]"])
def test_what_is_no_limit_is_refused(name: str, value: str) -> None:
    (problem,) = problems_of(toml(**{name: value}))
    assert problem.startswith(f"limits.toml: {name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("collar_share", "inf"), ("multiplier", "0"), ("multiplier", "inf"), ("tick_money", "0.0"),
        ("order_rate_count", "2.5"), ("order_rate_count", "16385"), ("order_rate_window_ns", "0"),
        ("order_rate_window_ns", "1.5"), ("stale_book_ns", "1e9"), ("stale_book_ns", str(2**63)),
        ("reject_burst_count", "0"), ("reject_burst_count", "0.5"), ("delta", "9" * 400), ("delta", str(2**53 + 1)),
        ("serial", "0"), ("serial", "-1"), ("serial", "1.0"), ("serial", "true"), ("serial", '"7"'),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(name: str, value: str) -> None:
    (problem,) = problems_of(toml(**{name: value}))
    assert problem.startswith(f"limits.toml: {name}: ")


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("collar_share", "multiplier", "tick_money")])
def test_no_limit_must_be_written_out(name: str) -> None:
    limits, _ = parse_limits(toml(**{name: "inf"}), "limits.toml")
    assert getattr(limits, name) == (FOREVER_NS if name in TIMES else math.inf)


def test_every_problem_is_told_at_once() -> None:
    problems = problems_of(toml(delta="nan", gamma=None, vega="-1", serial=None) + b"detla = 5\n[more]\nx = 1\n")
    named = sorted(problem.split(": ")[1] for problem in problems)
    assert named == ["delta", "detla", "gamma", "more", "serial", "vega"]


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"delta", b"a = " + b"[" * 5000, b"delta = 1\ndelta = 2\n"])
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    assert problems_of(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_configuration(data: bytes) -> None:
    problems_of(data)


def test_a_file_that_is_absent_or_huge(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"limits\.toml: can't be read"):
        read_limits(tmp_path / "limits.toml")
    (tmp_path / "limits.toml").write_bytes(toml() + b"#" * 70_000)
    with pytest.raises(ConfigError, match="larger than"):
        read_limits(tmp_path / "limits.toml")


def test_limits_that_break_the_rules_cannot_be_made() -> None:
    with pytest.raises(ConfigError) as refused:
        replace(EXAMPLE_LIMITS, delta=math.nan, loss_money=-1.0)
    assert [problem.split(":")[0] for problem in refused.value.problems] == ["delta", "loss_money"]


def test_changes_are_named() -> None:
    new = replace(EXAMPLE_LIMITS, delta=1.0, stale_book_ns=FOREVER_NS)
    changed = changed_limits(EXAMPLE_LIMITS, new)
    assert changed == {"delta": (2000.0, 1.0), "stale_book_ns": (2_000_000_000, FOREVER_NS)}
    assert changed_limits(new, new) == {}
    with pytest.raises(HostError, match=r"multiplier 100\.0 -> 10\.0.*restart"):
        changed_limits(EXAMPLE_LIMITS, replace(EXAMPLE_LIMITS, multiplier=10.0))


# Signed.


def test_signed_limits_are_read_again_and_newer_ones_too(signer: Signer) -> None:
    signer.write(toml(3))
    assert signer.read() == signer.read() == EXAMPLE_LIMITS
    signer.write(toml(4, delta=7))
    assert signer.read().delta == 7
    assert read_numbered_limits(signer.limits, signer.public)[1] == 4
    assert json.loads(signer.state.read_text())["serial"] == 4


def test_hexadecimal_digits_will_do(signer: Signer) -> None:
    signer.write(toml())
    signature_path(signer.limits).write_text(signer.private.sign(toml()).hex())
    assert signer.read() == EXAMPLE_LIMITS


def test_unsigned_limits_are_refused_where_a_key_is_configured(signer: Signer) -> None:
    signer.limits.write_bytes(toml())
    with pytest.raises(TrustError, match="isn't signed"):
        signer.read()


def test_every_altered_byte_is_refused(signer: Signer) -> None:
    data = toml()
    for place in range(0, len(data), 7):
        signer.write(data)
        signer.limits.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(TrustError, match=r"limits\.toml: isn't what"):
            signer.read()
    signer.write(data)
    signer.limits.write_bytes(data + b"\n")
    with pytest.raises(TrustError, match="isn't what"):
        signer.read()
    assert not signer.state.exists()


def test_another_key_is_refused(signer: Signer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Signer(tmp_path / "other")
    signer.write(toml())
    with pytest.raises(TrustError, match="somebody else"):
        read_limits(signer.limits, other.public)


@pytest.mark.parametrize("text", [b"", b"no base64!", b"AAAA", b"\xff" * 88, b"00" * 63, b"zz" * 64])
def test_what_is_no_signature_is_refused(signer: Signer, text: bytes) -> None:
    signer.write(toml())
    signature_path(signer.limits).write_bytes(text)
    with pytest.raises(TrustError, match=r"limits\.toml\.sig"):
        signer.read()


def test_older_limits_played_back_are_refused(signer: Signer) -> None:
    signer.write(toml(4))
    old = signer.limits.read_bytes(), signature_path(signer.limits).read_bytes()
    signer.read()
    signer.write(toml(5))
    signer.read()
    signer.limits.write_bytes(old[0])
    signature_path(signer.limits).write_bytes(old[1])
    with pytest.raises(TrustError, match="serial 4 is older than 5"):
        signer.read()
    signer.write(toml(5, delta=1))
    with pytest.raises(TrustError, match="another file of serial 5"):
        signer.read()


def test_refused_limits_take_no_serial(signer: Signer) -> None:
    signer.write(toml(9, delta="nan"))
    with pytest.raises(ConfigError):
        signer.read()
    signer.write(toml(2))
    signer.read()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"serial": "9", "sha256": ""}', '{"serial": true, "sha256": ""}'])
def test_a_spoilt_memory_of_serials_is_no_fresh_start(signer: Signer, text: str) -> None:
    signer.write(toml())
    signer.state.write_text(text)
    with pytest.raises(TrustError, match=r"accepted: doesn't hold the last accepted serial"):
        signer.read()


def test_sound_limits_that_a_running_host_cannot_take_leave_their_serial_free(signer: Signer) -> None:
    signer.write(toml(1))
    now = signer.read()
    signer.write(toml(2, tick_money=7))
    with pytest.raises(HostError, match="restart"):
        read_numbered_limits(signer.limits, signer.public, usable=lambda limits: changed_limits(now, limits))
    signer.write(toml(2, delta=7))
    assert signer.read().delta == 7


def test_where_the_serial_cannot_be_kept_nothing_is_accepted(signer: Signer, tmp_path: Path) -> None:
    signer.write(toml())
    with pytest.raises(TrustError, match="can't be kept"):
        read_limits(signer.limits, signer.public, tmp_path / "absent" / "limits.accepted")


def test_keys_of_the_channels_kind(signer: Signer) -> None:
    raw = signer.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    fields = {"keyid": "0" * 64, "keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": raw}}
    signer.public.write_text(json.dumps(fields))
    signer.write(toml())
    assert signer.read() == EXAMPLE_LIMITS
    signer.public.write_text(json.dumps(fields | {"x-strikeforge-kind": "development"}))
    with pytest.raises(TrustError, match="development key"):
        signer.read()


def test_what_is_no_ed25519_key_is_refused(signer: Signer) -> None:
    signer.write(toml())
    other = generate_private_key(SECP256R1()).public_key()
    for text in (
        other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        b"-----BEGIN PUBLIC KEY-----",
        b"{}",
        b"{",
        b'{"keytype": "rsa", "keyval": {"public": ""}}',
        b'{"keytype": "ed25519", "keyval": {"public": "zz"}}',
        b'{"keytype": "ed25519", "keyval": {"public": "00"}}',
        b"",
    ):
        signer.public.write_bytes(text)
        with pytest.raises(TrustError, match=r"limits\.pem"):
            signer.read()
    signer.public.unlink()
    with pytest.raises(ConfigError, match=r"limits\.pem: can't be read"):
        signer.read()
