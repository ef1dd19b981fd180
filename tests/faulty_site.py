"""A cloud store as its users see it through a failing network, and as it really is (fixture: tests/contract)."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from serving.blobstore import BlobStore
from tests.faulty_proxy import Fault, FaultyProxy, Rule

CLOUDS = ("s3", "gcs", "azure")
ENDPOINTS = {
    "s3": "AWS_ENDPOINT_URL",
    "gcs": "STORAGE_EMULATOR_HOST",
    "azure": "AZURE_STORAGE_CONNECTION_STRING",
}
WRITES = "PUT|POST"
CONTENT = {"s3": "", "gcs": "alt=media", "azure": ""}  # what GETs of a blob's content have in their target
ATTEMPTS = 3
EVERY = 1 << 30  # times: every request
SEVERAL_PARTS = (17 << 20) + 5  # bytes that each cloud takes in several requests


@dataclass
class Site:
    """A store as its users see it, the same store without the proxy, and the proxy."""

    cloud: str
    url: str
    store: BlobStore
    direct: BlobStore
    proxy: FaultyProxy

    def fail(self, fault: Fault, method: str = ".*", path: str = "", *, skip: int = 0, times: int = 1) -> None:
        self.proxy.add(Rule(fault, method, path, skip=skip, times=times))

    def break_downloads(self, fault: Fault, times: int = 1) -> None:
        self.fail(fault, "GET", CONTENT[self.cloud], times=times)


def behind(cloud: str) -> tuple[str, int]:
    """Host and port of the server the environment names."""
    host, _, port = os.environ[ENDPOINTS[cloud]].partition("://")[2].partition(":")
    return host, int("".join(character for character in port.partition(";")[0].partition("/")[0]))


def go_through(proxy: FaultyProxy, cloud: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the cloud's SDK to the proxy."""
    host, port = behind(cloud)
    named = os.environ[ENDPOINTS[cloud]]
    monkeypatch.setenv(ENDPOINTS[cloud], named.replace(f"{host}:{port}", proxy.url.partition("://")[2]))
