"""The local servers of the tests: what isn't there is said, what was started is stopped."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import servers
from tests.atomic_moto import take_turns

LOCK = Path(__file__).parent / "servers" / "package-lock.json"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((servers.HOST, port)) == 0


@pytest.mark.cloud
def test_a_server_lives_as_long_as_its_block() -> None:
    with servers.fake_gcs() as url:
        port = int(url.rpartition(":")[2])
        assert listens(port)
    assert not listens(port)


@pytest.mark.cloud
def test_a_server_is_stopped_by_an_error_too() -> None:
    ports: list[int] = []

    def fail() -> None:
        with servers.fake_gcs() as url:
            ports.append(int(url.rpartition(":")[2]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not listens(*ports)


@pytest.mark.cloud
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_a_killed_run_leaves_no_server_behind() -> None:
    code = """
import os, signal
from tests import servers
with servers.fake_gcs() as url:
    print(url, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    port = int(done.stdout.strip().rpartition(":")[2])
    deadline = time.monotonic() + 20
    while listens(port):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_ends_at_once_says_why() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such option')"]
    with pytest.raises(RuntimeError, match="no such option"), servers.running("broken", lambda _: command):
        pytest.fail("it never answered")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "START_SECONDS", 0.5)
    command = [sys.executable, "-c", "import time; print('waiting', flush=True); time.sleep(60)"]
    with pytest.raises(RuntimeError, match="didn't answer"), servers.running("silent", lambda _: command):
        pytest.fail("it never answered")


def test_a_missing_azurite_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STRIKEFORGE_AZURITE", str(tmp_path / "azurite"))
    with pytest.raises(servers.NotInstalledError, match="make servers"), servers.azurite():
        pytest.fail("it isn't there")


def test_the_lock_is_of_the_pinned_packages_and_names_no_host() -> None:
    lock = json.loads(LOCK.read_text(encoding="utf-8"))
    wanted = json.loads(LOCK.with_name("package.json").read_text(encoding="utf-8"))["dependencies"]
    assert lock["packages"][""]["dependencies"] == wanted
    for name, version in wanted.items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
    for name, package in lock["packages"].items():
        assert not name or (package["integrity"].startswith("sha512-") and "resolved" not in package), name


@pytest.mark.cloud
def test_databases_are_apart(postgresql_server: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    first, second = (servers.new_database(postgresql_server).replace("+psycopg", "") for _ in range(2))
    with psycopg.connect(first, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (n int)")
    with psycopg.connect(second) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM t")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(first.replace(f"{servers.POSTGRES_USER}:", f"{servers.POSTGRES_USER}:not"))


def test_writes_of_moto_take_turns() -> None:
    class Store:
        """Like moto's: looks first, writes afterwards."""

        def __init__(self) -> None:
            self.held: set[str] = set()
            self.winners: list[int] = []

        def put(self, writer: int) -> None:
            if "key" not in self.held:
                looked.wait(timeout=3.0)  # a second writer, if it is let in, arrives here
                self.held.add("key")
                self.winners.append(writer)

    class Meeting:
        def __init__(self) -> None:
            self.inside = threading.Semaphore(0)

        def wait(self, timeout: float) -> None:
            self.inside.release()
            self.inside.acquire(timeout=timeout)
            self.inside.acquire(timeout=timeout)

    def winners() -> int:
        store = Store()
        writers = [threading.Thread(target=store.put, args=(writer,)) for writer in range(2)]
        for one in writers:
            one.start()
        for one in writers:
            one.join()
        return len(store.winners)

    looked = Meeting()
    assert winners() == 2
    take_turns(Store, ("put",))
    looked = Meeting()
    assert winners() == 1
