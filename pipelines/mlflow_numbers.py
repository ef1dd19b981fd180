"""One process at a time makes versions of a model again under given numbers.

MLflow numbers a model's versions itself and never gives a number twice, not even a deleted version's: of two processes
that rebuild an emptied MLflow at once, the slower one would use up the next number and nobody could make that version
again. Data in: a client. Data out: a lock. Invariants: beside SQLite it is a file's, which the system drops with its
process; on a server it is a registered model `MODEL.being-rebuilt`, whose name MLflow gives to one process only, gone
afterwards. One left behind by a killed process is removed by whoever has seen the same holder for LEASE_SECONDS.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from serving.disk import folder_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

HOLDER_TAG = "strikeforge.holder"
LEASE_SECONDS = 30.0  # what is done under the lock is a few small requests
PAUSE_SECONDS = 0.1


@contextmanager
def exact_numbers(client: MlflowClient, model: str, artifact_root: Path | None) -> Iterator[None]:
    """Hold the lock of this model; MlflowException where the server fails."""
    if artifact_root is not None:
        with folder_lock(artifact_root, f".{model}-numbers-lock"):
            yield
        return
    name, mine = f"{model}.being-rebuilt", secrets.token_hex(8)
    _take(client, name, mine)
    try:
        yield
    finally:
        _remove(client, name, mine)


def _take(client: MlflowClient, name: str, mine: str) -> None:
    from mlflow.exceptions import MlflowException

    seen, since = "", time.monotonic()
    while True:
        try:
            client.create_registered_model(name, tags={HOLDER_TAG: mine})
        except MlflowException as error:
            # the second: MLflow found the name taken and, looking who has it, already free again
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
        else:
            return
        holder = _holder(client, name)
        if holder == mine:  # the answer to our own creation was lost, and MLflow's client sent it again
            return
        if holder is not None and holder != seen:
            seen, since = holder, time.monotonic()
        elif holder is not None and time.monotonic() - since > LEASE_SECONDS:
            _remove(client, name, seen)
        time.sleep(PAUSE_SECONDS)


def _holder(client: MlflowClient, name: str) -> str | None:
    """Who holds the lock; empty for somebody who left no name, None for nobody."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_registered_model(name).tags.get(HOLDER_TAG, ""))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _remove(client: MlflowClient, name: str, holder: str) -> None:
    """Remove the lock if this holder has it still."""
    from mlflow.exceptions import MlflowException

    if _holder(client, name) != holder:
        return
    try:
        client.delete_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
