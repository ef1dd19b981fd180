// The kernel's clocks in nanoseconds: one reading for all parts.
#pragma once

#include <time.h>

#include <cstdint>

namespace strikeforge {

inline std::int64_t clock_ns(clockid_t clock) {
    timespec time;
    clock_gettime(clock, &time);
    return std::int64_t{1'000'000'000} * time.tv_sec + time.tv_nsec;
}

// Measured with, never decided by (docs/host-rules.md).
inline std::int64_t monotonic_ns() {
    return clock_ns(CLOCK_MONOTONIC);
}

}  // namespace strikeforge
