"""The control socket: who may command, what comes back, and that nothing a peer sends ends it or keeps a kill out."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.cli import main
from serving.errors import ConfigError, HostError
from serving.host import control
from serving.host.control import Command, ControlServer, ask, parse_command
from serving.host.host_log import HostLog

SERVER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
DEADLINE_S = 10.0


@dataclass
class Host:
    """Stands for the loop: counts what it is told."""

    folder: Path
    asked: list[tuple[str, float]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / "control.socket"

    def commands(self) -> dict[str, Command]:
        def telling(name: str) -> Command:
            def act(value: float) -> dict[str, Any]:
                self.asked.append((name, value))
                return {"told": name}

            return Command(act, value=name == "anomaly_score")

        def fails(_: float) -> dict[str, Any]:
            raise HostError("limits.toml: delta: found -1")

        def defective(_: float) -> dict[str, Any]:
            return {"never": 1 // 0}

        return {
            **{name: telling(name) for name in ("kill", "reduce", "anomaly_score")},
            "status": Command(lambda _: {"state": "active"}, quiet=True),
            "limits_reload": Command(fails),
            "defective": Command(defective),
        }

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "host.log").read_text().splitlines()]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    with HostLog(tmp_path / "host.log") as log, ControlServer(host.path, host.commands(), log):
        yield host
    assert not host.path.exists()


def connect(host: Host) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.connect(connection, host.path, DEADLINE_S)
    return connection


def answers_to(host: Host, raw: bytes) -> list[dict[str, Any]]:
    with connect(host) as connection, connection.makefile("rb") as lines:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in lines]


def test_commands_act_and_are_logged_with_who_asked(host: Host) -> None:
    assert ask(host.path, "kill") == {"told": "kill"}
    assert ask(host.path, "anomaly_score", 2.5) == {"told": "anomaly_score"}
    assert ask(host.path, "status") == {"state": "active"}
    assert host.asked == [("kill", 0.0), ("anomaly_score", 2.5)]
    kill, score = host.log()
    assert kill | {"at": ""} == {
        "at": "", "event": "control", "command": "kill", "uid": os.geteuid(), "pid": os.getpid(), "told": "kill"
    }  # fmt: skip
    assert (score["command"], score["value"]) == ("anomaly_score", 2.5)


def test_the_socket_is_its_owners_alone(host: Host) -> None:
    assert stat.S_IMODE(host.path.stat().st_mode) == 0o600


def test_a_command_that_fails_says_why_and_is_logged(host: Host) -> None:
    with pytest.raises(HostError, match="delta: found -1"):
        ask(host.path, "limits_reload")
    with pytest.raises(HostError, match="ZeroDivisionError"):
        ask(host.path, "defective")
    assert ask(host.path, "kill") == {"told": "kill"}
    assert [line["event"] for line in host.log()] == ["control: failed", "control: failed", "control"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"kill", "not a line of JSON"), (b"", "not a line of JSON"), (b"\xff\xfe", "not a line of JSON"),
        (b"[" * 4000, "not a line of JSON"), (b'"kill"', 'expected {"command"'), (b"{}", 'expected {"command"'),
        (b'{"command": 1}', 'expected {"command"'), (b'{"command": "sell"}', "no command 'sell'"),
        (b'{"command": "kill", "value": 1}', "takes no value"), (b'{"command": "kill", "now": 1}', "unknown key 'now'"),
        (b'{"command": "anomaly_score"}', "finite number"), (b'{"command": "anomaly_score", "value": NaN}', "NaN"),
        (b'{"command": "anomaly_score", "value": 1e999}', "finite number"),
        (b'{"command": "anomaly_score", "value": true}', "finite number"),
        (b'{"command": "anomaly_score", "value": ' + b"9" * 4000 + b"}", "finite number"),
    ],
)  # fmt: skip
def test_what_is_no_command_is_answered_and_does_nothing(host: Host, line: bytes, said: str) -> None:
    first, second = answers_to(host, line + b'\n{"command": "status"}\n')
    assert not first["ok"]
    assert said in first["error"]
    assert second == {"ok": True, "state": "active"}
    assert host.asked == []


def test_a_line_without_end_is_refused_and_its_connection_closed(host: Host) -> None:
    (answer,) = answers_to(host, b"x" * (control.LONGEST_LINE + 1))
    assert "more than 4096 bytes" in answer["error"]
    assert ask(host.path, "status")


@SERVER
@given(st.binary(max_size=200))
def test_any_bytes_leave_the_server_alive_and_the_loop_alone(host: Host, raw: bytes) -> None:
    answers = answers_to(host, raw)
    assert len(answers) == raw.count(b"\n")
    assert not any(answer["ok"] for answer in answers)
    assert host.asked == []
    assert ask(host.path, "status")


VALUES = st.one_of(
    st.none(), st.floats(), st.text(max_size=3), st.sampled_from(("kill", "anomaly_score", "status")),
    st.lists(st.integers(), max_size=1),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(("command", "value", "x")), VALUES))
def test_a_command_is_known_and_its_value_finite_or_it_is_refused(asked: dict[str, Any]) -> None:
    commands = Host(Path()).commands()
    try:
        name, value = parse_command(json.dumps(asked).encode(), commands)
    except ValueError:
        return
    assert asked["command"] == name
    assert set(asked) <= {"command", "value"}
    assert commands[name].value == (asked.get("value") is not None)
    assert value == (asked.get("value") or 0.0)
    assert abs(value) < float("inf")


def test_many_at_once_are_all_answered(host: Host) -> None:
    """More threads than connections are kept, each asking again and again."""
    done: list[Any] = []

    def several() -> None:
        for _ in range(5):
            done.append(ask(host.path, "kill", timeout_s=DEADLINE_S))

    threads = [threading.Thread(target=several) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(done) == len(host.asked) == 40


def test_a_flood_waits_and_a_kill_on_another_connection_does_not(host: Host) -> None:
    """The flooder is held to its share of commands a second; its last isn't answered when the kill is."""
    flood = 400
    with connect(host) as connection:
        connection.sendall(b'{"command": "reduce"}\n' * flood)
        begin = time.monotonic()
        ask(host.path, "kill")
        elapsed = time.monotonic() - begin
        before = [name for name, _ in host.asked].index("kill")
    assert before <= control.COMMANDS_PER_SECOND * (elapsed + 1.5) < flood or elapsed > 5


