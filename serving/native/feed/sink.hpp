// Where a feed puts what it received: the seam between receivers and the ring. A receiver of any kind, hardware too,
// calls `take` for each record, in order, with `arrival_ns` set on CLOCK_MONOTONIC.
#pragma once

#include "transport/ring.hpp"

namespace strikeforge {

class RecordSink {
  public:
    virtual ~RecordSink() = default;
    virtual void take(const Record& record) = 0;
};

class RingSink final : public RecordSink {
  public:
    explicit RingSink(RingWriter& ring) : ring_(ring) {}
    void take(const Record& record) override { ring_.write(record); }

  private:
    RingWriter& ring_;
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
    Record out = record;
    out.trade.arrival_ns = arrival_ns;
    return out;
}

}  // namespace strikeforge
