// What a core does to a thread that only reads the clock: the host's part of every latency.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace strikeforge {

// Reads CLOCK_MONOTONIC without a pause for `windows` windows of `window_ns` each; the largest gap between two reads,
// in ns, of every window. A gap counts in the window in which it ends.
std::vector<std::int64_t> largest_gaps(size_t windows, std::int64_t window_ns);

// A loop without a purpose, on a schedule: for each of `count` arrivals, `period_ns` apart (0: at once after the one
// before), the time from the arrival to the end of arithmetic that takes `busy_ns` undisturbed. What exceeds `busy_ns`
// is the machine's.
std::vector<std::int64_t> idle_arrivals(size_t count, std::int64_t period_ns, std::int64_t busy_ns);

// ns that one reading of CLOCK_MONOTONIC takes: the median over `batches` batches of 1,000.
double clock_cost_ns(size_t batches);

}  // namespace strikeforge
