"""What is no ring is refused before it is used, and left as it was; the error names file, what was found and remedy."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.errors import HostError
from tests.serving.native.built import built_core

CORE = built_core()

from serving.host.ring import RingReader, RingWriter  # noqa: E402
from tests.serving.host.ring_pattern import PATTERN, assert_pattern, write_pattern  # noqa: E402

CAPACITY = 16
WHOLE = CORE.RING_HEADER_BYTES + CAPACITY * CORE.SLOT_BYTES
LAYOUT, CAPACITY_AT, SLOT, RECORD, HEADER = 8, 16, 24, 32, 40  # offsets of the header's numbers


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    """A ring with 20 records, at rest."""
    with RingWriter(tmp_path / "r", CAPACITY) as writer:
        write_pattern(writer, 20)
    return tmp_path / "r"


def put(path: Path, offset: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack("<Q", value))


def replace(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)


def assert_both_refuse(path: Path, *said: str) -> None:
    for opened in (lambda: RingWriter(path, CAPACITY), lambda: RingReader(path)):
        with pytest.raises(HostError) as refusal:
            opened()
        for text in (repr(os.fspath(path)), *said):
            assert text in str(refusal.value)


def test_the_file(ring: Path) -> None:
    status = ring.stat()
    assert stat.filemode(status.st_mode) == "-rw-------"
    assert status.st_size == WHOLE
    assert status.st_blocks * 512 >= WHOLE  # all of it was reserved: no SIGBUS where memory lacks later
    assert list(ring.parent.iterdir()) == [ring]


def test_the_umask_changes_nothing(tmp_path: Path) -> None:
    before = os.umask(0o277)
    try:
        with RingWriter(tmp_path / "r", CAPACITY), RingReader(tmp_path / "r"):
            assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("size", [0, 1, 47, 48, 4096, CORE.RING_HEADER_BYTES, WHOLE - 64, WHOLE - 1, WHOLE + 1])
def test_another_size(ring: Path, size: int) -> None:
    os.truncate(ring, size)
    assert_both_refuse(ring, f"found {size} bytes", "remove the file")
    assert ring.stat().st_size == size


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (0, 0, "no ring"),
        (0, 0x4242, "no ring"),
        (LAYOUT, 2, "found layout 2, expected layout 1"),
        (CAPACITY_AT, 0, "a capacity of 0"),
        (CAPACITY_AT, 15, "a capacity of 15"),
        (CAPACITY_AT, 32, "its header says so"),
        (CAPACITY_AT, 1 << 63, "a capacity of 9223372036854775808"),
        (SLOT, 128, "found slots of 128 bytes"),
        (RECORD, 48, "records of 48 bytes"),
        (HEADER, 4096, "expected"),
    ],
)
def test_another_header(ring: Path, offset: int, value: int, said: str) -> None:
    put(ring, offset, value)
    before = ring.read_bytes()
    assert_both_refuse(ring, said)
    assert ring.read_bytes() == before


def test_a_file_of_somebody_s(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    replace(path, b"nothing of a ring\n" * 1000)
    assert_both_refuse(path, "no ring", "name another path")
    assert path.read_bytes().startswith(b"nothing of a ring")


def test_links_are_not_followed(ring: Path, tmp_path: Path) -> None:
    for name, target in (("to_a_ring", ring), ("to_nothing", tmp_path / "absent")):
        (tmp_path / name).symlink_to(target)
        assert_both_refuse(tmp_path / name, "a symbolic link", "remove the link")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_no_regular_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A pipe isn't waited for."""
    make(tmp_path / "r")
    assert_both_refuse(tmp_path / "r")


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602, 0o700])
def test_others_could_open_it(ring: Path, mode: int) -> None:
    ring.chmod(mode)
    assert_both_refuse(ring, f"found mode {mode:04o}", "0600")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_owner(ring: Path) -> None:
    os.chown(ring, 12345, -1)
    assert_both_refuse(ring, "a file of user 12345", "run as that user")


@pytest.mark.parametrize("capacity", [0, 1, 3, 48, 1 << 40])
def test_capacities(tmp_path: Path, capacity: int) -> None:
    with pytest.raises(HostError, match=f"capacity {capacity}: expected a power of two"):
        RingWriter(tmp_path / "r", capacity)
    assert not (tmp_path / "r").exists()


def test_another_capacity_than_the_ring_s(ring: Path) -> None:
    with pytest.raises(HostError, match="found a capacity of 16, expected 32: say capacity 16, or stop who uses it"):
        RingWriter(ring, 32)


def test_no_ring_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="there is none: start what writes it first"):
        RingReader(tmp_path / "r")
    with pytest.raises(HostError, match="No such file"):
        RingWriter(tmp_path / "absent" / "r", CAPACITY)


def test_no_room(tmp_path: Path) -> None:
    """Told when the ring is made, not by a SIGBUS when it is written; nothing stays."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(HostError, match="there is no room for its 4202496 bytes"):
            RingWriter(tmp_path / "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_count_that_the_slots_deny(ring: Path) -> None:
    put(ring, 192, 30)  # `written`
    with pytest.raises(HostError, match="record 29 not in its slot"):
        RingWriter(ring, CAPACITY)


def test_a_removed_ring_is_made_anew(ring: Path) -> None:
    """Its readers keep the old one, whose writer is told nothing: the file is another."""
    with RingReader(ring) as old:
        ring.unlink()
        with RingWriter(ring, CAPACITY) as writer, RingReader(ring) as new:
            assert (writer.written, writer.writers, old.position) == (0, 1, 20)
            writer.write(PATTERN[:3])
            assert_pattern(new.read(), 0)
            assert len(old.read()) == 0


@pytest.mark.parametrize("name", ["with space", "x" * 40, "line\n", "tab\t", "\x7f"])
def test_names_of_readers(ring: Path, name: str) -> None:
    with pytest.raises(HostError, match="expected a name of at most 39 ASCII characters"):
        RingReader(ring, name)


def test_more_names_than_the_table_holds(ring: Path) -> None:
    """Names stay; places of readers without one are used again."""
    for number in range(62):
        RingReader(ring, "x" * 36 + f"{number:03}").close()
    with pytest.raises(HostError, match="62 readers with a name or waited for"):
        RingReader(ring, "one_more")
    with pytest.raises(HostError, match="62 readers"):
        RingReader(ring, lossless=True)
    with RingReader(ring), RingReader(ring, "x" * 36 + "061") as again:
        assert again.position == 20


def test_places_without_a_name_are_used_again(ring: Path) -> None:
    for _ in range(100):
        RingReader(ring, lossless=True).close()
    held = [RingReader(ring, lossless=True) for _ in range(62)]
    with pytest.raises(HostError, match="62 readers"):
        RingReader(ring, "name")
    held.pop().close()
    RingReader(ring, "name").close()
    for reader in held:
        reader.close()
