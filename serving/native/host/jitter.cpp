// Idle-loop jitter and the clock's cost, for `strikeforge-host doctor`. No allocation while the clock is read.
#include "host/jitter.hpp"

#include <algorithm>

#include "base/clock.hpp"
#include "base/work.hpp"

namespace strikeforge {

std::vector<std::int64_t> largest_gaps(size_t windows, std::int64_t window_ns) {
    std::vector<std::int64_t> gaps(windows, 0);  // written, so that no page fault falls into the first windows
    std::int64_t before = monotonic_ns(), end = before + window_ns;
    for (std::int64_t& largest : gaps) {
        std::int64_t now;
        do {
            now = monotonic_ns();
            largest = std::max(largest, now - before);
            before = now;
        } while (now < end);
        end = now + window_ns;
    }
    return gaps;
}

std::vector<std::int64_t> idle_arrivals(size_t count, std::int64_t period_ns, std::int64_t busy_ns) {
    std::vector<std::int64_t> taken(count, 0);
    const std::uint64_t rounds = rounds_in(busy_ns);
    std::int64_t arrival = monotonic_ns() + period_ns;
    for (std::int64_t& elapsed : taken) {
        if (period_ns == 0) arrival = monotonic_ns();
        while (monotonic_ns() < arrival) continue;
        work(rounds);
        elapsed = monotonic_ns() - arrival;
        arrival += period_ns;
    }
    return taken;
}

double clock_cost_ns(size_t batches) {
    constexpr int reads = 1000;
    std::vector<std::int64_t> elapsed(std::max<size_t>(batches, 1), 0);
    for (std::int64_t& batch : elapsed) {
        const std::int64_t begin = monotonic_ns();
        std::int64_t end = begin;
        for (int read = 0; read < reads; ++read) end = monotonic_ns();
        batch = end - begin;
    }
    const auto middle = elapsed.begin() + static_cast<std::ptrdiff_t>(elapsed.size() / 2);
    std::nth_element(elapsed.begin(), middle, elapsed.end());
    return static_cast<double>(*middle) / reads;
}

}  // namespace strikeforge