def test_silent_connections_do_not_keep_a_kill_out(host: Host) -> None:
    silent = [connect(host) for _ in range(3 * control.MOST_CONNECTIONS)]
    assert ask(host.path, "kill") == {"told": "kill"}
    for connection in silent:
        connection.close()


def test_too_many_connections_close_the_one_that_was_silent_for_longest(host: Host) -> None:
    silent = []
    with connect(host) as busy, busy.makefile("rb") as answers:
        for _ in range(3 * control.MOST_CONNECTIONS):
            busy.sendall(b'{"command": "status"}\n')
            assert json.loads(answers.readline())["ok"]
            silent.append(connect(host))
    assert silent[0].recv(1) == b""
    for connection in silent:
        connection.close()


def test_a_peer_that_reads_nothing_is_cut_off(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "COMMANDS_PER_SECOND", 1e9)
    monkeypatch.setattr(control, "MOST_UNSENT", 1 << 10)
    connection = connect(host)

    def send_without_end() -> None:
        for _ in range(100_000):
            connection.sendall(b"\n" * 1000)

    with pytest.raises((BrokenPipeError, ConnectionResetError)), connection:
        send_without_end()
    assert ask(host.path, "status")


def test_a_stale_socket_is_taken_over_and_an_absent_loop_is_told(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with pytest.raises(HostError, match="no loop runs here"):
        ask(host.path, "kill")
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(host.path))
    left.close()
    with pytest.raises(HostError, match="no loop runs here"):
        ask(host.path, "kill")
    with HostLog(tmp_path / "host.log") as log, ControlServer(host.path, host.commands(), log):
        assert ask(host.path, "kill")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused_even_where_the_folder_lets_it_in(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"strikeforge-control-{os.getpid()}"
    folder.mkdir(mode=0o755)
    host = Host(folder)
    try:
        with HostLog(tmp_path / "host.log") as log, ControlServer(host.path, host.commands(), log):
            host.path.chmod(0o666)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    os.setresuid(65534, 65534, 65534)
                    with connect(host) as connection, connection.makefile("rb") as answers:
                        answer = json.loads(answers.readline())
                        code = 0 if "user 65534" in answer["error"] else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert host.asked == []
        (line,) = [json.loads(line) for line in (tmp_path / "host.log").read_text().splitlines()]
        assert (line["event"], line["uid"]) == ("control: refused", 65534)
    finally:
        folder.rmdir()


def test_a_configuration_that_was_broken_since_the_start_keeps_no_kill_out(host: Host) -> None:
    config = host.folder / "host.toml"
    config.write_text(f'directory = "{host.folder}"\n[stratgy]\nkind = 5\n')
    assert main(["control", "--config", str(config), "kill"]) == 0
    assert host.asked == [("kill", 0.0)]
    config.write_text("directory = 5\n")
    with pytest.raises(ConfigError, match="directory: found 5"):
        main(["control", "--config", str(config), "kill"])
