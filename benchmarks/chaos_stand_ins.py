"""Stand-ins for what a part of the chaos isn't about.

In: a ledger. Out: a registry that lives in memory, a channel that stays still.
Invariant: nothing of the product is changed; a stand-in has the interface of what it stands for and nothing else.
"""

from __future__ import annotations

from functools import cached_property
from typing import cast

from pipelines.registry import BUNDLE_TAG, Registry
from serving.ledger import Ledger


class StillChannel:
    """A channel that never has anything to publish."""

    def ready(self, model: str) -> None:
        """Keys for signing are there."""

    def follow(self, model: str, *, dry_run: bool = False) -> tuple[str, ...]:
        """Nothing changes."""
        return ()


class _Memory:
    """MLflow with the versions the ledger had when it was first asked, without aliases."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._aliases: dict[str, int] = {}

    def versions(self, model: str) -> dict[int, dict[str, str]]:
        return dict(self._versions)

    @cached_property
    def _versions(self) -> dict[int, dict[str, str]]:
        return {number: {BUNDLE_TAG: known.bundle} for number, known in self._ledger.state().versions.items()}

    def aliases(self, model: str) -> dict[str, int]:
        return dict(self._aliases)

    def set_alias(self, model: str, alias: str, version: int) -> None:
        self._aliases[alias] = version

    def delete_alias(self, model: str, alias: str) -> None:
        self._aliases.pop(alias, None)


def memory_registry(ledger: Ledger) -> Registry:
    """A registry that has the ledger's versions."""
    return cast(Registry, _Memory(ledger))
