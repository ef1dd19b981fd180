// The market step of the tick loop: order-book and trade features of a time interval, of which the last one is open.
//
// Steps are [k * step_ns, (k + 1) * step_ns) of event time. A step in which no event fell doesn't exist; how many were
// skipped is a feature. The open step's row moves with every event; it closes when an event of a later step comes, with
// what was known before that event. What every column means: serving/host/tick_features.py. Nothing allocates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "market/book.hpp"

namespace strikeforge {

class TickFeatures {
  public:
    static constexpr size_t count = 40;  // F0, the columns of STEP_FEATURES; fixed by the helper who defines them
    explicit TickFeatures(std::int64_t step_ns);
    // Before the book takes `record`: true if this event's time closes the open step, whose row is then in `closed`
    // [count]. Call once per event.
    bool close_before(std::int64_t event_ns, double* closed);
    // After the book took it: a trade or a change of the book enters the open step.
    void take(const Record& record, const Book& book);
    // The open step's row [count], unscaled. All finite; zeros before the book was ever usable.
    void row(double* out) const;
    void reset();

  private:
    struct State;
    // filled in by market/tick_features.cpp's author
};

}  // namespace strikeforge
