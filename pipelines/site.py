"""The three places an act on a model's ledger touches, opened from the configuration.

In: an `Operation`. Out: `Site`. Invariant: opening is cheap and asks nobody; MLflow is connected to and keys are read
when they are first needed, so that a decision depends on the store alone.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.config import Operation
from pipelines.registry import Registry, lazy_registry
from serving.blobstore import BlobStore, open_store
from serving.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.channel.publish import Channel


@dataclass(frozen=True)
class Site:
    """Where the ledger decides, where MLflow records, where hosts read."""

    store: BlobStore
    registry: Registry
    channel: Channel


def open_site(cfg: Operation) -> Site:
    """The store, registry and channel of an operation."""
    from pipelines.channel.publish import open_channel

    store = open_store(cfg.storage.url)
    return Site(store, lazy_registry(cfg.registry.tracking_uri), open_channel(cfg.signing, store))


def person(cfg: Operation) -> str:
    """Who decides: `by`, else the user's name; ConfigError where there is none (a mere number, in a container)."""
    if cfg.by:
        return cfg.by
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise ConfigError(["by: must be given, as by=NAME; this machine knows no name of its user"]) from error
