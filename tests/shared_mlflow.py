"""MLflow as several machines share it: a real `deploy/mlflow/serve` process on a free port.

In: where it keeps runs and artifacts. Out: its URL. Invariants: it is stopped with everything it started; clients get
none of the server's credentials.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers import HOST

SERVE = Path(__file__).parents[1] / "deploy" / "mlflow" / "serve"
START_SECONDS = 120.0
STOP_SECONDS = 20.0


class Server:
    """A server process that can be killed and started again on its port."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        with socket.socket() as found:
            found.bind((HOST, 0))
            self.port: int = found.getsockname()[1]
        self.uri = f"http://{HOST}:{self.port}"
        self.log = folder / "mlflow-server.log"
        self.environment = {
            **os.environ, **environment, "MLFLOW_PORT": str(self.port), "MLFLOW_WORKERS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [SERVE], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"MLflow's server didn't start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to it and its workers; it is gone when this returns."""
        if self.process is None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)
        self.process = None

    def _answers(self) -> bool:
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def running(folder: Path, database: str, artifacts: str, **environment: str) -> Iterator[Server]:
    """A server with this database (SQLAlchemy URL) and these artifacts (folder or URL)."""
    places = {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_ARTIFACTS_DESTINATION": artifacts}
    server = Server(folder, {**places, **environment})
    server.start()
    try:
        yield server
    finally:
        server.kill()


def empty(database: str) -> None:
    """Forget every run, version and alias of a PostgreSQL database, as if MLflow had been lost and set up again."""
    import psycopg

    kept = ("alembic_version", "workspaces", "experiments")
    with psycopg.connect(database.replace("+psycopg", "", 1), autocommit=True) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        tables = ", ".join(f'"{name}"' for (name,) in found if name not in kept)
        connection.execute(f"TRUNCATE {tables} CASCADE")
        connection.execute("DELETE FROM experiments WHERE experiment_id <> 0")
