"""Engines built before, kept by everything an engine depends on.

In: a key (`serving.engine_pack.engine_key`: hash of the ONNX, configuration, TensorRT's version, SM, precision). Out:
the engine's bytes, or None: then it is built. Invariant: an entry that is incomplete, damaged, or of another key is not
an error but a reason to build, and said in the log. Engines are code: the folder belongs to whoever compiles.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serving.canonical import canonical_json, parse_canonical, sha256_hex

log = logging.getLogger("strikeforge.compile")

ENGINE, ENTRY = "engine", "entry.json"


@dataclass(frozen=True)
class EngineCache:
    """A folder of engines; None where nothing is kept."""

    folder: Path | None

    def get(self, key: str) -> bytes | None:
        """The engine of that key."""
        if self.folder is None:
            return None
        place = self.folder / key
        try:
            entry = parse_canonical((place / ENTRY).read_bytes())
            engine = (place / ENGINE).read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("cached engine %s can't be read (%s); it is built anew", key, error)
            return None
        if entry != {"key": key, "sha256": sha256_hex(engine)}:
            log.warning("cached engine %s isn't what its entry says; it is built anew", key)
            return None
        return engine

    def put(self, key: str, engine: bytes) -> None:
        """Keep an engine; the entry comes last, so half an entry is none."""
        if self.folder is None:
            return
        place = self.folder / key
        place.mkdir(parents=True, exist_ok=True)
        for name, content in ((ENGINE, engine), (ENTRY, canonical_json({"key": key, "sha256": sha256_hex(engine)}))):
            handle, temporary = tempfile.mkstemp(dir=place)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).replace(place / name)
