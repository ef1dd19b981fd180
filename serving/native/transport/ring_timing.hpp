// What both ends of a ring can do natively, to be timed: benchmarks/host_ring.py.
#pragma once

#include <cstdint>

#include "transport/ring.hpp"

namespace strikeforge {

// Writes `count` trades whose `sequence` and `price` are their number. One every `interval_ns`, stamped with
// CLOCK_MONOTONIC just before (`arrival_ns`); with 0 as fast as it can, unstamped. Returns the nanoseconds it took.
std::int64_t send_stamped(RingWriter& writer, std::uint64_t count, std::int64_t interval_ns);

// Polls until record `count` - 1 of a ring that `send_stamped` alone wrote to, and checks that each record is the one
// its position says. `latency_ns` [count], where given: of each, from its stamp until it is here; then none may be
// lost. Returns the nanoseconds from the first record to the last. RingProblem if none comes for so long.
std::int64_t receive_stamped(RingReader& reader, std::uint64_t count, std::int64_t* latency_ns,
                             std::int64_t patience_ns);

// A loop without a purpose, fed by a ring as the hot loop is: reads `count` events of market data and does arithmetic
// of `busy_ns` (base/work.hpp) after each. `taken_ns` [count]: of each, from its `arrival_ns` to the end of that.
// RingProblem if none comes for so long, or one was lost.
void read_idly(RingReader& reader, std::uint64_t count, std::int64_t busy_ns, std::int64_t* taken_ns,
               std::int64_t patience_ns);

}  // namespace strikeforge
