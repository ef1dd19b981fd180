"""The loop's control socket: a person or a program tells a running host to kill, reduce, resume, reload, stop.

In: lines of JSON over a Unix socket, `{"command": "kill"}`, `{"command": "anomaly_score", "value": 1.5}`. Out: one line
of JSON for each, `{"ok": true, ...}` or `{"ok": false, "error": "..."}`; the log names every accepted command with the
peer's user id, pid, and what came of it.

Invariants: only the host's own user and root are listened to (the kernel says who the peer is: SO_PEERCRED). Whatever
comes is answered or the connection closed; it never ends the server. Lines, connections and commands a second are
bounded, and a flood on one connection doesn't keep a kill on another out: too many connections close the one that was
silent for longest. The loop's thread is never waited for.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from serving.errors import HostError, StrikeforgeError
from serving.host.host_log import HostLog

LONGEST_LINE = 4096  # bytes
MOST_CONNECTIONS = 16
WAITING = 128  # connections that stand in line
COMMANDS_PER_SECOND = 50.0  # of one connection; what is more waits
MOST_UNSENT = 1 << 16  # bytes of answers that a peer doesn't read; then it is cut off
SOCKET_MODE = 0o600
PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """What may be asked: `value` says whether a finite number comes with it, `quiet` that it changes nothing."""

    act: Callable[[float], Facts]
    value: bool = False
    quiet: bool = False


@dataclass(eq=False)
class _Peer:
    connection: socket.socket
    pid: int
    uid: int
    heard: float
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    allowance: float = COMMANDS_PER_SECOND
    refilled: float = 0.0
    closing: bool = False


class ControlServer:
    """Listens in a thread of its own from `__enter__` to `__exit__`."""

    def __init__(self, path: Path, commands: Mapping[str, Command], log: HostLog) -> None:
        self._path, self._commands, self._log = path, commands, log
        self._owners = {os.geteuid(), 0}
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, _Peer] = {}
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._listening = _listen(path)

    def __enter__(self) -> ControlServer:
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        self._wake.send(b"x")
        self._thread.join()
        for peer in list(self._peers.values()):
            self._close(peer)
        for one in (self._listening, self._wake, self._woken, self._selector):
            one.close()

    def _serve(self) -> None:
        while True:
            waiting = any(peer.allowance < 1 and b"\n" in peer.received for peer in self._peers.values())
            for key, _ in self._selector.select(1.0 / COMMANDS_PER_SECOND if waiting else None):
                if key.fileobj is self._woken:
                    return
                if key.fileobj is self._listening:
                    self._accept()
                elif key.data in self._peers.values():
                    self._exchange(key.data)
            for peer in list(self._peers.values()):
                self._answer_lines(peer)

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError as error:  # the peer is gone again, or this process has no descriptors left
            self._log.say("control: a connection failed", {"error": str(error)})
            time.sleep(0.01)  # without descriptors it stays readable: don't spin
            return
        connection.setblocking(False)
        size = PEER_CREDENTIALS.size
        pid, uid, _ = PEER_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if uid not in self._owners:
            self._log.say("control: refused", {"uid": uid, "pid": pid, "error": "not the host's own user, nor root"})
            _send_last(connection, _refusal(f"user {uid} isn't the one this host runs as, nor root"))
            return
        if len(self._peers) >= MOST_CONNECTIONS:
            self._close(min(self._peers.values(), key=lambda peer: peer.heard))
        now = time.monotonic()
        peer = _Peer(connection, pid, uid, now, refilled=now)
        self._peers[connection.fileno()] = peer
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _exchange(self, peer: _Peer) -> None:
        """Take what came, unless lines wait already; send what may be sent."""
        try:
            if not peer.closing and b"\n" not in peer.received:
                came = peer.connection.recv(LONGEST_LINE + 1)
                peer.received += came
                peer.heard = time.monotonic()
                peer.closing = not came
        except BlockingIOError:
            pass
        except OSError:
            self._close(peer)
            return
        self._send(peer)

    def _answer_lines(self, peer: _Peer) -> None:
        now = time.monotonic()
        peer.allowance = min(peer.allowance + (now - peer.refilled) * COMMANDS_PER_SECOND, COMMANDS_PER_SECOND)
        peer.refilled = now
        while b"\n" in peer.received and peer.allowance >= 1:
            line, _, rest = bytes(peer.received).partition(b"\n")
            peer.received = bytearray(rest)
            peer.allowance -= 1
            peer.unsent += self._answer(line, peer)
        if b"\n" not in peer.received and len(peer.received) > LONGEST_LINE:
            peer.unsent += _refusal(f"a line of more than {LONGEST_LINE} bytes")
            peer.received.clear()
            peer.closing = True
        self._send(peer)

    def _answer(self, line: bytes, peer: _Peer) -> bytes:
        try:
            name, value = parse_command(line, self._commands)
        except ValueError as error:
            return _refusal(str(error))
        command = self._commands[name]
        who: dict[str, Any] = {"command": name, "uid": peer.uid, "pid": peer.pid}
        if command.value:
            who["value"] = value
        try:
            facts = command.act(value)
        except StrikeforgeError as error:
            self._log.say("control: failed", {**who, "error": str(error)})
            return _refusal(str(error))
        except Exception as error:  # noqa: BLE001  a defect of ours mustn't take the kill switch away
            self._log.say("control: failed", {**who, "error": f"{type(error).__name__}: {error}"})
            return _refusal(f"failed: {type(error).__name__}: {error}; the control socket goes on")
        if not command.quiet:
            self._log.say("control", {**who, **facts})
        return (json.dumps({"ok": True, **facts}) + "\n").encode()

    def _send(self, peer: _Peer) -> None:
        if peer.connection.fileno() < 0:
            return
        try:
            if peer.unsent:
                del peer.unsent[: peer.connection.send(peer.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._close(peer)
            return
        if len(peer.unsent) > MOST_UNSENT or (peer.closing and not peer.unsent and b"\n" not in peer.received):
            self._close(peer)
            return
        reads = 0 if b"\n" in peer.received or peer.closing else selectors.EVENT_READ
        events = reads | (selectors.EVENT_WRITE if peer.unsent else 0)
        registered = peer.connection in self._selector.get_map()
        if events and registered:
            self._selector.modify(peer.connection, events, peer)
        elif events:
            self._selector.register(peer.connection, events, peer)
        elif registered:
            self._selector.unregister(peer.connection)

    def _close(self, peer: _Peer) -> None:
        self._peers.pop(peer.connection.fileno(), None)
        if peer.connection in self._selector.get_map():
            self._selector.unregister(peer.connection)
        peer.connection.close()


def parse_command(line: bytes, commands: Mapping[str, Command]) -> tuple[str, float]:
    """A command's name and value (0 without one); ValueError saying what was expected."""
    try:
        asked = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a line of JSON: {error}"[:200]) from error
    if not isinstance(asked, dict) or not isinstance(asked.get("command"), str):
        raise ValueError('expected {"command": NAME}, with "value" for some')
    name: str = asked.pop("command")
    if name not in commands:
        raise ValueError(f"there is no command {name!r:.60}; there are {', '.join(commands)}")
    value = asked.pop("value", None)
    if asked:
        raise ValueError(f"unknown key {next(iter(asked))!r:.60}; expected command{', value' * commands[name].value}")
    if not commands[name].value:
        if value is not None:
            raise ValueError(f"{name} takes no value")
        return name, 0.0
    if type(value) not in (int, float) or not abs(value) <= 1e300:
        raise ValueError(f"{name} takes a finite number as its value, found {value!r:.60}")
    return name, float(value)


