// What both ends of a ring can do natively, to be timed: benchmarks/host_ring.py.
#pragma once

#include <cstdint>

#include "transport/ring.hpp"

namespace strikeforge {

// Writes `count` trades, each stamped with CLOCK_MONOTONIC just before (`arrival_ns`), one every `interval_ns`; with 0
// as fast as it can, unstamped. Returns the nanoseconds that it took.
std::int64_t send_stamped(RingWriter& writer, std::uint64_t count, std::int64_t interval_ns);

// Reads `count` records, polling. `latency_ns`, where given: of each, from its stamp until it is here. Returns the
// nanoseconds from the first record to the last. RingProblem if none comes for so long.
std::int64_t receive_stamped(RingReader& reader, std::uint64_t count, std::int64_t* latency_ns,
                             std::int64_t patience_ns);

}  // namespace strikeforge
