"""moto's server with the one property of S3 that it lacks: a conditional write is one step.

moto looks whether an object is there and writes it afterwards, in threads of one process: on a busy machine two writers
that both said `If-None-Match: *` can both be told that they created it (measured: one of 200 races). S3 promises that
exactly one is. So puts and completions of multipart uploads take turns here; nothing else is changed. (With threads
that switch every microsecond, plain moto let two of eight writers win in 32 of 1,500 rounds, this one in none.)

In: moto.server's own arguments. Run: python tests/atomic_moto.py -H HOST -p PORT
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

WRITES = ("put_object", "_key_response_post")  # the second completes multipart uploads


def take_turns(owner: type, names: tuple[str, ...]) -> None:
    """One lock around the methods of these names."""
    lock = threading.RLock()

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any, **named: Any) -> Any:
            with lock:
                return method(*args, **named)

        return run

    for name in names:
        setattr(owner, name, guarded(getattr(owner, name)))


if __name__ == "__main__":
    take_turns(S3Response, WRITES)
    main(sys.argv[1:])
