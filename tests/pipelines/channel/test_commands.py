"""The commands as they are typed: what they take, show and end with, and that a dry run writes nothing."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config import CONF
from serving.folder_store import FolderStore
from tests.pipelines.channel.desk import Company, promote
from tests.pipelines.channel.test_keys import secret_words

VERBS = ("init", "key", "delegate", "revoke", "rotate", "sign", "refresh", "restore", "status")
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """`typed("status", "signing=production")`: exit code, output, errors."""
    for name in ("STRIKEFORGE_KEYS", "STRIKEFORGE_SIGNING_KEYS", "STRIKEFORGE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STRIKEFORGE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("STRIKEFORGE_KEYS", str(tmp_path / "keys"))

    def run(verb: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [verb, *words])
        monkeypatch.delitem(sys.modules, f"pipelines.channel.{verb}", raising=False)  # as in a fresh process
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"pipelines.channel.{verb}", run_name="__main__")
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_how_it_is_run(typed: Typed, verb: str) -> None:
    code, out, _ = typed(verb, "--help")
    assert code == 0
    assert f"Run: python -m pipelines.channel.{verb}" in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_problem_is_named(typed: Typed, verb: str) -> None:
    code, _, err = typed(verb, "sing=1", "signing.model_dayz=3", "root_threshold=0", "dry_run=perhaps")
    assert code == 2
    for key in ("sing", "signing.model_dayz", "root_threshold", "dry_run"):
        assert f"- {key}: " in err


def test_a_key_that_a_command_doesnt_take_is_an_error(typed: Typed) -> None:
    code, _, err = typed("refresh", "role=root", "add=x.pub.json")
    assert code == 2
    assert "role: this command doesn't take it" in err
    assert "add: this command doesn't take it" in err
    code, _, err = typed("delegate", "dry_run=true")
    assert code == 2
    assert "model: must be given" in err
    assert "key: must be given" in err


def test_a_key_typed_in_the_place_of_its_uri_isnt_repeated(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, company: Company
) -> None:
    assert typed("key", f"file={tmp_path}/eve")[0] == 0
    pem = (tmp_path / "eve.pem").read_bytes()
    told = typed("sign", f"uri={pem.decode()}")
    assert told[0] == 2
    monkeypatch.setenv("STRIKEFORGE_SIGNING_KEYS", pem.decode())
    told += typed("sign", "signing=production", f"uri=envvar:{secret_words(pem)[0]}")
    promote(company.store, "a", 1)
    refused = typed("refresh", "signing=production")
    assert refused[0] == 12
    assert "isn't shown" in refused[2]
    assert not any(word in str((*told, *refused)) for word in secret_words(pem))


def test_a_key_id_of_digits_only_must_be_quoted(typed: Typed) -> None:
    code, _, err = typed("revoke", "key=123456789012")
    assert code == 2
    assert "key: was read as a number" in err
    code, _, err = typed("revoke", "key='123456789012'")
    assert code == 12, err


def test_without_a_channel_each_command_says_what_to_do(typed: Typed, tmp_path: Path) -> None:
    for verb in ("status", "refresh"):
        assert typed(verb)[0] == 0
        code, _, err = typed(verb, "signing=production")
        assert code == 12
        assert "pipelines.channel.init" in err
    code, _, err = typed("restore", "signing=production")
    assert code == 12
    assert "keeps no root: name the channel's folder in STRIKEFORGE_KEYS" in err
    assert not (tmp_path / "store").exists()


def test_init_wants_keys_for_every_role_and_runs_once(typed: Typed, company: Company) -> None:
    code, _, err = typed("init", "signing=production", f"root={company.keys}/ann.pub.json")
    assert code == 2
    for role in ("targets", "snapshot", "timestamp"):
        assert f"{role}: must be given" in err
    files = [f"{role}={company.keys}/ann.pub.json" for role in ("root", "targets", "snapshot", "timestamp")]
    code, _, err = typed("init", "signing=production", *files)
    assert code == 12
    assert "has a channel already" in err
    code, _, err = typed("init", "signing=production", *files[1:], f"root=[{company.keys}/none.pub.json,{CONF}]")
    assert code == 12
    assert err.count("can't be read") == 2


def test_dry_runs_write_nothing(
    typed: Typed, company: Company, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(company.store, "a", 1)
    monkeypatch.setenv("STRIKEFORGE_SIGNING_KEYS", " ".join(company.uri(name) for name in company.online))
    before = everything(tmp_path)
    public, uri = f"{company.keys}/new.pub.json", f"uri={company.uri('ann')}"
    for words in (
        ("delegate", "model=pricing_lstm", f"key={public}", uri),
        ("revoke", f"key={company.public('models').keyid}", f"add={public}", uri),
        ("rotate", "role=timestamp", f"add={public}", "threshold=2", uri),
        ("sign", uri),
        ("refresh",),
        ("restore",),
        ("key", f"file={tmp_path}/nobody"),
        ("status",),
    ):
        dry = ("dry_run=true",) if words[0] != "status" else ()
        code, out, err = typed(*words, "signing=production", *dry)
        assert code == 0, err
        assert out.strip()
    assert everything(tmp_path) == before


def test_status_shows_roles_keys_thresholds_and_expiries(typed: Typed, company: Company) -> None:
    promote(company.store, "a", 1)
    company.channel().follow("a")
    code, out, _ = typed("status", "signing=production")
    assert code == 0
    assert out.startswith("production channel of FolderStore(")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert re.search(r"2 of 3 +([0-9a-f]{12} ){2}[0-9a-f]{12} +1 +20\d\d-\d\d-\d\d", rows["root"])
    assert re.search(r"1 of 2 ", rows["targets"])
    assert rows["timestamp"].split()[4] == company.public("timestamp").keyid[:12]
    assert "release 1, until 2099-01-01" in rows["model-a"]
    assert typed("rotate", "signing=production", "role=root", f"uri={company.uri('ann')}")[0] == 0
    _, out, _ = typed("status", "signing=production")
    assert re.search(r"waits: .*2\.root\.json: 1 of the 2 signatures that root 1 wants, may still sign: ", out)
    code, out, _ = typed("sign", "signing=production", f"uri={company.uri('cid')}", "publish=false")
    assert "  root: 2 of " in out, "who signs sees what they sign"
    assert "2 of the 2 signatures" in out
    assert typed("sign", "signing=production")[0] == 0
    assert "root 2" in typed("status", "signing=production")[1].splitlines()[0]


def test_damage_ends_with_the_exit_code_of_trust(typed: Typed, company: Company, store: FolderStore) -> None:
    store.put("channel/timestamp.json", b"{}")
    for verb in ("status", "refresh"):
        code, _, err = typed(verb, "signing=production")
        assert code == 10
        assert "channel/timestamp.json: isn't TUF metadata" in err


def test_the_same_channel_over_the_environment(typed: Typed, company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(company.store, "a", 1)
    for name in company.online:
        monkeypatch.setenv(f"KEY_{name.upper()}", (company.keys / f"{name}.pem").read_text())
    monkeypatch.setenv("STRIKEFORGE_SIGNING_KEYS", " ".join(f"envvar:KEY_{name.upper()}" for name in company.online))
    code, out, err = typed("refresh", "signing=production")
    assert code == 0, err
    assert "model-a: release none -> 1" in out
    assert company.host().number("a") == 1
    assert typed("refresh", "signing=production")[1] == "nothing to do\n"
