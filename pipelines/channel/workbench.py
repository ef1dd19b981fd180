"""What everything that signs has before it: configuration, store, kept public material, keys, the time.

Data in: `SigningConfig`, a store. Data out: the verified `View`, newly signed and written metadata. Invariants: neither
store nor keys are read before they are needed; a development configuration never touches a production channel, nor the
other way round; a number is taken once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tuf.api.metadata import Root, Targets

from pipelines.channel import documents
from pipelines.channel.kept import Kept
from pipelines.channel.keys import Keyring
from pipelines.channel.metadata import Held, T, View, kind_of, read_channel
from pipelines.channel.settings import SigningConfig
from pipelines.errors import SigningError
from serving.blobstore import BlobStore
from serving.errors import StoreError
from serving.release import role_of

TAKEN_NUMBERS = 100


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Workbench:
    """One store's channel and what is needed to sign it."""

    signing: SigningConfig
    store: BlobStore
    kept: Kept
    keyring: Keyring
    now: Callable[[], datetime] = utc_now

    @property
    def is_development(self) -> bool:
        """Whether keys, root and delegations are made as they are needed."""
        return self.signing.is_development

    def view(self, *, anew: bool = False) -> View:
        """What counts in the store; SigningError if it is a channel of the other kind."""
        view = read_channel(self.store, self.kept.roots(), anew=anew)
        if view.roots and kind_of(view.root) != self.signing.kind:
            raise SigningError(
                f"the store has a {kind_of(view.root)} channel, but signing is {self.signing.kind}: "
                f"say signing={kind_of(view.root)}, or use another store"
            )
        return view

    def targets_of(self, view: View) -> Targets:
        """The targets that count; SigningError if there are none."""
        if not view.roots:
            raise self.no_channel()
        if view.targets is None:
            raise SigningError(
                f"root {view.root.version} wants other signatures on the targets than they have: "
                "`python -m pipelines.channel.sign` the pending targets, or rotate role=targets"
            )
        return view.targets.signed

    def lacks_foundation(self, view: View) -> bool:
        """Whether a development channel's root or targets have still to be made, or brought back from the folder."""
        without_targets = view.targets is None and view.snapshot is None
        return self.is_development and (without_targets or len(view.roots) < len(self.kept.roots()))

    def expires(self, role: str) -> datetime:
        """When what is signed now for a role ends."""
        return self.now() + self.signing.lifetime(role)

    def check_keys(self, by: Root | Targets, role: str) -> None:
        """SigningError unless enough keys of the role are at hand."""
        self.keyring.signers(role, documents.keys_of(by, role), documents.threshold_of(by, role))

    def put(self, role: str, by: Root | Targets, first: int, build: Callable[[int], T]) -> Held[T]:
        """Sign and write metadata under the first number from `first` on that nobody has taken."""
        for version in range(first, first + TAKEN_NUMBERS):
            held = documents.sign(build(version), role, [by], self.keyring)
            if role == "targets" and not self.kept.reserve(held.key, held.raw):
                continue
            if self.store.put_if_absent(held.key, held.raw):
                return held
        raise StoreError(f"channel/: the {TAKEN_NUMBERS} numbers of {role} from {first} on are all taken")

    def no_channel(self) -> SigningError:
        """What is said where there should be a channel."""
        kept = self.kept.roots()
        remedy = "`python -m pipelines.channel.init` makes one (docs/runbook-signing.md)"
        if kept:
            remedy = f"{self.kept.folder} keeps root {len(kept)}: `python -m pipelines.channel.restore` makes it anew"
        return SigningError(f"{self.store!r} has no channel; {remedy}")


def open_workbench(signing: SigningConfig, store: BlobStore, now: Callable[[], datetime] = utc_now) -> Workbench:
    """Reads neither store nor keys yet."""
    folder = signing.path if signing.is_development else None
    keyring = Keyring(signing.keys, folder=folder, allow_development=signing.is_development)
    return Workbench(signing, store, Kept(signing.path), keyring, now)


def not_delegated(model: str) -> SigningError:
    """What a production channel says of a model that nobody has let in."""
    return SigningError(
        f"{role_of(model)}: the channel's targets don't name this model: "
        f"`python -m pipelines.channel.delegate model={model} key=PUBLIC.pub.json` (docs/runbook-signing.md)"
    )
