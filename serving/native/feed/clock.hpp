// Waiting for a moment of CLOCK_MONOTONIC.
#pragma once

#include <time.h>

#include <atomic>
#include <cstdint>

#include "base/clock.hpp"

namespace strikeforge {

inline void relax() {
#ifdef STRIKEFORGE_X86
    __builtin_ia32_pause();
#endif
}

// Until `due_ns`, or until `stop` (false then). `busy`: spins all the time; else sleeps until shortly before.
inline bool wait_until(std::int64_t due_ns, bool busy, const std::atomic<bool>& stop) {
    constexpr std::int64_t spun_ns = 60'000, nap_ns = 10'000'000;  // a wake-up's usual delay; how fast `stop` is seen
    for (;;) {
        if (stop.load(std::memory_order_relaxed)) return false;
        const std::int64_t left = due_ns - monotonic_ns();
        if (left <= 0) return true;
        if (busy || left <= spun_ns) {
            relax();
        } else {
            const std::int64_t nap = left - spun_ns < nap_ns ? left - spun_ns : nap_ns;
            const timespec time{nap / 1'000'000'000, nap % 1'000'000'000};
            nanosleep(&time, nullptr);
        }
    }
}

}  // namespace strikeforge
