// Work without memory: rounds of arithmetic in which each needs the one before. What the machine takes from a loop that
// computes (interrupts, a hypervisor's own time) it takes from this one; a wait for the clock would swallow it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.hpp"

namespace strikeforge {

inline void work(std::uint64_t rounds) {
    std::uint64_t x = rounds;
    for (std::uint64_t round = 0; round < rounds; ++round) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        asm volatile("" : "+r"(x));  // must be computed, whoever needs it
    }
}

// As many rounds as take `ns` when nothing disturbs them: by the fastest of many tries.
inline std::uint64_t rounds_in(std::int64_t ns) {
    constexpr int tries = 200;
    constexpr std::uint64_t rounds = 10'000;
    std::int64_t fastest = INT64_MAX;
    for (int i = 0; i < tries; ++i) {
        const std::int64_t begin = monotonic_ns();
        work(rounds);
        fastest = std::min(fastest, monotonic_ns() - begin);
    }
    if (ns <= 0) return 0;
    return rounds * static_cast<std::uint64_t>(ns) / static_cast<std::uint64_t>(std::max<std::int64_t>(fastest, 1));
}

}  // namespace strikeforge
