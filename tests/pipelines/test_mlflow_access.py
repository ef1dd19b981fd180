"""An MLflow that isn't there, hangs, answers nonsense or goes away is told as such, soon, and never as a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from pipelines import mlflow_access
from pipelines.mlflow_access import RegistryError, prepare, translated
from pipelines.registry import Registry, lazy_registry, open_registry
from tests import shared_mlflow
from tests.tiny_bundle import tiny_bundle
from tests.tiny_registry import tracking_uri

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 60.0  # MLflow's own patience would be minutes


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """It takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield int(listening.getsockname()[1])


@pytest.fixture
def web_page() -> Iterator[int]:
    """A web server that isn't MLflow."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "13")
            self.end_headers()
            self.wfile.write(b"<html></html>")

        do_POST = do_GET  # noqa: N815 (the base class's names)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def refusal(act: Callable[[], object]) -> str:
    begun = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        act()
    assert time.monotonic() - begun < LONGEST_SECONDS
    assert caught.value.exit_code == 11
    return str(caught.value)


def test_nobody_there_and_no_password_told(closed_port: int) -> None:
    message = refusal(lambda: open_registry(f"http://me:se@cret@127.0.0.1:{closed_port}"))
    assert f"MLflow at http://127.0.0.1:{closed_port} can't be reached: [Errno 111] Connection refused" in message
    assert "make mlflow-server" in message
    assert "cret" not in message


@pytest.mark.slow
def test_a_server_that_never_answers(silent_port: int) -> None:
    assert "can't be reached: timed out" in refusal(lambda: open_registry(f"http://127.0.0.1:{silent_port}"))


def test_a_web_page_is_no_mlflow(web_page: int) -> None:
    assert f"opening http://127.0.0.1:{web_page}" in refusal(lambda: open_registry(f"http://127.0.0.1:{web_page}"))


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "mysql+pymysql"])
def test_a_bare_database_has_nowhere_for_artifacts(scheme: str) -> None:
    message = refusal(lambda: open_registry(f"{scheme}://me:secret@there/mlflow"))
    assert f"{scheme}://there/mlflow is a database" in message
    assert "secret" not in message


@pytest.mark.parametrize("error", [requests.HTTPError("no bucket"), requests.ConnectionError("gone"), OSError("full")])
def test_whatever_library_failed(error: Exception) -> None:
    with pytest.raises(RegistryError, match=r"MLflow, storing: (no bucket|gone|full)"), translated("storing"):
        raise error


def test_our_own_mistakes_stay_what_they_are() -> None:
    with pytest.raises(KeyError, match="ours"), translated("storing"):
        raise KeyError("ours")


def test_a_folder_that_cant_be_written(tmp_path: Path) -> None:
    registry = open_registry(tracking_uri(tmp_path))
    (tmp_path / "mlruns" / "e").write_text("a file where a folder is needed")
    (tmp_path / "report.html").write_text("fine")
    message = refusal(lambda: registry.log_run("e", "r", artifacts=[tmp_path / "report.html"]))
    assert message.startswith("MLflow, logging run 'r':")


def test_time_limits_are_the_users_if_he_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    prepare()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"


def test_a_lazy_registry_costs_nothing_until_it_is_used(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pipelines.registry import lazy_registry\n"
        f"registry = lazy_registry('sqlite:///{tmp_path}/there/mlflow.db')\n"
        "assert 'mlflow' not in sys.modules and 'there' in repr(registry)\n"
        "import pathlib\n"
        f"assert not pathlib.Path('{tmp_path}/there').exists()\n"
        "registry.log_run('e', 'r', metrics={'b': 2.0})\n"
        "print(registry.aliases('tiny'), registry.artifact_root)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{{}} {tmp_path}/there/mlruns\n", "")


def test_a_lazy_registry_hides_passwords_and_says_who_is_missing(closed_port: int) -> None:
    registry = lazy_registry(f"http://me:secret@127.0.0.1:{closed_port}")
    assert repr(registry) == f"lazy_registry('http://127.0.0.1:{closed_port}')"
    assert "can't be reached" in refusal(lambda: registry.set_alias("tiny", "champion", 1))
    assert "can't be reached" in refusal(lambda: registry.versions("tiny"))


def test_artifacts_in_a_folder_of_another_machine_are_refused(tmp_path: Path) -> None:
    """Without its check MLflow's client would make a folder of that name on this machine."""
    from mlflow import MlflowClient

    database = tracking_uri(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    MlflowClient(database, database).create_experiment("e", artifact_location=elsewhere.as_uri())
    registry = Registry(MlflowClient(database, database), artifact_root=None)  # as if a server had told it
    assert "a folder that isn't on this machine" in refusal(lambda: registry.log_run("e", "r"))
    assert not elsewhere.exists()


@pytest.mark.cloud
@pytest.mark.slow
def test_the_embedded_server_goes_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite and a folder behind the server; killed with -9 between two requests, then started again."""
    prepare()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    artifacts = tmp_path / "artifacts"
    database = tracking_uri(tmp_path)
    earlier = open_registry(database).log_run("earlier", "before the server", metrics={"iv": 0.25})
    with shared_mlflow.running(tmp_path, database, str(artifacts)) as server:
        registry, lazy = open_registry(server.uri), lazy_registry(server.uri)
        assert registry.client.get_run(earlier).data.metrics == {"iv": 0.25}
        run_id = registry.log_run("tiny", "run", metrics={"iv": 0.5})
        bundle = tiny_bundle(tmp_path / "b")
        assert registry.register_version("tiny", run_id, bundle, {}) == 1
        assert len(list(artifacts.rglob("manifest.json"))) == 1

        server.kill()
        acts: list[Callable[[], object]] = [
            lambda: registry.set_alias("tiny", "champion", 1),
            lambda: registry.delete_alias("tiny", "champion"),
            lambda: registry.aliases("tiny"),
            lambda: registry.versions("tiny"),
            lambda: registry.register_version("tiny", run_id, bundle, {}),
            lambda: registry.log_run("tiny", "another"),
            lambda: lazy.aliases("tiny"),
        ]
        for act in acts:
            assert "Connection refused" in refusal(act)

        server.start()
        for each in (registry, lazy):
            assert each.versions("tiny")[1]["bundle_sha256"] == bundle.sha256
        lazy.set_alias("tiny", "champion", 1)
        assert registry.aliases("tiny") == {"champion": 1}


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("MLFLOW_BACKEND_STORE_URI", "postgresql://me:secret@there/db", "write postgresql+psycopg://"),
        ("MLFLOW_BACKEND_STORE_URI", "mlflow.db", "must be sqlite:///FILE"),
        ("MLFLOW_PORT", "http", "MLFLOW_PORT"),
    ],
)
def test_the_server_refuses_what_it_cant_use(variable: str, value: str, why: str) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", variable: value}
    done = subprocess.run([shared_mlflow.SERVE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert why in done.stderr
    assert "secret" not in done.stderr


def test_the_server_needs_an_environment_with_mlflow(tmp_path: Path) -> None:
    done = subprocess.run(
        [shared_mlflow.SERVE], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: mlflow isn't in PATH")


def test_every_setting_is_named_in_the_docs() -> None:
    text = (ROOT / "docs" / "storage.md").read_text()
    assert all(name in text for name in mlflow_access.SETTINGS if name.startswith("MLFLOW_HTTP"))