def ask(path: Path, command: str, value: float | None = None, timeout_s: float = 5.0) -> Facts:
    """The client's side: a running host's answer; HostError if there is none, or it refuses."""
    asked: dict[str, Any] = {"command": command} if value is None else {"command": command, "value": value}
    if value is not None and not math.isfinite(value):
        raise HostError(f"{command} {value}: expected a finite number")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connect(connection, path, timeout_s)
            connection.sendall((json.dumps(asked) + "\n").encode())
            with connection.makefile("rb") as answers:
                line = answers.readline(MOST_UNSENT)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise HostError(
            f"{path}: no loop runs here: {error.strerror}; strikeforge-host run --config C first"
        ) from error
    except OSError as error:
        raise HostError(f"{path}: no answer to {command!r}: {error}; a HALT file or SIGUSR1 kills too") from error
    try:
        answer = json.loads(line)
        fine = answer["ok"] is True
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(f"{path}: answered {line!r:.100}, which isn't of this protocol") from error
    if not fine:
        raise HostError(f"{command}: refused: {answer.get('error')}")
    return {name: one for name, one in answer.items() if name != "ok"}


def connect(connection: socket.socket, path: Path, timeout_s: float) -> None:
    """Connect, waiting while others stand in line; a socket with Python's own timeout would give up at once."""
    allowed = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, allowed)
    connection.connect(str(path))
    connection.settimeout(timeout_s)


def _listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        path.unlink(missing_ok=True)  # of a run that was killed; the caller holds the directory's lock
        listening.bind(str(path))
        path.chmod(SOCKET_MODE)
        listening.listen(WAITING)
    except OSError as error:
        listening.close()
        raise HostError(f"{path}: the control socket can't be made: {error.strerror}; remove what is there") from error
    return listening


def _send_last(connection: socket.socket, answer: bytes) -> None:
    try:
        connection.send(answer)
    except OSError:
        pass  # a peer that is refused may not even have waited for the reason
    finally:
        connection.close()


def _refusal(why: str) -> bytes:
    return (json.dumps({"ok": False, "error": why}) + "\n").encode()


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number here")
