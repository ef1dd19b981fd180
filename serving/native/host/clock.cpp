// The rate of the time stamp counter against the kernel's clock.
#include "host/clock.hpp"

#include <cstdio>
#include <cstring>

#if defined(STRIKEFORGE_X86)
#include <cpuid.h>
#endif

namespace strikeforge {

#if defined(STRIKEFORGE_X86)
namespace {

// One rate whatever the CPU's frequency or sleep, and the kernel found no fault with it.
bool trusted() {
    unsigned a, b, c, d;
    if (!__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & (1u << 8))) return false;
    char source[32] = "";
    std::FILE* file = std::fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "r");
    if (file == nullptr) return false;
    const bool read = std::fgets(source, sizeof source, file) != nullptr;
    std::fclose(file);
    return read && std::strncmp(source, "tsc", 3) == 0;
}

struct Pair {
    std::uint64_t ticks;
    std::int64_t ns;
};

// The two clocks at one moment: of several tries the one that took least.
template <class Ticks>
Pair pair_of(Ticks ticks) {
    Pair best{};
    std::uint64_t least = ~std::uint64_t{0};
    for (int i = 0; i < 20; ++i) {
        const std::uint64_t before = ticks();
        const std::int64_t ns = monotonic_ns();
        const std::uint64_t took = ticks() - before;
        if (took < least) least = took, best = {before + took / 2, ns};
    }
    return best;
}

}  // namespace
#endif

Stopwatch::Stopwatch() {
#if defined(STRIKEFORGE_X86)
    if (trusted()) {
        constexpr std::int64_t calibration_ns = 10'000'000;  // the pairs' 20 ns are then 2 ns in a millisecond
        const Pair begin = pair_of(read_ticks);
        while (monotonic_ns() - begin.ns < calibration_ns) {
        }
        const Pair end = pair_of(read_ticks);
        ns_per_tick_ = static_cast<double>(end.ns - begin.ns) / static_cast<double>(end.ticks - begin.ticks);
    }
#endif
    anchor();
}

}  // namespace strikeforge
