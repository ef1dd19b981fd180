"""Private keys by URI: what is accepted, what is refused, and that no message, repr or log ever holds one."""

from __future__ import annotations

import base64
import json
import logging
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from pipelines.channel.key import import_public, make_pair
from pipelines.channel.key_files import keyid_of, make_key, marked, read_public, write_public
from pipelines.channel.keys import DEVELOPMENT_LINE, Keyring, open_key
from pipelines.channel.rotate import rotate
from pipelines.channel.settings import SigningConfig
from pipelines.errors import SigningError
from serving.folder_store import FolderStore
from tests.pipelines.channel.desk import Company, promote, signing


def secret_words(pem: bytes) -> list[str]:
    """Pieces of a PEM that must show up nowhere."""
    body = "".join(pem.decode().split("-----")[2].split())
    return [body[start : start + 16] for start in range(0, len(body) - 16, 16)]


@pytest.fixture
def pem() -> bytes:
    return CryptoSigner.generate_ed25519().private_bytes


def write(path: Path, pem: bytes, mode: int = 0o600) -> str:
    path.write_bytes(pem)
    path.chmod(mode)
    return f"file2:{path}"


@pytest.mark.parametrize(
    "make",
    [
        CryptoSigner.generate_ed25519,
        CryptoSigner.generate_ecdsa,
        lambda: CryptoSigner.generate_rsa(size=2048),
    ],
)
def test_a_key_signs_from_a_file_and_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], CryptoSigner]
) -> None:
    made = make()
    monkeypatch.setenv("CHANNEL_TEST_KEY", made.private_bytes.decode())
    for uri in (write(tmp_path / "key.pem", made.private_bytes), "envvar:CHANNEL_TEST_KEY"):
        opened = open_key(uri)
        assert opened.public.keyid == made.public_key.keyid
        named = SSlibKey("another-id", made.public_key.keytype, made.public_key.scheme, made.public_key.keyval)
        signature = opened.signer(named).sign(b"content")
        assert signature.keyid == "another-id", "signs under the id that the metadata names"
        named.verify_signature(signature, b"content")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620])
def test_a_file_that_others_may_touch_is_refused(tmp_path: Path, pem: bytes, mode: int) -> None:
    uri = write(tmp_path / "key.pem", pem, mode)
    with pytest.raises(SigningError, match=rf"key\.pem: others may read it \(mode {mode:o}\): chmod 600"):
        open_key(uri)


def test_an_encrypted_key_is_refused(tmp_path: Path, pem: bytes) -> None:
    private = load_pem_private_key(pem, None)
    locked = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
    with pytest.raises(SigningError, match="is encrypted"):
        open_key(write(tmp_path / "key.pem", locked))


