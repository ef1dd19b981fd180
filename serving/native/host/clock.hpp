// Nanoseconds of CLOCK_MONOTONIC at the price of a counter's reading, within one event.
//
// Each event is anchored once with the kernel's clock (its slewing is followed); within the event the time stamp
// counter is added, where the CPU's runs at one rate and the kernel trusts it. Elsewhere every reading is the kernel's.
// Measured with, never decided by.
#pragma once

#include <cstdint>

#include "base/clock.hpp"

#if defined(STRIKEFORGE_X86)
#include <x86intrin.h>
#endif

namespace strikeforge {

class Stopwatch {
  public:
    Stopwatch();  // calibrates for some milliseconds
    bool counts_ticks() const { return ns_per_tick_ > 0; }
    // The kernel's clock; later readings of `now` start from here.
    std::int64_t anchor() {
#if defined(STRIKEFORGE_X86)
        if (counts_ticks()) ticks_ = read_ticks();
#endif
        return at_ns_ = monotonic_ns();
    }
    std::int64_t now() const {
#if defined(STRIKEFORGE_X86)
        if (counts_ticks())
            return at_ns_ + static_cast<std::int64_t>(static_cast<double>(read_ticks() - ticks_) * ns_per_tick_);
#endif
        return monotonic_ns();
    }

  private:
#if defined(STRIKEFORGE_X86)
    static std::uint64_t read_ticks() {  // after all that comes before it in the program is done
        unsigned cpu;
        return __rdtscp(&cpu);
    }
    std::uint64_t ticks_ = 0;
#endif
    std::int64_t at_ns_ = 0;
    double ns_per_tick_ = 0;
};

}  // namespace strikeforge
