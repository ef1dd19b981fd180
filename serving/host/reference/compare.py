"""Whether what left a loop is what left the reference, byte by byte but for the times that are only measured with.

Data in: two arrays of records, both in the order of leaving (or both of one kind: what is in a ring). Data out: ""
where they are equal, else the first difference in words. Invariant: NaN equals the same NaN, and 0.0 isn't -0.0.
"""

from __future__ import annotations

import numpy as np

from serving.host.records import FILL, ORDER, RECORD, SHAPES, SIGNAL, Kind, Records

MEASURED = {Kind.ORDER: (ORDER, "arrival_ns", "sent_ns"), Kind.FILL: (FILL, "arrival_ns"),
            Kind.SIGNAL: (SIGNAL, "arrival_ns")}  # fmt: skip


def without_times(left: Records) -> Records:
    """A copy whose `arrival_ns` and `sent_ns` are 0."""
    kept = left.view(RECORD).copy()
    for kind, (shape, *names) in MEASURED.items():
        chosen = kept["kind"] == kind
        rows = kept[chosen].view(shape)
        for name in names:
            rows[name] = 0
        kept[chosen] = rows.view(RECORD)
    return kept


def first_difference(product: Records, reference: Records) -> str:
    """The first record that differs, or how many one has more than the other."""
    ours, theirs = without_times(product), without_times(reference)
    shared = min(len(ours), len(theirs))
    words = [one[:shared].view(np.uint64).reshape(shared, RECORD.itemsize // 8) for one in (ours, theirs)]
    different = np.flatnonzero((words[0] != words[1]).any(axis=1))
    if len(different):
        place = int(different[0])
        return f"record {place} of {shared}:\nproduct   {_shown(ours, place)}\nreference {_shown(theirs, place)}"
    if len(ours) != len(theirs):
        longer, name = (ours, "the product") if len(ours) > shared else (theirs, "the reference")
        return f"{name} has {abs(len(ours) - len(theirs))} records more, the first: {_shown(longer, shared)}"
    return ""


def _shown(records: Records, place: int) -> str:
    kind = int(records["kind"][place])
    shape = SHAPES[Kind(kind)] if kind in list(SHAPES) else RECORD
    row = records[place : place + 1].view(shape)[0]
    return ", ".join(f"{name} {row[name]}" for name in shape.names or ())
