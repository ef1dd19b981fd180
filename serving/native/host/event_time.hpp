// Arithmetic of event times: they come from data, so the difference or sum of two may be too large for 64 bits.
#pragma once

#include <cstdint>
#include <limits>

namespace strikeforge {

inline constexpr std::int64_t forever_ns = std::numeric_limits<std::int64_t>::max();

inline std::int64_t ns_between(std::int64_t earlier, std::int64_t later) {
    std::int64_t out;
    return __builtin_sub_overflow(later, earlier, &out) ? (later > earlier ? forever_ns : -forever_ns) : out;
}

inline std::int64_t later_by(std::int64_t time, std::int64_t wait) {
    std::int64_t out;
    return __builtin_add_overflow(time, wait, &out) ? forever_ns : out;  // wait >= 0
}

}  // namespace strikeforge
