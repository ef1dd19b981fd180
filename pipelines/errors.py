"""Errors of the training side, in the tree of serving/errors.py, which lists their exit codes."""

from __future__ import annotations

from serving.errors import StrikeforgeError


class SigningError(StrikeforgeError):
    """A signing key is missing, doesn't fit its role, or isn't allowed here; nothing was published."""

    exit_code = 12


class FollowUpError(StrikeforgeError):
    """The ledger's decision stands, but something derived from it hasn't followed; `reconcile` completes it."""

    exit_code = 13
