"""What a channel's signatures vouch for: a TUF client (python-tuf's `ngclient`) over a blob store.

Data in: `channel/*.json` of a store, the root file a person brought to the host, the metadata trusted so far. Data out:
`Content` (key, length, sha256) of targets that a model's role signed; trusted metadata on disk, synced.
Checked by ngclient (TUF specification 1.0.31, section 5): thresholds, expiry, versions that only grow, consistent
snapshots. Checked here besides: every root ever trusted in this folder and the root file given lie on one chain; a
development root only where it is allowed; the top level delegates and signs no target itself; a model's role signs its
own model alone. Invariants: metadata replaces what is on disk only after it was verified, root first, each file synced;
after a kill ngclient goes on from any mixture of old and new files. Every refusal is a TrustError naming the file.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from serving.blobstore import BlobStore
from serving.canonical import is_model_name, is_sha256
from serving.disk import sync_file, sync_folder
from serving.downloads import Content
from serving.errors import BlobMissingError, TrustError
from serving.installed import DEVELOPMENT, ROOT_KIND
from serving.release import content_key, release_key, role_of

CHANNEL_PREFIX = "channel/"
BASE_URL = "store:///"
HISTORY = "root_history"  # where ngclient keeps every root it trusted
ORDER = ("timestamp.json", "snapshot.json", "targets.json")  # then the models' roles
MAX_ROOT_BYTES = 512_000
CONFIG = UpdaterConfig(
    max_delegations=8,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=16_384,
    snapshot_max_length=2_000_000,
    targets_max_length=5_000_000,
)
PLAIN = {
    exceptions.UnsignedMetadataError: "isn't signed by enough of the keys it must be signed by",
    exceptions.ExpiredMetadataError: "has expired; whoever keeps the channel must sign it anew (refresh)",
    exceptions.BadVersionNumberError: "is an old version played back, or mixed with files of another time",
    exceptions.LengthOrHashMismatchError: "differs from what was signed: tampered with, or mixed with another time's",
    exceptions.DownloadLengthMismatchError: "is longer than allowed",
    DeserializationError: "isn't readable metadata",
}


class StoreFetcher(FetcherInterface):
    """Gives ngclient the blobs of a store; `reading` is what was asked for last, for messages."""

    def __init__(self, store: BlobStore, reading: str) -> None:
        self.store = store
        self.reading = reading

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.reading = url.removeprefix(BASE_URL)
        return self._chunks(self.reading)

    def _chunks(self, key: str) -> Iterator[bytes]:
        try:
            yield from self.store.stream(key)
        except BlobMissingError as error:
            raise exceptions.DownloadHTTPError(f"{key} is missing", 404) from error


class SignedChannel:
    """Verified metadata of a store, for one model."""

    def __init__(self, updater: Updater, fetcher: StoreFetcher, model: str) -> None:
        self._updater, self._fetcher, self._model = updater, fetcher, model

    def find(self, target: str) -> TargetFile:
        """What was signed of a target path."""
        with _refusals(self._fetcher):
            found = self._updater.get_targetinfo(target)
        if found is None:
            raise TrustError(f"{target}: role {role_of(self._model)} of the channel doesn't sign it")
        return found

    def content(self, target: str, *, max_bytes: int) -> Content:
        """A content-addressed blob of the model; its size is bounded before a byte of it is read."""
        found = self.find(target)
        return _content(target, found, content_key(self._model, target), max_bytes)

    def release(self, target: str, *, max_bytes: int) -> tuple[Content, object]:
        """The release file, found by its hash, and what the signed metadata repeats of it."""
        found = self.find(target)
        return _content(target, found, release_key(found.hashes.get("sha256", "")), max_bytes), found.custom


def _content(target: str, found: TargetFile, key: str, max_bytes: int) -> Content:
    sha256 = found.hashes.get("sha256", "")
    if not is_sha256(sha256):
        raise TrustError(f"{target}: signed with hashes {sorted(found.hashes)}, there must be a sha256")
    if found.length > max_bytes:
        raise TrustError(f"{target}: {found.length} bytes were signed, at most {max_bytes} are allowed")
    return Content(target, key, found.length, sha256)


def is_signed(store: BlobStore) -> bool:
    """Whether the store holds anything of a channel."""
    return bool(store.list(CHANNEL_PREFIX))


@contextmanager
def signed_channel(
    store: BlobStore, root_file: Path, folder: Path, *, model: str, development: bool
) -> Iterator[SignedChannel]:
    """The channel, refreshed; what was verified lies in `folder` when this ends, also with an error.

    `folder` holds what this host trusts (made on first use); the caller keeps everybody else out of it.
    """
    given = _read_root_file(root_file)
    version = _parse_root(given, f"root file {root_file}", development).version
    known = _known_roots(folder)
    if known and known.get(version, given) != given:
        raise TrustError(
            f"root file {root_file}: isn't the root {version} that {folder.parent} trusts; give the root file it was "
            "made with, or pull into another folder"
        )
    staged = folder.with_name(f"{folder.name}-new")
    shutil.rmtree(staged, ignore_errors=True)
    fetcher = StoreFetcher(store, f"root file {root_file}")
    expected, refreshed = {**known, version: given}, False
    try:
        _copy(folder, staged)
        bootstrap = known[min(known)] if known and version >= min(known) else given
        try:
            with _refusals(fetcher):
                base = BASE_URL + CHANNEL_PREFIX
                updater = Updater(str(staged), base, fetcher=fetcher, config=CONFIG, bootstrap=bootstrap)
                updater.refresh()
            _check_roots(staged, expected, root_file, development)
            _check_delegations(staged)
            refreshed = True
            yield SignedChannel(updater, fetcher, model)
        except OSError:  # a full disk: what is in the private copy may lack something
            raise
        except BaseException:
            # a root file that never fitted isn't what a folder trusts from then on
            if (known or refreshed) and _on_one_chain(staged, expected):
                _commit(staged, folder)
            raise
        _commit(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _copy(folder: Path, staged: Path) -> None:
    """The trusted metadata, if any, once more for ngclient to work on."""
    (staged / HISTORY).mkdir(parents=True)
    for path in (*folder.glob("*.json"), *folder.glob(f"{HISTORY}/*.json")):
        (staged / path.relative_to(folder)).write_bytes(path.read_bytes())


def _read_root_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_ROOT_BYTES + 1)
    except OSError as error:
        raise TrustError(
            f"root file {path}: can't be read: {error.strerror}; --root names the root to trust"
        ) from error
    if len(raw) > MAX_ROOT_BYTES:
        raise TrustError(f"root file {path}: longer than the {MAX_ROOT_BYTES} bytes allowed")
    return raw


def _parse_root(raw: bytes, name: str, development: bool) -> Root:
    try:
        root = Metadata[Root].from_bytes(raw)
    except exceptions.RepositoryError as error:
        raise TrustError(f"{name}: isn't TUF root metadata: {error.__cause__ or error}") from error
    if not isinstance(root.signed, Root):
        raise TrustError(f"{name}: is {root.signed.type} metadata, not a root")
    if root.signed.unrecognized_fields.get(ROOT_KIND) == DEVELOPMENT and not development:
        raise TrustError(
            f"{name}: is a development root, whose keys lie unprotected on somebody's machine; it signs nothing that "
            "may trade. To try it out say --development"
        )
    return root.signed


def _known_roots(folder: Path) -> dict[int, bytes]:
    """Every root trusted so far, by version."""
    found = {}
    for path in (folder / HISTORY).glob("*.root.json"):
        number = path.name.partition(".")[0]
        if number.isdecimal():
            found[int(number)] = path.read_bytes()
    return found


def _on_one_chain(staged: Path, expected: dict[int, bytes]) -> bool:
    chain = _known_roots(staged)
    return all(chain.get(version) == raw for version, raw in expected.items())


def _check_roots(staged: Path, expected: dict[int, bytes], root_file: Path, development: bool) -> None:
    """All roots this folder ever trusted, and the one given, must lie on the chain that was verified now."""
    chain = _known_roots(staged)
    if not _on_one_chain(staged, expected):
        astray = min(version for version, raw in expected.items() if chain.get(version) != raw)
        raise TrustError(
            f"channel/{astray}.root.json: the root {astray} that is trusted here ({root_file}) isn't among the "
            f"channel's roots {min(chain)} to {max(chain)}; the channel is another one, or an old copy"
        )
    _parse_root(chain[max(chain)], f"channel/{max(chain)}.root.json", development)


def _check_delegations(staged: Path) -> None:
    """The top level signs no target; role `model-M` may sign paths under `M/` and nothing else."""
    targets = Metadata[Targets].from_file(str(staged / "targets.json")).signed
    if targets.targets:
        raise TrustError(f"channel/targets: signs {sorted(targets.targets)[0]!r} itself; it may only delegate")
    roles = targets.delegations.roles if targets.delegations else None
    if not roles:
        raise TrustError("channel/targets: delegates to no model's role")
    for name, role in roles.items():
        model = name.removeprefix(role_of(""))
        if name != role_of(model) or not is_model_name(model):
            raise TrustError(f"channel/targets: delegates to {name!r}, which isn't a model's role")
        wrong = [path for path in role.paths or [""] if not path.startswith(f"{model}/")]
        if wrong:
            raise TrustError(f"channel/targets: lets {name} sign {wrong[0]!r}, which isn't its model's")
        if not role.terminating:
            raise TrustError(f"channel/targets: the delegation to {name} must be terminating")


def _commit(staged: Path, folder: Path) -> None:
    """Verified files replace the trusted ones, one rename each: roots, then from the timestamp down."""
    (folder / HISTORY).mkdir(parents=True, exist_ok=True)
    roots = sorted((staged / HISTORY).glob("*.root.json"), key=lambda path: int(path.name.partition(".")[0]))
    others = [path for path in staged.glob("*.json") if not path.is_symlink()]
    others.sort(key=lambda path: (ORDER.index(path.name) if path.name in ORDER else len(ORDER), path.name))
    for path in (*roots, *others):
        place = folder / path.relative_to(staged)
        if not place.exists() or place.read_bytes() != path.read_bytes():
            path.chmod(0o644)  # public; ngclient's temporary files aren't
            sync_file(path)
            path.replace(place)
            sync_folder(place.parent)
    sync_folder(folder)
    sync_folder(folder.parent)


@contextmanager
def _refusals(fetcher: StoreFetcher) -> Iterator[None]:
    """ngclient's exceptions in words, with the key that was being read."""
    try:
        yield
    except exceptions.DownloadHTTPError as error:
        raise TrustError(f"{fetcher.reading}: is missing in the store, so nothing there can be trusted") from error
    except (exceptions.RepositoryError, exceptions.DownloadError) as error:
        text = next((words for kind, words in PLAIN.items() if isinstance(error, kind)), "is refused")
        where = "channel/root" if str(error).startswith("Final root") else fetcher.reading
        detail = repr(error.__cause__) if isinstance(error, DeserializationError) else str(error)
        raise TrustError(f"{where}: {text} ({detail})") from error
