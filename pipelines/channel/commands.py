"""What the channel's commands share: configuration, what each of them takes, the workbench.

In: overrides of a command line (`conf/channel.yaml`). Out: a closed `ChannelCommand`, or one ConfigError that names
every problem: unknown keys, wrong values, keys that this command doesn't take, keys that it needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from securesystemslib.signer import SSlibKey

from pipelines import config
from pipelines.channel.key_files import PUBLIC_SUFFIX, read_public
from pipelines.channel.settings import SigningConfig
from pipelines.channel.workbench import Workbench, open_workbench
from pipelines.command import with_overrides
from pipelines.config import Count, ModelConfig, StorageConfig, VersionNumber
from pipelines.errors import SigningError
from serving.blobstore import open_store
from serving.errors import ConfigError

RoleName = Literal["root", "targets", "snapshot", "timestamp"]
ALWAYS = ("signing", "storage", "dry_run")


def _listed(value: Any) -> Any:
    """One word is a list of one; a number was a key id that lost its quotes."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError("was read as a number; give all 64 digits of a key id, or put it in quotes twice: \"'123'\"")
    return (value,) if isinstance(value, str) else value


Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_listed)]
Secrets = Annotated[tuple[str, ...], BeforeValidator(_listed)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ChannelCommand:
    """One act on the channel; conf/channel.yaml says which command takes what."""

    signing: SigningConfig
    storage: StorageConfig
    role: RoleName | None
    file: str | None
    uri: Secrets = dataclasses.field(repr=False)
    key: Words
    add: Words
    remove: Words
    threshold: VersionNumber | None
    root: Words
    targets: Words
    snapshot: Words
    timestamp: Words
    root_threshold: Count
    targets_threshold: Count
    publish: bool
    dry_run: bool
    model: ModelConfig | None = None

    @property
    def bench(self) -> Workbench:
        """The workbench over the store, with the keys that were named on the command line first."""
        signing = dataclasses.replace(self.signing, keys=(*self.uri, *self.signing.keys))
        return open_workbench(signing, open_store(self.storage.url))


def channel_command(
    help_text: str | None,
    run: Callable[[ChannelCommand], Sequence[str]],
    *,
    takes: Sequence[str] = (),
    needs: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Run one of the commands; it `takes` these keys besides the usual ones and `needs` those."""

    def act(overrides: Sequence[str]) -> str:
        cfg = load_command(overrides)
        problems = _not_taken(overrides, (*takes, *needs))
        problems += [f"{name}: must be given" for name in needs if not getattr(cfg, name)]
        if problems:
            raise ConfigError(problems)
        return "\n".join(run(cfg)) or "nothing to do"

    return with_overrides(help_text, act, argv)


def load_command(overrides: Sequence[str]) -> ChannelCommand:
    """The configuration of a command; raises ConfigError with every problem found, without a key given by mistake."""
    for text in overrides:
        if "PRIVATE KEY" in text:
            name = text.partition("=")[0]
            raise ConfigError([f"{name}: a private key itself was given; say where it is (file2:PATH, envvar:NAME)"])
    return config.load(ChannelCommand, "channel", overrides)


def public_keys(files: Sequence[str]) -> list[SSlibKey]:
    """The public halves in these files; SigningError naming every file that holds none."""
    found, problems = [], []
    for name in files:
        try:
            found.append(read_public(Path(name)))
        except SigningError as error:
            problems.append(str(error))
    if problems:
        raise SigningError("\n  - ".join(["public keys that can't be used:", *problems]))
    return found


def key_ids(words: Sequence[str]) -> list[str]:
    """Key ids, or the ids of the public halves in files."""
    return [read_public(Path(word)).keyid if word.endswith(PUBLIC_SUFFIX) else word for word in words]


def _not_taken(overrides: Sequence[str], taken: Sequence[str]) -> list[str]:
    given = [text.lstrip("+").split("=")[0] for text in overrides]
    return [
        f"{name}: this command doesn't take it; it takes {', '.join((*taken, *ALWAYS))}"
        for name in given
        if name.split(".")[0] not in (*taken, *ALWAYS)
    ]
