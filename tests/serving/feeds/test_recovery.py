"""The recovery server and who asks it, over real sockets; hostile peers on either side."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import HostError
from serving.feeds.recovery import ANSWER, ASK, MESSAGE, MOST_CLIENTS, VERSION, Kept, Missing, RecoveryServer, ask
from serving.host.records import QUOTE, RECORD, Kind, Records

SESSION = 7


def records(first: int, count: int) -> Records:
    made = np.zeros(count, QUOTE)
    made["kind"], made["bid"] = Kind.QUOTE, np.arange(first, first + count)
    return made.view(RECORD)


def numbers(found: Records) -> list[int]:
    return [int(one) for one in found.view(QUOTE)["bid"]]


@pytest.fixture
def server() -> Iterator[RecoveryServer]:
    """Numbers 51 to 150 are kept."""
    kept = Kept(SESSION, 100)
    kept.add(1, records(1, 150))
    serving = RecoveryServer(kept)
    yield serving
    serving.close()


@given(
    st.integers(1, 20), st.lists(st.integers(1, 30), max_size=8), st.integers(1, 100), st.integers(0, 100),
    st.sampled_from([SESSION, SESSION + 1]),
)  # fmt: skip
def test_what_is_kept_are_the_last_ones(capacity: int, adds: list[int], first: int, count: int, session: int) -> None:
    kept, end = Kept(SESSION, capacity), 1
    for added in adds:
        kept.add(end, records(end, added))
        end += added
    there = set(range(max(1, end - capacity), end)) if session == SESSION else set()
    start, found = kept.get(Missing(session, first, count))
    assert numbers(found) == sorted(there & set(range(first, first + count)))
    assert not len(found) or numbers(found)[0] == start


def test_numbers_must_follow() -> None:
    kept = Kept(SESSION, 4)
    kept.add(1, records(1, 2))
    with pytest.raises(ValueError, match="records from 4 on don't follow 2"):
        kept.add(4, records(4, 1))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [((60, 10), range(60, 70)), ((40, 20), range(51, 60)), ((145, 20), range(145, 151)), ((1, 50), []), ((151, 5), []),
     ((1, 2**60), range(51, 151))],
)  # fmt: skip
def test_the_answer_is_what_is_there(server: RecoveryServer, asked: tuple[int, int], expected: range) -> None:
    _, found = ask(server.address, Missing(SESSION, *asked), 5.0)
    assert numbers(found) == list(expected)
    _, other = ask(server.address, Missing(SESSION + 1, *asked), 5.0)
    assert numbers(other) == []


NO_QUESTIONS = (b"", b"GET / HTTP/1.1\r\n\r\n" * 4, MESSAGE.pack(ANSWER, VERSION, SESSION, 60, 10),
                MESSAGE.pack(ASK, 9, SESSION, 60, 10))  # fmt: skip


@pytest.mark.parametrize("question", NO_QUESTIONS)
def test_what_is_no_question_gets_no_answer(server: RecoveryServer, question: bytes) -> None:
    with socket.create_connection(server.address, 5.0) as peer:
        peer.settimeout(5.0)
        with contextlib.suppress(OSError):  # it may have closed already, with our bytes unread
            peer.sendall(question)
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b""
    _, found = ask(server.address, Missing(SESSION, 60, 1), 5.0)
    assert numbers(found) == [60]


def test_many_idle_askers_are_turned_away(server: RecoveryServer) -> None:
    idle = [socket.create_connection(server.address, 5.0) for _ in range(MOST_CLIENTS)]
    try:
        with pytest.raises(HostError, match=r"the connection ended|reset"):
            ask(server.address, Missing(SESSION, 60, 1), 5.0)
    finally:
        for one in idle:
            one.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"x" * 32, MESSAGE.pack(ANSWER, VERSION, SESSION, 60, 10) + bytes(100),
        MESSAGE.pack(ANSWER, VERSION, SESSION, 60, 11), MESSAGE.pack(ANSWER, VERSION, SESSION, 59, 1),
        MESSAGE.pack(ANSWER, VERSION, SESSION + 1, 60, 1), MESSAGE.pack(ANSWER, VERSION, SESSION, 60, 2**64 - 1),
    ],
)  # fmt: skip
def test_a_server_that_lies_is_an_error(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as lying:

        def serve() -> None:
            peer, _ = lying.accept()
            with peer:
                peer.recv(MESSAGE.size)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(HostError):
            ask(lying.getsockname(), Missing(SESSION, 60, 10), 5.0)
        thread.join()


def test_nobody_there_is_an_error(server: RecoveryServer) -> None:
    server.close()
    with pytest.raises(HostError, match="recovery server 127"):
        ask(server.address, Missing(SESSION, 60, 10), 1.0)
