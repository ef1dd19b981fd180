"""NumPy's records are the compiled core's: same bytes, same names of constants."""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np
import pytest

from tests.serving.native.built import built_core

CORE = built_core()

from serving.host import records  # noqa: E402
from serving.host.records import ALL, RECORD, SHAPES, TRADE, Kind, new_records  # noqa: E402

HEADER = ("event_ns", "sequence", "instrument", "kind", "flags")


def test_every_shape_is_a_record_with_the_same_header() -> None:
    for dtype in ALL:
        assert dtype.itemsize == CORE.RECORD_BYTES == 56
        assert dtype.names is not None
        assert dtype.names[:5] == HEADER
        assert [dtype.fields[name] for name in HEADER] == [RECORD.fields[name] for name in HEADER]


def test_fields_don_t_overlap_and_lie_on_their_own_size() -> None:
    for dtype in ALL:
        taken = np.zeros(dtype.itemsize, bool)
        for name in dtype.names:
            field, offset = dtype.fields[name][:2]
            assert offset % field.base.itemsize == 0, name
            assert not taken[offset : offset + field.itemsize].any(), name
            taken[offset : offset + field.itemsize] = True


@pytest.mark.parametrize("enum", [records.Kind, records.TradeFlags, records.QuoteFlags, records.OrderFlags])
def test_constants_are_the_core_s(enum: type[IntEnum] | type[IntFlag]) -> None:
    assert {member.name: int(member) for member in enum} == CORE.record_constants()[enum.__name__]
    assert CORE.record_constants()["LEVEL_SHIFT"] == records.LEVEL_SHIFT


def test_a_view_names_the_payload_of_the_same_bytes() -> None:
    made = new_records(3, Kind.TRADE)
    made["price"], made["size"] = [1.5, 2.5, 3.5], 7.0
    plain = made.view(RECORD)
    assert plain["values"][:, 0].tolist() == [1.5, 2.5, 3.5]
    assert plain["kind"].tolist() == [Kind.TRADE] * 3
    assert np.shares_memory(made, plain)


def test_each_kind_with_a_payload_has_a_shape() -> None:
    assert set(SHAPES) == set(Kind) - {Kind.NONE, Kind.HEARTBEAT}
    assert new_records(1, Kind.HEARTBEAT).dtype == RECORD
    assert new_records(1, Kind.LEVEL).dtype == records.QUOTE != TRADE
