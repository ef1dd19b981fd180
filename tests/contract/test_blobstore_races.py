"""Eight processes on one key of a blob store: one creates it, and no update is lost."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from typing import Any

from serving.blobstore import open_store

PROCESSES = 8
SWAPS = 5  # of each process


def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.contract.test_blobstore_races"])
    return context


def create(url: str, barrier: Barrier, number: int) -> None:
    """Every round has a prize of its own; says which ones this process won."""
    store = open_store(url)
    content = f"writer {number}".encode() * 1000
    won = []
    for round_ in range(SWAPS):
        barrier.wait(60)
        if store.put_if_absent(f"deep/folder/{round_}", content):
            won.append(str(round_))
    store.put(f"results/{number}", " ".join(won).encode())


def swap(url: str, barrier: Barrier, number: int) -> None:
    """Adds one to a counter, starting over when somebody else was faster."""
    store = open_store(url)
    barrier.wait(60)
    for _ in range(SWAPS):
        while True:
            blob = store.get_blob("counter")
            if store.put_if_match("counter", str(int(blob.data) + 1).encode(), blob.etag):
                break


def in_environment(environment: dict[str, str], target: Any, *arguments: Any) -> None:
    """The fork server was started before the fixtures set what the SDKs read."""
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


def run_all(target: Any, url: str) -> None:
    context = processes()
    barrier = context.Barrier(PROCESSES)
    workers = [
        context.Process(target=in_environment, args=(dict(os.environ), target, url, barrier, number))
        for number in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0


def test_of_eight_processes_one_creates(store_url: str) -> None:
    run_all(create, store_url)
    store = open_store(store_url)
    won = {number: store.get(f"results/{number}").decode().split() for number in range(PROCESSES)}
    assert sorted(itertools.chain.from_iterable(won.values())) == [str(round_) for round_ in range(SWAPS)]
    for number, rounds in won.items():
        for round_ in rounds:
            assert store.get(f"deep/folder/{round_}") == f"writer {number}".encode() * 1000


def test_eight_processes_lose_no_update(store_url: str) -> None:
    open_store(store_url).put("counter", b"0")
    run_all(swap, store_url)
    assert open_store(store_url).get("counter") == str(PROCESSES * SWAPS).encode()
