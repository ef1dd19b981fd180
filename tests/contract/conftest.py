"""Stores of every kind, also behind a network that fails, and one bundle for all tests that read it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.blobstore import BlobStore, open_store
from serving.bundle import Bundle
from serving.stores import common
from tests.faulty_proxy import FaultyProxy
from tests.faulty_site import ATTEMPTS, CLOUDS, Site, behind, go_through
from tests.tiny_bundle import tiny_bundle

PAUSES = 0.05
STORES = ["folder", *(pytest.param(name, marks=pytest.mark.cloud) for name in CLOUDS)]


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "folder":
        return str(tmp_path / "store")
    url: str = request.getfixturevalue(f"{request.param}_store_url")
    return url


@pytest.fixture
def store(store_url: str) -> BlobStore:
    return open_store(store_url)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off is waited for at a fraction of its length."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds * PAUSES))


@pytest.fixture(params=CLOUDS)
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, short_pauses: None) -> Iterator[Site]:
    """An empty store of each cloud, through a proxy that doesn't fail yet."""
    cloud = request.param
    url = request.getfixturevalue(f"{cloud}_store_url")
    direct = open_store(url)
    monkeypatch.setenv(common.ATTEMPTS_VARIABLE, str(ATTEMPTS))
    monkeypatch.setenv(common.TIMEOUT_VARIABLE, "2")
    with FaultyProxy(*behind(cloud)) as proxy:
        go_through(proxy, cloud, monkeypatch)
        yield Site(cloud, url, open_store(url), direct, proxy)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of two members; whoever changes a byte of it puts the byte back."""
    return tiny_bundle(tmp_path_factory.mktemp("pristine") / "bundle", members=2)
