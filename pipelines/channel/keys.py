"""Private keys by URI: opened, matched with the public keys that metadata names, and never shown.

In: URIs, public keys of a role. Out: signers. A URI is one of

    file2:PATH        PEM (PKCS 8, no passphrase), readable by its owner alone
    envvar:NAME       the same PEM in an environment variable, as CI's secrets come
    awskms:ID  gcpkms:NAME  azurekms://VAULT.vault.azure.net/keys/NAME/VERSION  hsm:[ID][?label=LABEL]
                      the key stays in a KMS or a PKCS 11 device (securesystemslib's signers; credentials by each SDK's
                      own default chain, an HSM's PIN in STRIKEFORGE_HSM_PIN)

Invariants: which role a URI signs for follows from its public half, so the order of URIs means nothing; a URI that
can't be opened is an error only where its signature is needed; no message, repr or log holds a private key, nor text
that might be one; a key marked as a development key signs nothing of a production channel.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import AWSSigner, AzureSigner, CryptoSigner, GCPSigner, HSMSigner, Key, Signer, SSlibKey

from pipelines.errors import SigningError
from serving.installed import ROOT_KIND

DEVELOPMENT_LINE = b"strikeforge development key\n"
KIND_FIELD = ROOT_KIND  # of a root, and of the public half of a development key
PEM_SCHEMES = ("file2", "envvar")
KMS_SCHEMES = ("awskms", "gcpkms", "azurekms", "hsm")
PIN_VARIABLE = "STRIKEFORGE_HSM_PIN"
MAX_PEM_BYTES = 1 << 16
SHORT = 12  # digits of a key id that are shown, and enough to name it
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True)
class OpenedKey:
    """A private key that can sign; `public` is its public half."""

    uri: str
    public: SSlibKey
    is_development: bool = False
    private: PrivateKeyTypes | None = field(default=None, repr=False)  # None: it stays where it is

    def signer(self, named: Key) -> Signer:
        """The signer for this key as a role's metadata names it (its key id, its scheme)."""
        if self.private is None:
            return Signer.from_priv_key_uri(self.uri, named, secret)
        assert isinstance(named, SSlibKey)
        return CryptoSigner(self.private, named)


class Keyring:
    """The keys at hand: those of the URIs and, for a development channel, every PEM file of its folder."""

    def __init__(self, uris: Sequence[str], *, folder: Path | None = None, allow_development: bool = False) -> None:
        self._uris = tuple(uris)
        self._folder = folder
        self._allow_development = allow_development
        self._opened: dict[str, OpenedKey] = {}

    def __repr__(self) -> str:
        return f"Keyring({len(self._uris)} URIs, folder={self._folder})"

    def signers(self, role: str, keys: Mapping[str, Key], threshold: int) -> list[Signer]:
        """At least `threshold` signers for `keys` (by key id); SigningError, saying what is at hand, if fewer are."""
        found, problems = self._match(keys, threshold)
        if len(found) < threshold:
            ids = ", ".join(short(keyid) for keyid in keys) or "none"
            where = "name the private keys' URIs in STRIKEFORGE_SIGNING_KEYS (docs/runbook-signing.md)"
            if self._folder is not None:
                where = f"{self._folder} lacks them: name the folder they were made in (STRIKEFORGE_KEYS)"
            head = f"{role}: needs {threshold} of the keys {ids}, {len(found)} of them at hand; {where}"
            raise SigningError("\n  - ".join([head, *problems]))
        return found

    def at_hand(self, keys: Mapping[str, Key]) -> list[Signer]:
        """Every signer there is for `keys`; SigningError if one of the URIs can't be opened."""
        found, problems = self._match(keys, len(keys))
        if problems:
            raise SigningError("\n  - ".join(["keys that can't be used:", *problems]))
        return found

    def _match(self, keys: Mapping[str, Key], enough: int) -> tuple[list[Signer], list[str]]:
        """Signers for the keys, looking no further than it takes; and what was wrong with URIs on the way."""
        found: dict[str, Signer] = {}
        problems = []
        for uri in self._all():
            if len(found) >= enough:
                break
            try:
                opened = self._open(uri)
            except SigningError as error:
                problems.append(str(error))
                continue
            for keyid, key in keys.items():
                if keyid not in found and same_key(key, opened.public):
                    found[keyid] = _signer(opened, key)
        return list(found.values()), problems

    def _all(self) -> list[str]:
        there = sorted(self._folder.glob("*.pem")) if self._folder is not None else []
        return [*self._uris, *(f"file2:{path}" for path in there)]

    def _open(self, uri: str) -> OpenedKey:
        if uri not in self._opened:
            opened = open_key(uri)
            if opened.is_development and not self._allow_development:
                raise SigningError(f"{uri}: is a development key, which a production channel refuses")
            self._opened[uri] = opened
        return self._opened[uri]


