"""The channel over every store there is: published, overtaken, read by TUF's own client, lost and made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.channel.metadata import TIMESTAMP_KEY
from pipelines.channel.publish import open_channel
from serving.blobstore import open_store
from tests.pipelines.channel.desk import Host, promote, signing

pytestmark = pytest.mark.cloud


@pytest.mark.parametrize("fixture", ["s3_store_url", "gcs_store_url", "azure_store_url"])
def test_a_channel_in_a_cloud(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store = open_store(request.getfixturevalue(fixture))
    channel = open_channel(signing(tmp_path / "keys"), store)
    for model in ("a", "b"):
        promote(store, model, 1)
        channel.follow(model)
    host = Host(store, tmp_path / "host")
    assert (host.number("a"), host.number("b")) == (1, 1)
    promote(store, "a", 2)
    view = channel.bench.view()
    assert view.etag is not None
    assert store.put_if_match(TIMESTAMP_KEY, store.get(TIMESTAMP_KEY), view.etag) is not None
    assert channel.follow("a") == ("model-a: release 1 -> 2",)
    assert channel.follow("a") == ()
    assert host.number("a") == 2
    for key in store.list("channel/"):
        store.delete(key)
    channel.follow("b")
    assert (host.number("a"), host.number("b")) == (2, 1)
