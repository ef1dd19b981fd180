"""Conditional writes whose answers are lost are done exactly once, and the writer is told the truth.

The server did what was asked, the client doesn't hear of it and asks again: its own earlier success must not look like
somebody else's, nor somebody else's like its own. `site.store` speaks through the proxy, `site.direct` doesn't.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from serving.blobstore import BlobStore, open_store
from serving.stores import common
from tests import faulty_proxy as faults
from tests.faulty_proxy import FaultyProxy, Rule
from tests.faulty_site import ATTEMPTS, SEVERAL_PARTS, WRITES, Site, behind, go_through

pytestmark = pytest.mark.cloud

LOST = [
    pytest.param(faults.lose_answer, id="lost"),
    pytest.param(faults.reset_after, id="reset"),
    pytest.param(faults.answer_never_comes, id="never comes", marks=pytest.mark.slow),
    pytest.param(faults.answering_after(500), id="500"),
    pytest.param(faults.answering_after(503), id="503"),
    pytest.param(faults.truncate_down, id="half"),
]


@pytest.mark.parametrize("fault", LOST)
@pytest.mark.parametrize("size", [20, SEVERAL_PARTS])
def test_a_creation_whose_answer_was_lost_is_our_own(site: Site, fault: faults.Fault, size: int) -> None:
    """Every answer to a write is lost once in a row, those of a long blob's parts and of its completion too."""
    content = os.urandom(size)
    site.fail(fault, WRITES, times=ATTEMPTS - 1)
    assert site.store.put_if_absent("k", content) is True
    assert site.direct.get("k") == content
    site.proxy.clear()
    site.fail(fault, WRITES, times=ATTEMPTS - 1)
    assert site.store.put_if_absent("k", content) is False


@pytest.mark.parametrize("size", [20, SEVERAL_PARTS])
def test_the_answer_to_the_last_request_of_a_creation_is_lost(site: Site, size: int) -> None:
    content = os.urandom(size)
    assert site.store.put_if_absent("counted", content)
    writes = sum(one.method in ("PUT", "POST") for one in site.proxy.seen)
    site.fail(faults.lose_answer, WRITES, skip=writes - 1)
    assert site.store.put_if_absent("k", content) is True
    assert site.proxy.faulted() == 1
    assert site.direct.get("k") == content


@pytest.mark.parametrize("fault", LOST)
def test_a_swap_whose_answer_was_lost_is_our_own(site: Site, fault: faults.Fault) -> None:
    etag = site.direct.put("k", b"1")
    site.fail(fault, WRITES, times=ATTEMPTS - 1)
    new = site.store.put_if_match("k", b"2", etag)
    assert new == site.direct.get_blob("k").etag
    assert site.direct.get("k") == b"2"
    assert site.store.put_if_match("k", b"3", etag) is None


@contextmanager
def interfering(site: Site, phase: str, act: Callable[[], object], fault: faults.Fault) -> Iterator[BlobStore]:
    """The store through another proxy: at the first write's `phase` it does something else to the store, then fails."""
    done = threading.Event()

    def on_request(method: str, path: str, now: str) -> None:
        if method in ("PUT", "POST") and now == phase and not done.is_set():
            done.set()
            act()

    with FaultyProxy(*behind(site.cloud), on_request=on_request) as proxy, pytest.MonkeyPatch.context() as patch:
        go_through(proxy, site.cloud, patch)
        proxy.add(Rule(fault, WRITES))
        yield open_store(site.url)
        assert done.is_set()


def test_our_version_was_replaced_before_its_answer_was_lost(site: Site) -> None:
    """A counter would count twice if the swap were done again, and lose a count if it were said to have failed."""
    etag = site.direct.put("k", b"1")

    def replace() -> None:
        blob = site.direct.get_blob("k")
        assert blob.data == b"2"
        assert site.direct.put_if_match("k", b"3", blob.etag)

    with interfering(site, "after", replace, faults.lose_answer) as store:
        new = store.put_if_match("k", b"2", etag)
        assert new is not None
        assert store.put_if_match("k", b"4", new) is None  # it is no longer the latest
    assert site.direct.get("k") == b"3"


def test_our_creation_was_replaced_before_its_answer_was_lost(site: Site) -> None:
    def replace() -> None:
        assert site.direct.put_if_match("k", b"next", site.direct.get_blob("k").etag)

    with interfering(site, "after", replace, faults.lose_answer) as store:
        assert store.put_if_absent("k", b"first") is True
    assert site.direct.get("k") == b"next"


def test_somebody_else_was_faster_while_ours_was_cut(site: Site) -> None:
    """With the same bytes, so that content can't tell whose they are."""
    with interfering(site, "before", lambda: site.direct.put_if_absent("k", b"same"), faults.cut_before) as store:
        assert store.put_if_absent("k", b"same") is False
    etag = site.direct.get_blob("k").etag
    with interfering(site, "before", lambda: site.direct.put("k", b"theirs"), faults.cut_before) as store:
        assert store.put_if_match("k", b"theirs", etag) is None


def test_counting_through_a_bad_network_counts_each_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four writers, ten counts each, a fault on every fourth write; attempts enough not to meet as many in a row."""
    monkeypatch.setenv(common.ATTEMPTS_VARIABLE, "12")
    site.direct.put("counter", b"0")
    kinds = [faults.lose_answer, faults.reset_after, faults.answering_after(503), faults.cut_before]
    for number in range(200):
        site.fail(kinds[number % len(kinds)], WRITES, skip=4 * number)
    lost: list[BaseException] = []

    def count() -> None:
        try:
            store = open_store(site.url)
            for _ in range(10):
                while True:
                    blob = store.get_blob("counter")
                    if store.put_if_match("counter", str(int(blob.data) + 1).encode(), blob.etag):
                        break
        except BaseException as error:
            lost.append(error)
            raise

    writers = [threading.Thread(target=count) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert not lost
    assert site.direct.get("counter") == b"40"
    assert site.proxy.faulted() >= 10