def open_key(uri: str) -> OpenedKey:
    """The private key a URI leads to; SigningError saying what is wrong, without what may be secret."""
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in (*PEM_SCHEMES, *KMS_SCHEMES):
        raise SigningError(
            f"a key's URI begins with one of {', '.join(f'{name}:' for name in (*PEM_SCHEMES, *KMS_SCHEMES))}; what "
            "was given instead isn't shown, it might be the key itself"
        )
    if scheme in KMS_SCHEMES:
        return OpenedKey(uri, kms_public_key(uri))
    pem = _read_file(rest) if scheme == "file2" else _read_variable(rest)
    private = _load(pem, uri)
    try:
        public = SSlibKey.from_crypto(private.public_key())
    except ValueError as error:
        raise SigningError(f"{uri}: {error}; use ed25519, ECDSA on a NIST curve, or RSA") from error
    return OpenedKey(uri, public, pem.startswith(DEVELOPMENT_LINE), private)


def kms_public_key(uri: str) -> SSlibKey:
    """The public half of a key that stays in a KMS or an HSM: asks it."""
    scheme, _, rest = uri.partition(":")
    try:
        if scheme == "awskms":
            return AWSSigner.import_(rest)[1]
        if scheme == "gcpkms":
            return GCPSigner.import_(rest)[1]
        parts = urlsplit(uri)
        if scheme == "azurekms":
            found, key = AzureSigner.import_((parts.hostname or "").split(".")[0], parts.path.split("/")[2])
            if found != uri:
                raise SigningError(f"{uri}: the vault's current version of this key is {found}; name that one")
            return key
        label = parse_qs(parts.query).get("label", [None])[0]
        return HSMSigner.import_(int(parts.path) if parts.path else None, label)[1]
    except SigningError:
        raise
    except Exception as error:  # securesystemslib lists no errors of its signers: each SDK has its own
        raise SigningError(f"{uri}: can't be opened: {type(error).__name__}: {error}") from error


def secret(name: str) -> str:
    """What an HSM asks for (its PIN), from the environment."""
    if not os.environ.get(PIN_VARIABLE):
        raise SigningError(f"the HSM asks for its {name}: set {PIN_VARIABLE}")
    return os.environ[PIN_VARIABLE]


def same_key(one: Key, other: Key) -> bool:
    """Whether two public keys are the same, whatever their ids and schemes."""
    return str(one.keyval.get("public", "")).strip() == str(other.keyval.get("public", "")).strip()


def short(keyid: str) -> str:
    """The beginning of a key id, enough to tell keys apart."""
    return keyid[:SHORT]


def _signer(opened: OpenedKey, named: Key) -> Signer:
    try:
        return opened.signer(named)
    except SigningError:
        raise
    except Exception as error:  # as above
        raise SigningError(f"{opened.uri}: can't sign with it: {type(error).__name__}: {error}") from error


def _read_file(path: str) -> bytes:
    """The PEM of a file that nobody else may read; judged and read through one descriptor."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SigningError(f"file2:{path}: can't be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SigningError(f"file2:{path}: isn't a plain file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise SigningError(f"file2:{path}: others may read it (mode {mode:o}): chmod 600, and if they did, rotate")
        return os.read(descriptor, MAX_PEM_BYTES)
    finally:
        os.close(descriptor)


def _read_variable(name: str) -> bytes:
    if not VARIABLE.fullmatch(name):
        raise SigningError("envvar: must be followed by the name of a variable; what stands there isn't shown")
    if not os.environ.get(name):
        raise SigningError(f"envvar:{name}: the variable isn't set; it must hold a private key as PEM")
    return os.environ[name].encode()


def _load(pem: bytes, uri: str) -> PrivateKeyTypes:
    """The key of a PEM; what the parser says of bad ones stays with us, it may quote them."""
    try:
        return load_pem_private_key(pem, None)
    except TypeError:
        raise SigningError(
            f"{uri}: is encrypted; nobody is there to type a passphrase: use a KMS, or a file of mode 600 without one"
        ) from None
    except Exception:  # noqa: BLE001 (UnsupportedAlgorithm, ValueError; their text may quote the file)
        raise SigningError(f"{uri}: holds no private key as PEM (PKCS 8)") from None
