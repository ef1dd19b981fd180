// NumPy arrays of records (serving/host/records.py) as plain pointers. Checked on every call: their size and layout in
// memory; that their fields are a record's is checked by serving/host/ring.py.
#pragma once

#include <nanobind/nanobind.h>

#include "transport/records.hpp"

namespace strikeforge {

struct RecordsOf {
    const Record* data;
    size_t count;
};
struct WrittenRecordsOf {
    Record* data;
    size_t count;
};

// One record ([]) or several ([N]), C-contiguous and aligned; RingProblem names what is wrong.
RecordsOf records_of(nanobind::handle array);
WrittenRecordsOf written_records_of(nanobind::handle array);

}  // namespace strikeforge
