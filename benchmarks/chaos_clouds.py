"""The stores chaos is done to: a folder, and S3, Google and Azure by their local servers (tests/servers.py).

In: a kind of store. Out: `Cloud`: URLs of new, empty stores, and the environment by which an SDK finds its server, or a
proxy in front of it. Invariants: nothing of the person's own accounts is read; nothing leaves this machine.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests import servers

KINDS = ("folder", "s3", "gcs", "azure")
FORGOTTEN = {  # settings of the person's own accounts
    "s3": ("AWS_",),
    "gcs": ("GOOGLE_", "GCLOUD_", "CLOUDSDK_", "STORAGE_EMULATOR_", "API_ENDPOINT_OVERRIDE"),
    "azure": ("AZURE_",),
}


@dataclass(frozen=True)
class Cloud:
    """One running server with one bucket; `environment(endpoint)` leads an SDK to it or to a proxy."""

    kind: str
    endpoint: str  # http://HOST:PORT of the server itself
    bucket_url: str
    environment: Callable[[str], Mapping[str, str]]

    def new_store(self) -> str:
        """URL of an empty store."""
        return f"{self.bucket_url}/{secrets.token_hex(6)}"


@contextmanager
def cloud(kind: str, folder: Path) -> Iterator[Cloud]:
    """A store's server until the block ends; this process's environment leads to it from now on."""
    if kind == "folder":
        yield Cloud(kind, "", str(folder), lambda endpoint: {})
        return
    for name in list(os.environ):
        if name.startswith(FORGOTTEN[kind]):
            del os.environ[name]
    with {"s3": _s3, "gcs": _gcs, "azure": _azure}[kind]() as found:
        os.environ.update(found.environment(found.endpoint))
        yield found


@contextmanager
def _s3() -> Iterator[Cloud]:
    import boto3

    with servers.moto() as endpoint:

        def environment(url: str) -> Mapping[str, str]:
            return {
                "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret",
                "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "NO_PROXY": servers.HOST,
            }  # fmt: skip

        os.environ.update(environment(endpoint))
        boto3.client("s3").create_bucket(Bucket="chaos")
        yield Cloud("s3", endpoint, "s3://chaos", environment)


@contextmanager
def _gcs() -> Iterator[Cloud]:
    from google.cloud import storage

    with servers.fake_gcs() as endpoint:

        def environment(url: str) -> Mapping[str, str]:
            return {"STORAGE_EMULATOR_HOST": url, "NO_PROXY": servers.HOST}

        os.environ.update(environment(endpoint))
        with storage.Client() as client:
            client.create_bucket("chaos")
        yield Cloud("gcs", endpoint, "gs://chaos", environment)


@contextmanager
def _azure() -> Iterator[Cloud]:
    from azure.storage import blob

    with servers.azurite() as connection:
        endpoint = next(part for part in connection.split(";") if part.startswith("BlobEndpoint=")).partition("=")[2]
        parts = urlsplit(endpoint)
        own = f"{parts.scheme}://{parts.netloc}"

        def environment(url: str) -> Mapping[str, str]:
            return {"AZURE_STORAGE_CONNECTION_STRING": connection.replace(own, url), "NO_PROXY": servers.HOST}

        os.environ.update(environment(own))
        with blob.BlobServiceClient.from_connection_string(connection) as client:
            client.create_container("chaos")
        yield Cloud("azure", own, "az://chaos", environment)
