"""A desk signs limits with its own key; a host that knows the public half takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.channel.key import make_pair
from pipelines.errors import SigningError
from pipelines.sign_limits import main, sign_limits
from serving.errors import ConfigError, TrustError
from serving.host.limits import read_limits

EXAMPLE = Path(__file__).parents[2] / "serving" / "host" / "limits.example.toml"


@pytest.fixture
def limits(tmp_path: Path) -> Path:
    path = tmp_path / "limits.toml"
    path.write_bytes(EXAMPLE.read_bytes())
    return path


def test_a_host_takes_what_a_desk_signed(limits: Path, tmp_path: Path) -> None:
    make_pair(tmp_path / "desk", development=False)
    uri, public = f"file2:{tmp_path / 'desk.pem'}", tmp_path / "desk.pub.json"
    assert main([str(limits), "--key", uri]) == 0
    assert read_limits(limits, public) == read_limits(limits)
    limits.write_text(limits.read_text().replace("delta = 2_000", "delta = 9_000"))
    with pytest.raises(TrustError):
        read_limits(limits, public)


def test_as_a_command_with_the_key_in_the_environment(limits: Path, tmp_path: Path) -> None:
    make_pair(tmp_path / "desk", development=False)
    environment = os.environ | {"DESK_PEM": (tmp_path / "desk.pem").read_text()}
    command = [sys.executable, "-m", "pipelines.sign_limits", str(limits), "--key", "envvar:DESK_PEM"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{limits}.sig"
    assert read_limits(limits, tmp_path / "desk.pub.json")
    refused = subprocess.run([*command[:-1], "envvar:ABSENT"], env=environment, capture_output=True, text=True)
    assert refused.returncode == SigningError.exit_code
    assert "PRIVATE" not in refused.stderr


def test_what_a_host_refuses_is_not_signed(limits: Path, tmp_path: Path) -> None:
    make_pair(tmp_path / "desk", development=False)
    limits.write_text(limits.read_text().replace("delta = 2_000", "delta = nan"))
    with pytest.raises(ConfigError, match="delta"):
        sign_limits(limits, f"file2:{tmp_path / 'desk.pem'}")
    assert not Path(f"{limits}.sig").exists()


def test_a_development_key_signs_no_limits(limits: Path, tmp_path: Path) -> None:
    make_pair(tmp_path / "desk", development=True)
    with pytest.raises(SigningError, match="development key"):
        sign_limits(limits, f"file2:{tmp_path / 'desk.pem'}")
