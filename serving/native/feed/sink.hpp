// Where a feed puts what it received: the seam between receivers and the ring. A receiver of any kind, hardware too,
// calls `take` for each record, in order, with `arrival_ns` set on CLOCK_MONOTONIC.
#pragma once

#include <atomic>
#include <cstddef>

#include "transport/ring.hpp"

namespace strikeforge {

class RecordSink {
  public:
    virtual ~RecordSink() = default;
    virtual bool take(const Record& record) = 0;  // false: not taken, because the feed is being stopped
};

class RingSink final : public RecordSink {
  public:
    RingSink(RingWriter& ring, const std::atomic<bool>& stop) : ring_(ring), stop_(stop) {}
    bool take(const Record& record) override {
        while (!ring_.room(0)) {  // lossless, and a reader is behind
            if (stop_.load(std::memory_order_relaxed)) return false;
            ring_.room(10'000);
        }
        ring_.write(record);
        return true;
    }

  private:
    RingWriter& ring_;
    const std::atomic<bool>& stop_;
};

// Trades, quotes, levels, heartbeats: what may come from outside. Anything else in a feed is an attack or a defect.
inline bool is_market_data(Kind kind) {
    return kind == Kind::trade || kind == Kind::quote || kind == Kind::level || kind == Kind::heartbeat;
}
// Whether a record begins an event: all but the levels of a picture after its first.
inline bool begins_event(const RecordHeader& header) {
    return header.kind != Kind::level || (header.flags & first) != 0;
}
// Market data of all kinds keeps its arrival in the same place.
static_assert(offsetof(Trade, arrival_ns) == 48 && offsetof(Quote, arrival_ns) == 48);
inline Record arrived(const Record& record, std::int64_t arrival_ns) {
    Record out;
    copy_record(out, record);
    out.trade.arrival_ns = arrival_ns;
    return out;
}

}  // namespace strikeforge
