"""The way to MLflow: opening it, how long it may take to answer, what its failures are called here.

Data in: a tracking URI, `sqlite:///FILE` or `http(s)://HOST`. Data out: a client that answered, and the folder of
artifacts where no server decides. Invariants: importing this costs nothing (MLflow takes seconds); a server that can't
be reached, hangs or isn't MLflow is a RegistryError within seconds; so is every other failure of MLflow's, of its
database or of its artifact store, whichever library raised it; no message repeats a password of a URL.

Environment, MLflow's own variables, set here unless the user did: MLFLOW_HTTP_REQUEST_TIMEOUT (seconds without a byte
of an answer), MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR. MLflow's defaults (120 s, 7
retries) would wait a quarter of an hour for a server that hangs and four minutes for one that is down.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.disk import folder_lock
from serving.errors import StrikeforgeError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # the server stores an artifact before it answers
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",  # waits of 0, 2 and 4 s, and up to 1 s of jitter each
}
PROBE_SECONDS = 5  # for a first answer
# Libraries whose errors are MLflow's, its database's or its artifact store's; OSErrors count too (requests' are).
FOREIGN = ("mlflow", "requests", "urllib3", "sqlalchemy", "botocore", "boto3", "google", "azure")


class RegistryError(StrikeforgeError):
    """MLflow refused, can't be reached, or holds other versions than the ledger."""

    exit_code = 11


def prepare() -> None:
    """The environment MLflow reads, as above; before MLflow is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def connect(tracking_uri: str) -> tuple[MlflowClient, Path | None]:
    """A client that MLflow answered, and the folder of artifacts (None: the server decides).

    Creates the SQLite schema if there is none; safe to call from several processes at once. RegistryError.
    """
    prepare()
    artifact_root: Path | None = None
    scheme = tracking_uri.partition("://")[0]
    if scheme.split("+")[0] in ("postgres", "postgresql", "mysql", "mssql"):
        raise RegistryError(
            f"registry.tracking_uri: {without_passwords(tracking_uri)} is a database; it needs a server before it, "
            "which keeps the artifacts: make mlflow-server, then http://HOST:5000 (docs/storage.md)"
        )
    if tracking_uri.startswith("sqlite:///"):
        database = ROOT / tracking_uri.removeprefix("sqlite:///")  # a relative one lies in the project's root
        tracking_uri = f"sqlite:///{database}"
        artifact_root = database.parent / "mlruns"
    with translated(f"opening {tracking_uri}"):
        if artifact_root is not None:
            artifact_root.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient

        if scheme in ("http", "https"):
            _require_answer(tracking_uri)
        with folder_lock(artifact_root, ".schema-lock") if artifact_root else nullcontext():  # "duplicate column name"
            client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    return client, artifact_root


def _require_answer(tracking_uri: str) -> None:
    """RegistryError unless the server answers at all, soon; what it answers is judged by the requests that follow."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    once: dict[str, Any] = {"timeout": PROBE_SECONDS, "max_retries": 1, "backoff_factor": 0, "raise_on_status": False}
    try:
        http_request(get_default_host_creds(tracking_uri), "/health", "GET", **once)  # type: ignore[no-untyped-call]
    except MlflowException as error:
        raise RegistryError(
            f"MLflow at {without_passwords(tracking_uri)} can't be reached: {_innermost(error)}. Start it (make "
            "mlflow-server), or name another in registry.tracking_uri"
        ) from error


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Failures of MLflow and what is behind it become RegistryErrors that say what was being done."""
    try:
        yield
    except StrikeforgeError:
        raise
    except Exception as error:
        foreign = any(kind.__module__.partition(".")[0] in FOREIGN for kind in type(error).__mro__)
        if not foreign and not isinstance(error, OSError):
            raise
        message = getattr(error, "message", None) or str(error)
        raise RegistryError(without_passwords(f"MLflow, {doing}: {message}")) from error


def without_passwords(text: str) -> str:
    """URLs in the text without user and password."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def _innermost(error: BaseException) -> str:
    """The message of the cause of causes, without the object it was raised by."""
    cause: BaseException | None = error
    reason = error
    while cause is not None:
        reason = cause
        cause = cause.__cause__ or cause.__context__ or getattr(cause, "reason", None)
        if not isinstance(cause, BaseException):
            cause = None
    return without_passwords(str(reason).strip() or type(reason).__name__)
