// Where orders leave. Nothing but the risk gate can make a ClearedOrder, and a sink takes nothing else: whoever holds
// the ring of orders (RingOrderSink, no other: a ring refuses a second living writer) can't write to it past the gate.
//
// Offline the loop gives a sink of its own that puts each record behind the fills and signals of the same event.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "transport/records.hpp"
#include "transport/ring.hpp"

namespace strikeforge {

class ClearedOrder {
  public:
    ClearedOrder(const ClearedOrder&) = delete;  // nobody keeps one to let it leave again
    ClearedOrder& operator=(const ClearedOrder&) = delete;
    const Record& record() const { return record_; }

  private:
    friend class RiskGate;
    explicit ClearedOrder(const Record& record) : record_(record) {}
    const Record& record_;
};

class OrderSink {
  public:
    virtual ~OrderSink() = default;
    virtual void leave(const ClearedOrder& order) = 0;
    // Records that left here before this session: the gate's sequence goes on behind them.
    virtual std::uint64_t written() const { return 0; }
};

// The ring that gateways read. Stamps `sent_ns` (CLOCK_MONOTONIC), which is only measured with.
class RingOrderSink final : public OrderSink {
  public:
    RingOrderSink(const std::string& path, std::uint64_t capacity, bool lossless) : ring_(path, capacity, lossless) {}
    void leave(const ClearedOrder& order) override {
        Record record;
        copy_record(record, order.record());
        sent_ns_ = monotonic_ns();
        record.order.sent_ns = sent_ns_;
        ring_.write(record);
    }
    std::uint64_t written() const override { return ring_.written(); }
    std::int64_t sent_ns() const { return sent_ns_; }  // of the last record that left; 0: none did
    std::uint64_t waits() const { return ring_.waits(); }
    void give_up_on(const std::atomic<std::uint32_t>& stop) { ring_.give_up_on(stop); }

  private:
    RingWriter ring_;
    std::int64_t sent_ns_ = 0;
};

// What left, kept: for tests and replays in memory. Allocates beyond `room` records, which loses nothing.
class KeptOrders final : public OrderSink {
  public:
    explicit KeptOrders(size_t room) { records_.reserve(room); }
    void leave(const ClearedOrder& order) override { records_.push_back(order.record()); }
    const std::vector<Record>& records() const { return records_; }
    void clear() { records_.clear(); }

  private:
    std::vector<Record> records_;
};

}  // namespace strikeforge
