"""`strikeforge-host pull`, then `price` and `inspect` from what it installed, as a person would type them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from serving.bundle import store_bundle
from serving.canonical import canonical_json
from serving.cli import main
from serving.errors import run_command
from serving.folder_store import FolderStore
from serving.ledger import Ledger
from tests.forged import MODEL, Files, moment, rebundled, write_store
from tests.serving import test_cli
from tests.serving.test_cli import demo_bundle, demo_store, on_ort
from tests.serving.test_pricing import small_market
from tests.tiny_bundle import tiny_bundle

DEVELOPMENT = {"x-strikeforge-kind": "development"}


def host(*arguments: object) -> int:
    return run_command(main, on_ort(*arguments))


def sealed_demo(folder: Path, number: int, **changes: object) -> Files:
    """A signed store whose release prices its own demo."""
    bundle = demo_bundle(folder / "made", small_market(6))
    files = {name: bundle.read(name) for name in ("manifest.json", *bundle.manifest.files)}
    named = rebundled(files, {}, lambda manifest: manifest.update(model=MODEL))
    return moment(number, bundle=named, **changes).seal()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed store and its root file."""
    folder = tmp_path_factory.mktemp("signed")
    files = sealed_demo(folder, 1)
    write_store(folder / "store", files)
    (folder / "root.json").write_bytes(files["channel/1.root.json"])
    return folder


