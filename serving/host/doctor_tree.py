"""What the kernel tells in /proc and /sys, read below one root so that a copied or made-up tree does as well.

Data in: names such as "sys/devices/system/cpu/online". Data out: text, whole numbers, sets of cores. Invariants:
nothing is written; whatever a file holds, the only exception is `UnreadableError`, which names the file and what is
wrong; text that goes on to a terminal is printable and short.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 16 << 20  # of one file: /proc/interrupts of a large machine has a few hundred kilobytes
PIECE_BYTES = 1 << 16  # the kernel refuses readers of /proc/sys who bring a buffer of megabytes (ENOMEM)
MOST_CORES = 1 << 16  # Linux has at most 8,192
LARGEST = 1 << 63
ISOLATION_FLAGS = ("nohz", "domain", "managed_irq")  # of isolcpus=
MOST_SHOWN = 160  # characters of a file's own words in a finding


class UnreadableError(Exception):
    """What a check needs isn't there, or makes no sense."""


@dataclass(frozen=True)
class Tree:
    """The root that holds proc, sys and dev."""

    root: Path = Path("/")

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """The whole file."""
        try:
            with self.path(name).open("rb", buffering=0) as file:
                content = bytearray()
                while len(content) < MOST_BYTES and (piece := file.read(PIECE_BYTES)):
                    content += piece
                return content.decode("utf-8", errors="replace")
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte, made of what another file said
            raise UnreadableError(f"/{shown(name)}: {_why(error)}") from error

    def word(self, name: str) -> str:
        """The file as one line, as a setting is written."""
        return " ".join(self.text(name).split())

    def whole(self, name: str) -> int:
        """The file as one whole number."""
        return whole(self.text(name), f"/{name}")

    def cores(self, name: str) -> frozenset[int]:
        """The file as a list of cores, "0-3,8"."""
        return cores_of(self.text(name), f"/{name}")

    def has(self, name: str) -> bool:
        try:
            return self.path(name).exists()
        except (OSError, ValueError):
            return False

    def names(self, folder: str) -> list[str]:
        """What lies in a folder, sorted."""
        try:
            return sorted(entry.name for entry in self.path(folder).iterdir())
        except (OSError, ValueError) as error:
            raise UnreadableError(f"/{shown(folder)}: {_why(error)}") from error

    def numbered(self, folder: str, prefix: str = "") -> list[tuple[int, str]]:
        """Entries named `prefix` and a number, in numerical order: (number, name)."""
        found = []
        for name in self.names(folder):
            digits = name.removeprefix(prefix)
            if name.startswith(prefix) and digits.isascii() and digits.isdecimal() and len(digits) < 10:
                found.append((int(digits), name))
        return sorted(found)

    def option(self, name: str) -> str | None:
        """A parameter of the kernel's command line; the last one counts, None where it wasn't given."""
        found = None
        for word in self.text("proc/cmdline").split():
            key, _, value = word.partition("=")
            if key == name:
                found = value
        return found

    def option_cores(self, name: str, every: frozenset[int]) -> frozenset[int]:
        """The cores that a parameter of the command line names; `every`: what "all" means."""
        words = [word for word in (self.option(name) or "").split(",") if word not in ISOLATION_FLAGS]
        if words == ["all"]:
            return every
        last = str(max(every, default=0))
        return cores_of(",".join(words).replace("N", last), f"/proc/cmdline: {name}")


def whole(text: str, where: str) -> int:
    """A whole number of at most 64 bits."""
    try:
        number = int(text)
    except ValueError as error:
        raise UnreadableError(f"{where}: {shown(text)!r} isn't a whole number") from error
    if abs(number) > LARGEST:
        raise UnreadableError(f"{where}: {shown(text)!r} is too large")
    return number


def cores_of(text: str, where: str) -> frozenset[int]:
    """The kernel's list format: "0-3,8", "0-30:2/4" (the first 2 of each 4); "" and "(null)" are no cores."""
    found: set[int] = set()
    text = text.strip()
    for part in text.split(",") if text not in ("", "(null)") else ():
        span, _, stride = part.strip().partition(":")
        first, _, last = span.partition("-")
        used, _, group = stride.partition("/")
        begin, end = _core(first, text, where), _core(last or first, text, where)
        taken, of = (_core(used, text, where), _core(group, text, where)) if stride else (1, 1)
        if end < begin or of < 1:
            raise UnreadableError(f"{where}: {shown(text)!r} isn't a list of cores")
        found.update(core for core in range(begin, end + 1) if (core - begin) % of < taken)
    return frozenset(found)


def cores_of_mask(text: str, where: str) -> frozenset[int]:
    """The kernel's mask format: "ffffffff,00000003"."""
    digits = text.strip().replace(",", "")
    try:
        mask = int(digits, 16)
    except ValueError as error:
        raise UnreadableError(f"{where}: {shown(text)!r} isn't a mask of cores") from error
    if not 0 <= mask < 1 << MOST_CORES:
        raise UnreadableError(f"{where}: {shown(text)!r} isn't a mask of cores")
    return frozenset(core for core in range(mask.bit_length()) if mask >> core & 1)


def mask_of(cores: Iterable[int]) -> str:
    """The mask format of some cores."""
    digits = f"{sum(1 << core for core in cores):x}"
    digits = digits.zfill((len(digits) + 7) // 8 * 8)
    return ",".join(digits[start : start + 8] for start in range(0, len(digits), 8))


def list_of(cores: Iterable[int]) -> str:
    """The list format of some cores, "none" where there are none."""
    spans: list[list[int]] = []
    for core in sorted(cores):
        if spans and core == spans[-1][1] + 1:
            spans[-1][1] = core
        else:
            spans.append([core, core])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in spans) or "none"


def fields(text: str) -> dict[str, str]:
    """Lines `name: value` (status, meminfo, the first processor of cpuinfo): the first of each name counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def field(text: str, name: str, where: str) -> str:
    """One of them; UnreadableError where it is missing."""
    try:
        return fields(text)[name]
    except KeyError:
        raise UnreadableError(f"{where}: has no line {name!r}") from None


def shown(text: str) -> str:
    """A file's own words, fit for a terminal."""
    line = " ".join(text.split())
    kept = "".join(character if character.isprintable() else "?" for character in line)
    return kept if len(kept) <= MOST_SHOWN else f"{kept[:MOST_SHOWN]}..."


def _core(text: str, whole_text: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6) or int(text) >= MOST_CORES:
        raise UnreadableError(f"{where}: {shown(whole_text)!r} isn't a list of cores")
    return int(text)


def _why(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
