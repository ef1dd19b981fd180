"""Reading a blob in ranges, as GCS and Azure are read: each range is one request, so a break costs one range at most.

Data in: the first range and a function for the others. Data out: the same bytes in order.
Invariants: exactly the announced number of bytes comes out, or a StoreError; nothing is held but one range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from serving.blobstore import CHUNK_BYTES, Progress
from serving.errors import StoreError

PIECE_BYTES = 4 << 20


def pieces_from(
    key: str, start: int, size: int, first: bytes, fetch: Callable[[int], bytes], progress: Progress | None
) -> Iterator[bytes]:
    """The ranges from `start` to `size`; `fetch` gives the one that begins at a byte, `first` is already here."""
    done, piece = start, first
    while True:
        if len(piece) != min(PIECE_BYTES, size - done):
            raise StoreError(f"{key}: {len(piece)} bytes came from byte {done} on, of {size} in all; try again")
        if not piece:
            return
        done += len(piece)
        if progress is not None:
            progress(done, size)
        yield piece
        if done == size:
            return
        piece = fetch(done)


def split(piece: bytes) -> Iterator[bytes]:
    """In the chunks that readers of a store get."""
    for start in range(0, len(piece), CHUNK_BYTES):
        yield piece[start : start + CHUNK_BYTES]
