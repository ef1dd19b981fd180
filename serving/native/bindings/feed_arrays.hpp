// Records of NumPy as the feeds take them: the bytes of a contiguous array of records (serving/feeds/feed.py:
// `bytes_of`).
#pragma once

#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "transport/records.hpp"

namespace strikeforge {

using RecordBytes = nanobind::ndarray<const std::uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

struct RecordSpan {
    const Record* data;
    size_t count;
};

inline RecordSpan records_of(const RecordBytes& bytes) {
    if (bytes.shape(0) % record_bytes != 0 || reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(Record) != 0)
        throw std::invalid_argument("records: expected the bytes of aligned records of " +
                                    std::to_string(record_bytes) + " bytes, found " + std::to_string(bytes.shape(0)) +
                                    " bytes");
    return {reinterpret_cast<const Record*>(bytes.data()), bytes.shape(0) / record_bytes};
}

}  // namespace strikeforge
