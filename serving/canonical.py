"""One JSON value, one sequence of bytes: what bundles and ledger events are hashed over.

Data in: JSON values or bytes. Data out: canonical bytes (sorted keys, no spaces, UTF-8, one newline at the
end) and their sha256. Invariants: `parse_canonical(canonical_json(value)) == value`; bytes that aren't
canonical (another order, a repeated key, NaN, a lone surrogate) are refused, so equal content always has an
equal hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

HEX_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_sha256(value: object) -> bool:
    return isinstance(value, str) and HEX_SHA256.fullmatch(value) is not None


def is_model_name(value: object) -> bool:
    """Lower case letters, digits, `_` and `-`, at most 63: safe in keys, file names and MLflow."""
    return isinstance(value, str) and MODEL_NAME.fullmatch(value) is not None


def canonical_json(value: Any) -> bytes:
    """Raises ValueError for NaN, infinity, lone surrogates; TypeError for what JSON can't hold."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def parse_canonical(raw: bytes) -> Any:
    """The value of canonical bytes; ValueError, saying why, for anything else."""
    try:
        value = json.loads(raw.decode("utf-8"))
        again = canonical_json(value)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if again != raw:
        raise ValueError("not canonical JSON (sorted keys, no spaces, no repeated key, UTF-8, one newline at the end)")
    return value
