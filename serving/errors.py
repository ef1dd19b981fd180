"""Every error a user can meet, in one tree, each with the exit code its command ends with.

    StrikeforgeError                 1
    ├── ConfigError                  2   configuration: unknown key, wrong value, all problems at once
    ├── DataError                    3   input data: file, column, row
    │   ├── SchemaError              3   columns missing or unusable, all of them named
    │   └── TooFewSnapshotsError     4   not enough history, with have and need
    ├── BundleError                  5   a bundle refused: tampered, unknown file, wrong shape
    ├── LedgerError                  6   ledger: broken chain, lost race, nothing to roll back to
    ├── GateError                    7   a gate said no; nothing was changed
    ├── EngineError                  8   an engine refused or is missing
    ├── StoreError                   9   a blob store refused or can't be reached
    │   └── BlobMissingError         9   there is no blob of that key
    ├── TrustError                  10   a release refused: unsigned, tampered, expired, replayed
    ├── HostError                   14   a ring, a feed, limits or the loop of a trading host refused
    └── pipelines: RegistryError    11   MLflow refused or can't be reached; nothing was decided
                   SigningError     12   a signing key is missing, doesn't fit or isn't allowed
                   FollowUpError    13   the decision stands; MLflow or the channel hasn't followed: reconcile

Invariants: messages name the file, row or key, the value found and the remedy. Programming errors of ours are
`assert`s and are not part of this tree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


class StrikeforgeError(Exception):
    """Base of every error that is the caller's to mend."""

    exit_code = 1


class ConfigError(StrikeforgeError):
    """One or several problems in a configuration; `problems` holds one line each."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the configuration:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


class DataError(StrikeforgeError, ValueError):
    """Input data can't be used; names file, row or column, the value and the remedy."""

    exit_code = 3


class SchemaError(DataError):
    """Columns are missing or unusable; every one of them is named."""


class TooFewSnapshotsError(DataError):
    """Not enough snapshots for what was asked; says how many there are and how many are needed."""

    exit_code = 4


class BundleError(StrikeforgeError):
    """A bundle is refused: unknown file, wrong hash, wrong shape, wrong model."""

    exit_code = 5


class LedgerError(StrikeforgeError):
    """The ledger is broken, was written by somebody else meanwhile, or holds no such release."""

    exit_code = 6


class GateError(StrikeforgeError):
    """A promotion gate failed; nothing was changed."""

    exit_code = 7


class EngineError(StrikeforgeError):
    """An engine refused its model or input, or isn't installed."""

    exit_code = 8


class StoreError(StrikeforgeError):
    """A blob store refused: bad key, unknown scheme, a blob too large, no access, no answer."""

    exit_code = 9


class BlobMissingError(StoreError):
    """There is no blob of that key."""


class TrustError(StrikeforgeError):
    """What a channel says can't be trusted; what is installed stays as it is."""

    exit_code = 10


class HostError(StrikeforgeError):
    """A ring, a feed, limits or the loop of a trading host refused; no order left because of it."""

    exit_code = 14


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main`; turn the user's errors into one message on stderr and their exit code."""
    try:
        return main(sys.argv[1:] if argv is None else argv) or 0
    except StrikeforgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
