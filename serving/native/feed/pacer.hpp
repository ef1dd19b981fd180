// Replay: records written at scheduled times. `arrival_ns` is the *scheduled* arrival, however late the write is, so
// that what is measured from it has no coordinated omission.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "feed/sink.hpp"

namespace strikeforge {

enum class PaceKind : std::uint8_t {
    full,    // as fast as the sink takes them; arrival: when each event was offered
    scaled,  // as event times lie, `value` times as fast
    fixed,   // `value` events a second
};
struct Pace {
    PaceKind kind;
    double value;
};

// Arrivals of events, one after the other, relative to the first: whole nanoseconds, rounded down.
class Schedule {
  public:
    explicit Schedule(const Pace& pace) : pace_(pace) {}
    // Of the next event; event times that go back arrive with the one before.
    std::int64_t next(std::int64_t event_ns);

  private:
    Pace pace_;
    std::uint64_t events_ = 0;
    std::int64_t first_ns_ = 0, latest_ns_ = 0;
};

class Pacer {
  public:
    struct Result {
        std::uint64_t records, events;
        std::int64_t start_ns;   // arrival of the first event
        std::int64_t latest_ns;  // the longest that an event was written after its arrival
    };
    // The first event arrives at `start_ns`; all records of an event share its arrival. Only `stop` ends it early,
    // between two events unless the sink is full.
    Result run(const Record* records, size_t count, const Pace& pace, std::int64_t start_ns, bool busy,
               RecordSink& sink);
    const std::atomic<bool>& stopped() const { return stop_; }
    void stop() { stop_.store(true, std::memory_order_relaxed); }

  private:
    std::atomic<bool> stop_{false};
};

}  // namespace strikeforge
