"""Fixtures that give tests real stores and databases on this machine (tests/servers.py).

A server starts when the first test of a process asks for it and lives until the session ends; every test gets a bucket,
container or database of its own. The environment holds what each SDK's default chain reads, so child processes inherit
it, and nothing of the person's own accounts. A server that isn't installed skips its tests, saying how to get it.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest

from tests import servers

# A shell's background jobs ignore SIGINT, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PREFIX = "some/prefix"  # stores never begin at a bucket's top here, so a forgotten prefix shows


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint URL of S3 and KMS."""
    yield from _session(servers.moto)


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """What STORAGE_EMULATOR_HOST is to hold."""
    yield from _session(servers.fake_gcs)


@pytest.fixture(scope="session")
def azure_server() -> Iterator[str]:
    """Connection string of the storage account."""
    yield from _session(servers.azurite)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """SQLAlchemy URL of the cluster's maintenance database."""
    yield from _session(servers.postgresql)


@pytest.fixture
def aws(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of AWS clients (S3, KMS); the value is the endpoint's URL."""
    _forget(monkeypatch, "AWS_")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    _no_proxy(monkeypatch)
    return s3_server


@pytest.fixture
def google_cloud(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of Google's clients; the value is the emulator's URL."""
    _forget(monkeypatch, "GOOGLE_", "GCLOUD_", "CLOUDSDK_", "STORAGE_EMULATOR_", "API_ENDPOINT_OVERRIDE")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    _no_proxy(monkeypatch)
    return gcs_server


@pytest.fixture
def azure_account(azure_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of Azure's clients; the value is the connection string."""
    _forget(monkeypatch, "AZURE_")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure_server)
    _no_proxy(monkeypatch)
    return azure_server


@pytest.fixture
def s3_store_url(aws: str) -> str:
    """URL of an empty store in a new bucket."""
    boto3 = pytest.importorskip("boto3", reason="pip install 'strikeforge[s3]'")
    bucket = _new_name()
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/{PREFIX}"


@pytest.fixture
def gcs_store_url(google_cloud: str) -> str:
    """URL of an empty store in a new bucket."""
    storage = pytest.importorskip("google.cloud.storage", reason="pip install 'strikeforge[gcs]'")
    bucket = _new_name()
    with storage.Client() as client:
        client.create_bucket(bucket)
    return f"gs://{bucket}/{PREFIX}"


@pytest.fixture
def azure_store_url(azure_account: str) -> str:
    """URL of an empty store in a new container."""
    blob = pytest.importorskip("azure.storage.blob", reason="pip install 'strikeforge[azure]'")
    container = _new_name()
    with blob.BlobServiceClient.from_connection_string(azure_account) as client:
        client.create_container(container)
    return f"az://{container}/{PREFIX}"


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """SQLAlchemy URL of a new, empty database."""
    return servers.new_database(postgresql_server)


def _session(server: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """The server's address until the session ends; skips where it isn't installed."""
    with ExitStack() as stack:
        try:
            address = stack.enter_context(server())
        except servers.NotInstalledError as error:
            pytest.skip(str(error))
        yield address


def _new_name() -> str:
    return f"strikeforge-{secrets.token_hex(6)}"


def _forget(monkeypatch: pytest.MonkeyPatch, *prefixes: str) -> None:
    """No account, endpoint or profile of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(prefixes):
            monkeypatch.delenv(name)


def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, servers.HOST)