@pytest.fixture
def pulled(signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder that it was pulled into."""
    assert pull(signed, tmp_path / "host") == 0
    capsys.readouterr()
    return tmp_path / "host"


def pull(signed: Path, to: Path, *rest: object) -> int:
    return host(
        "pull", "--model", MODEL, "--channel", "champion", "--store", signed / "store", "--root", signed / "root.json",
        "--to", to, *rest,
    )  # fmt: skip


def current(directory: Path) -> Path:
    return (directory / MODEL / "champion" / "current").resolve()


def test_pull_price_inspect(signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "host"
    assert pull(signed, to) == 0
    out = capsys.readouterr().out
    assert "tiny champion: release 4, version 1, bundle " in out
    assert f"installed in {current(to)}; expires 20" in out
    assert pull(signed, to) == 0
    assert f"is installed already in {current(to)}" in capsys.readouterr().out
    assert host("price", "--from", to, "--model", MODEL, "--demo", "--out", tmp_path / "out.csv") == 0
    out = capsys.readouterr().out
    expires = json.loads((current(to) / "release.json").read_bytes())["expires_at"]
    assert "tiny champion: release 4, version 1, bundle " in out
    assert f", expires {expires}\n" in out
    assert "volatilities as expected" in out
    assert host("inspect", "--from", to, "--model", MODEL) == 0
    out = capsys.readouterr().out
    assert f", expires {expires}\n" in out
    assert "golden iv: largest difference" in out


def test_a_newer_release_says_what_was_there_and_what_went(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    shutil.copytree(signed, own)
    assert pull(own, tmp_path / "host", "--keep", 1) == 0
    old = current(tmp_path / "host").name
    write_store(own / "store", sealed_demo(tmp_path, 2))
    assert pull(own, tmp_path / "host", "--keep", 1) == 0
    out = capsys.readouterr().out
    assert "release 5, version 2" in out
    assert ", was release 4; expires" in out
    assert f"removed {old}" in out


def test_a_changed_file_is_refused_by_name(pulled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = current(pulled) / "bundle" / "member-1" / "head.onnx"
    raw = bytearray(file.read_bytes())
    raw[9] ^= 1
    file.write_bytes(bytes(raw))
    for command in (("price", "--demo", "--out", tmp_path / "out.csv"), ("inspect",)):
        assert host(command[0], "--from", pulled, "--model", MODEL, *command[1:]) == 5
        assert "member-1/head.onnx" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_an_expired_release_prices_nothing_and_is_shown_as_such(
    pulled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = current(pulled) / "release.json"
    values = json.loads(file.read_bytes()) | {"expires_at": "2025-01-31T00:00:00.000000Z"}
    file.write_bytes(canonical_json(values))
    assert host("price", "--from", pulled, "--model", MODEL, "--demo", "--out", tmp_path / "out.csv") == 10
    assert "release 4 expired at 2025-01-31T00:00:00.000000Z" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
    assert host("inspect", "--from", pulled, "--model", MODEL) == 0
    assert ", EXPIRED 2025-01-31T00:00:00.000000Z" in capsys.readouterr().out


def test_nothing_installed(pulled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, model in ((pulled, "other"), (tmp_path / "nowhere", MODEL), (pulled, "No Name"), (pulled, "../tiny")):
        assert host("inspect", "--from", folder, "--model", model) == 10
    err = capsys.readouterr().err
    assert err.count("nothing is installed of") == 2
    assert err.count("model name") == 2
    (pulled / MODEL / "champion" / "current").unlink()
    (pulled / MODEL / "champion" / "current").symlink_to("/etc")
    assert host("inspect", "--from", pulled, "--model", MODEL) == 10
    assert "leads to 'etc', which isn't a release" in capsys.readouterr().err
    (pulled / MODEL / "champion" / "current").unlink()
    (pulled / MODEL / "champion" / "current").symlink_to("releases/00000099-aaaaaaaaaaaa")
    assert host("inspect", "--from", pulled, "--model", MODEL) == 10
    assert "isn't there" in capsys.readouterr().err


def test_a_release_of_another_place_is_refused(pulled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(pulled / MODEL, pulled / "other", symlinks=True)
    assert host("inspect", "--from", pulled, "--model", "other") == 10
    assert "which isn't where it lies" in capsys.readouterr().err


# Development.


def test_development_roots_must_be_asked_for_and_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sealed_demo(tmp_path, 1, root_fields=DEVELOPMENT)
    write_store(tmp_path / "store", files)
    (tmp_path / "root.json").write_bytes(files["channel/1.root.json"])
    assert pull(tmp_path, tmp_path / "host") == 10
    assert "is a development root" in capsys.readouterr().err
    assert pull(tmp_path, tmp_path / "host", "--development") == 0
    assert host("price", "--from", tmp_path / "host", "--model", MODEL, "--demo", "--out", tmp_path / "out.csv") == 0
    assert "(signed with development keys)" in capsys.readouterr().out


def test_an_unsigned_store_must_be_asked_for_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, to, model = demo_store(tmp_path), tmp_path / "host", test_cli.MODEL
    told = ("pull", "--model", model, "--store", store, "--to", to)
    assert host(*told) == 10
    assert "is unsigned" in capsys.readouterr().err
    assert not to.exists()
    assert host(*told, "--development") == 0
    caught = capsys.readouterr()
    assert caught.err.startswith("WARNING: ")
    assert "is unsigned: nothing vouches for what is pulled" in caught.err
    assert "small champion: release 1, version 1" in caught.out
    assert host("price", "--from", to, "--model", model, "--demo", "--out", tmp_path / "out.csv") == 0
    assert "(from an unsigned store)" in capsys.readouterr().out
    assert host(*told, "--development") == 0
    assert "is installed already" in capsys.readouterr().out
    _release_another(store, tmp_path)
    assert host(*told, "--development") == 0
    assert "release 2, version 2" in capsys.readouterr().out
    (manifest,) = [path for path in (store / "bundles").glob("*/manifest.json") if b'"seed":7' in path.read_bytes()]
    shutil.rmtree(store / "ledger")
    assert host(*told, "--development") == 6  # no champion
    manifest.write_bytes(manifest.read_bytes().replace(b'"seed":7', b'"seed":8'))
    _promote(store, manifest.parent.name)
    assert host(*told, "--development") == 10
    assert "the store offers release 1, release 2 is installed" in capsys.readouterr().err


def _promote(store: Path, bundle: str) -> None:
    ledger = Ledger(FolderStore(store), test_cli.MODEL)
    state = ledger.state()
    version = max(state.versions, default=0) + 1
    for kind, details in (("registered", {}), ("gated", {"passed": True}), ("promoted", {})):
        state = ledger.append(state, kind, version=version, bundle=bundle, by="test", details=details)


def _release_another(store: Path, folder: Path) -> None:
    bundle = tiny_bundle(folder / "another", model=test_cli.MODEL, seed=7)
    store_bundle(FolderStore(store), bundle)
    _promote(store, bundle.sha256)


def test_signed_and_unsigned_dont_share_a_folder(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pull(signed, tmp_path / "host") == 0
    unsigned = tmp_path / "unsigned"
    shutil.copytree(signed / "store", unsigned, ignore=shutil.ignore_patterns("channel"))
    told = ("pull", "--model", MODEL, "--store", unsigned, "--development", "--to")
    assert host(*told, tmp_path / "host") == 10
    assert "holds releases of a signed store" in capsys.readouterr().err
    (bundle,) = (unsigned / "bundles").iterdir()
    ledger = Ledger(FolderStore(unsigned), MODEL)
    state = ledger.state()
    for kind, details in (("registered", {}), ("gated", {"passed": True}), ("promoted", {})):
        state = ledger.append(state, kind, version=1, bundle=bundle.name, by="test", details=details)
    assert host(*told, tmp_path / "loose") == 0
    assert pull(signed, tmp_path / "loose") == 10
    assert "don't share a folder" in capsys.readouterr().err


def test_a_store_needs_development(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = demo_store(tmp_path)
    for command in (("price", "--demo", "--out", tmp_path / "out.csv"), ("inspect",)):
        assert host(command[0], "--store", store, "--model", test_cli.MODEL, *command[1:]) == 10
        assert "say --development" in capsys.readouterr().err


# Usage.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pull", "--model", "m", "--store", "s"), "--to"),
        (("pull", "--model", "m", "--store", "s", "--to", "d", "--keep", "0"), "--keep"),
        (("pull", "--model", "m", "--store", "s", "--to", "d", "--channel", "challenger"), "--channel"),
        (("inspect", "--model", "m"), "--from"),
        (("inspect", "--model", "m", "--from", "d", "--store", "s"), "not allowed with"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        host(*arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_signed_store_needs_a_root(signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ("pull", "--model", MODEL, "--store", signed / "store", "--to", tmp_path / "host", "--development")
    assert host(*told) == 10
    assert "--root must name the root file" in capsys.readouterr().err
    assert host(*told, "--root", tmp_path / "none.json") == 10
    assert "none.json: can't be read" in capsys.readouterr().err
    assert host("pull", "--model", "No!", *told[3:], "--root", signed / "root.json") == 10
    assert "model name 'No!'" in capsys.readouterr().err