def test_files_that_arent_keys_are_refused(tmp_path: Path, pem: bytes) -> None:
    with pytest.raises(SigningError, match=r"none\.pem: can't be read: No such file"):
        open_key(f"file2:{tmp_path}/none.pem")
    with pytest.raises(SigningError, match="isn't a plain file"):
        open_key(f"file2:{tmp_path}")
    for content in (b"", b"not a key", pem[: len(pem) // 2]):
        with pytest.raises(SigningError, match="holds no private key as PEM") as caught:
            open_key(write(tmp_path / "key.pem", content))
        assert not any(word in str(caught.value) for word in secret_words(pem))


def test_a_variable_is_named_and_its_value_never_shown(monkeypatch: pytest.MonkeyPatch, pem: bytes) -> None:
    monkeypatch.delenv("CHANNEL_TEST_KEY", raising=False)
    with pytest.raises(SigningError, match="envvar:CHANNEL_TEST_KEY: the variable isn't set"):
        open_key("envvar:CHANNEL_TEST_KEY")
    monkeypatch.setenv("CHANNEL_TEST_KEY", pem.decode().replace("PRIVATE", "PRIVAT"))
    with pytest.raises(SigningError, match="envvar:CHANNEL_TEST_KEY: holds no private key") as caught:
        open_key("envvar:CHANNEL_TEST_KEY")
    told = "".join(map(str, (caught.value, caught.value.__cause__)))
    assert not any(word in told for word in secret_words(pem))


@pytest.mark.parametrize("uri", ["{pem}", "envvar:{pem}", "file:{pem}", "{body}", "vault:{body}"])
def test_a_key_in_the_place_of_its_uri_is_never_shown(uri: str, pem: bytes) -> None:
    body = "".join(secret_words(pem))
    with pytest.raises(SigningError, match="isn't shown") as caught:
        open_key(uri.format(pem=pem.decode(), body=body))
    assert not any(word in str(caught.value) for word in secret_words(pem))


def test_nothing_prints_a_key(
    tmp_path: Path, pem: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    uri = write(tmp_path / "key.pem", pem)
    opened = open_key(uri)
    ring = Keyring([uri])
    ring.signers("timestamp", {opened.public.keyid: opened.public}, 1)
    config = signing(tmp_path, keys=(pem.decode(),))
    told = " ".join([repr(opened), repr(ring), repr(config), str(config), caplog.text])
    assert not any(word in told for word in secret_words(pem))
    raw = open_key(uri).private
    assert raw is not None
    numbers = raw.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert base64.b64encode(numbers).decode()[-16:] not in told


def test_the_configuration_takes_uris_from_one_variable() -> None:
    config = SigningConfig(
        kind="production", folder="keys", root_days=1.0, targets_days=1.0, model_days=1.0, snapshot_days=1.0,
        timestamp_days=1.0, release_days=1.0, keys=" file2:a.pem  envvar:B ",
    )  # fmt: skip
    assert config.keys == ("file2:a.pem", "envvar:B")


def test_the_order_of_uris_means_nothing_and_broken_ones_matter_only_if_needed(tmp_path: Path) -> None:
    keys = {name: make_key(tmp_path / f"{name}.pem", development=False) for name in ("one", "two", "three")}
    uris = ["file2:/none.pem", *(f"file2:{tmp_path}/{name}.pem" for name in ("three", "two"))]
    wanted = {keys[name].keyid: keys[name] for name in ("one", "two", "three")}
    assert len(Keyring(uris).signers("root", wanted, 2)) == 2
    with pytest.raises(SigningError, match=r"root: needs 3 of the keys .*, 2 of them at hand(.|\n)*none\.pem"):
        Keyring(uris).signers("root", wanted, 3)


def test_the_same_key_twice_counts_once(tmp_path: Path) -> None:
    key = make_key(tmp_path / "one.pem", development=False)
    other = make_key(tmp_path / "two.pem", development=False)
    uris = [f"file2:{tmp_path}/one.pem", f"file2:{tmp_path}/../{tmp_path.name}/one.pem"]
    with pytest.raises(SigningError, match="1 of them at hand"):
        Keyring(uris).signers("root", {key.keyid: key, other.keyid: other}, 2)


def test_a_pair_is_written_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        lines = make_pair(tmp_path / "new" / "ann", development=False)
    finally:
        os.umask(old)
    private, public = tmp_path / "new/ann.pem", tmp_path / "new/ann.pub.json"
    assert private.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    assert not any(word in " ".join(lines) for word in secret_words(private.read_bytes()))
    assert read_public(public).keyid == open_key(f"file2:{private}").public.keyid
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.startswith(".")] == []
    with pytest.raises(SigningError, match="there already"):
        make_pair(tmp_path / "new" / "ann", development=False)


def test_a_development_pair_says_so(tmp_path: Path) -> None:
    make_pair(tmp_path / "ann", development=True)
    assert (tmp_path / "ann.pem").read_bytes().startswith(DEVELOPMENT_LINE + b"-----BEGIN PRIVATE KEY-----")
    assert json.loads((tmp_path / "ann.pub.json").read_text())["x-strikeforge-kind"] == "development"
    with pytest.raises(SigningError, match="is a development key, which a production channel refuses"):
        Keyring([f"file2:{tmp_path}/ann.pem"]).at_hand({"x": read_public(tmp_path / "ann.pub.json")})
    import_public(f"file2:{tmp_path}/ann.pem", tmp_path / "again", development=False)
    assert read_public(tmp_path / "again.pub.json").unrecognized_fields == {"x-strikeforge-kind": "development"}


def test_a_public_half_must_fit_its_id(tmp_path: Path) -> None:
    make_pair(tmp_path / "ann", development=False)
    path = tmp_path / "ann.pub.json"
    values = json.loads(path.read_text())
    for change in ({"keyid": "0" * 64}, {"scheme": "rsa"}, {"keyval": {}}, {"keyval": {"public": "00"}}):
        path.write_text(json.dumps(values | change))
        with pytest.raises(SigningError, match=re.escape(str(path))):
            read_public(path)
    for text in ("", "[]", "{}", "null"):
        path.write_text(text)
        with pytest.raises(SigningError, match="isn't a public key"):
            read_public(path)


def test_a_key_id_follows_from_the_key_alone() -> None:
    key = CryptoSigner.generate_ed25519().public_key
    assert keyid_of(key) == key.keyid
    assert marked(key, development=True).keyid == key.keyid


def _make(path: Path) -> str:
    return make_key(path, development=True).keyid


@pytest.mark.slow
def test_processes_that_make_the_same_key_at_once_share_it(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        ids = pool.map(_make, [tmp_path / "snapshot.pem"] * 16)
    assert len(set(ids)) == 1


def test_one_key_under_two_schemes_doesnt_meet_a_threshold(tmp_path: Path, company: Company) -> None:
    signer = CryptoSigner.generate_rsa(size=2048)
    key = signer.public_key
    twin = SSlibKey("", key.keytype, "rsa-pkcs1v15-sha256", key.keyval)
    twin.keyid = keyid_of(twin)
    with pytest.raises(SigningError, match="are the same key"):
        rotate(company.bench(), "root", add=[key, twin])
    write_public(tmp_path / "twin.pub.json", twin)
    assert read_public(tmp_path / "twin.pub.json").keyid == twin.keyid


def kms_key(spec: str) -> str:
    """URI of a new key in the KMS."""
    import boto3

    kms = boto3.client("kms")
    key = kms.create_key(KeySpec=spec, KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName=f"alias/channel-{key}", TargetKeyId=key)
    return f"awskms:alias/channel-{key}"


@pytest.mark.cloud
@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_NIST_P384", "RSA_2048"])
def test_a_key_that_never_leaves_its_kms_signs_the_timestamp(
    kms: str, tmp_path: Path, store: FolderStore, company: Company, spec: str
) -> None:
    uri = kms_key(spec)
    import_public(uri, tmp_path / "kms", development=False)
    key, old = read_public(tmp_path / "kms.pub.json"), company.public("timestamp").keyid
    rotate(company.bench("ann", "bob", "snapshot", uri), "timestamp", add=[key], remove=[old])
    promote(store, "a", 1)
    channel = company.channel("models", "snapshot", uri)
    channel.ready("a")
    assert "model-a: release none -> 1" in channel.follow("a")
    assert company.host().number("a") == 1
    with pytest.raises(SigningError, match="awskms:alias/nobody: can't be opened: NotFoundException"):
        open_key("awskms:alias/nobody")


@pytest.mark.cloud
def test_a_kms_that_signs_something_else_publishes_nothing(
    aws: str, tmp_path: Path, store: FolderStore, company: Company
) -> None:
    """moto as it is hashes the hash again."""
    uri = kms_key("ECC_NIST_P256")
    key, old = open_key(uri).public, company.public("timestamp").keyid
    rotate(company.bench("ann", "bob", "snapshot"), "timestamp", add=[key], remove=[old])
    promote(store, "a", 1)
    before = store.get("channel/timestamp.json")
    with pytest.raises(SigningError, match="timestamp: a key at hand made signatures that don't verify"):
        company.channel("models", "snapshot", uri).follow("a")
    assert store.get("channel/timestamp.json") == before


@pytest.mark.cloud
def test_a_kms_out_of_reach_is_named(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SigningError, match=r"awskms:alias/timestamp: can't be opened: EndpointConnectionError"):
        open_key("awskms:alias/timestamp")


@pytest.mark.parametrize("uri", ["hsm:2?label=token", "gcpkms:projects/p/key", "azurekms://v.vault.azure.net/keys/k/1"])
def test_a_kms_whose_library_isnt_installed_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYKCS11LIB", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import sys\n"
        "for name in ('pkcs11', 'google.cloud.kms', 'azure.keyvault.keys'): sys.modules[name] = None\n"
        "from pipelines.channel.keys import open_key\n"
        "from pipelines.errors import SigningError\n"
        "try:\n    open_key(sys.argv[1])\nexcept SigningError as error:\n    print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"{uri}: can't be opened: UnsupportedLibraryError")


def test_other_curves_are_refused_as_such(tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256K1())
    raw = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(SigningError, match=r"key\.pem: "):
        open_key(write(tmp_path / "key.pem", raw))
    small = rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    assert open_key(write(tmp_path / "rsa.pem", small)).public.keytype == "rsa"
