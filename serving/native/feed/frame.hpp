// One datagram of a line: 24 bytes of header, then records as they lie in memory. All little-endian; docs/feeds.md.
//
//   0  u32  magic "SFED"        4  u8  version, 1      5  u8   line, 0 is A (told, not used)
//   6  u16  count of records; 0: none, the line lives; 0xffff: none, the session ends
//   8  u64  session: UTC nanoseconds at which the sender began; a later one is newer
//   16 u64  number of the first record, from 1; without records, of the record that comes next
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "feed/sink.hpp"

namespace strikeforge {

inline constexpr std::uint32_t frame_magic = 0x44454653;  // "SFED"
inline constexpr std::uint8_t frame_version = 1;
inline constexpr std::uint16_t end_of_session = 0xffff;
inline constexpr size_t frame_header_bytes = 24, most_frame_records = 25;  // 1,424 bytes: fits an Ethernet frame
inline constexpr size_t most_frame_bytes = frame_header_bytes + most_frame_records * record_bytes;
inline constexpr std::uint64_t largest_number = std::uint64_t{1} << 62;  // of a record; sums don't overflow

struct Frame {
    std::uint64_t session, first;
    std::uint16_t count;
    std::uint8_t line;
    bool ends;
    const std::uint8_t* records;  // need not be aligned

    Record record(size_t at) const {
        Record out;
        std::memcpy(&out, records + at * record_bytes, record_bytes);
        return out;
    }
};

// Why bytes are no frame; each is counted.
enum class FrameProblem : std::uint8_t { none, too_short, magic, version, length, number, kind, problem_count };

inline FrameProblem parse_frame(const std::uint8_t* data, size_t bytes, Frame& out) {
    if (bytes < frame_header_bytes) return FrameProblem::too_short;
    std::uint32_t magic;
    std::memcpy(&magic, data, 4);
    if (magic != frame_magic) return FrameProblem::magic;
    if (data[4] != frame_version) return FrameProblem::version;
    out.line = data[5];
    std::memcpy(&out.count, data + 6, 2);
    std::memcpy(&out.session, data + 8, 8);
    std::memcpy(&out.first, data + 16, 8);
    out.ends = out.count == end_of_session;
    if (out.ends) out.count = 0;
    if (out.count > most_frame_records || bytes != frame_header_bytes + out.count * record_bytes)
        return FrameProblem::length;
    if (out.first == 0 || out.first > largest_number || out.session == 0) return FrameProblem::number;
    out.records = data + frame_header_bytes;
    for (size_t at = 0; at < out.count; ++at)
        if (!is_market_data(static_cast<Kind>(out.records[at * record_bytes + offsetof(RecordHeader, kind)])))
            return FrameProblem::kind;
    return FrameProblem::none;
}

}  // namespace strikeforge
