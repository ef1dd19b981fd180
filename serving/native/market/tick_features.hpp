// The market step of the tick loop: order-book and trade features of a time interval, of which the last one is open.
//
// Steps are [k * step_ns, (k + 1) * step_ns) of event time. A step in which no event fell doesn't exist; how many were
// skipped is a feature. The open step's row moves with every event; it closes when an event of a later step comes, with
// what was known before that event. What every column means: docs/host-features.md. Nothing allocates.
//
// A tick costs a few sums: the closed steps stand in a ring, and sums over them are made anew when a step closes, so
// nothing drifts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "market/book.hpp"
#include "market/volume_profile.hpp"

namespace strikeforge {

class TickFeatures {
  public:
    static constexpr size_t count = 40;  // F0, the columns of STEP_FEATURES
    static const char* const names[count];
    static constexpr size_t longest = 64;                        // steps of the longest horizon, the open one included
    static constexpr double smallest = 1e-100, largest = 1e100;  // prices and sizes beyond are refused

    explicit TickFeatures(std::int64_t step_ns);  // > 0
    // Before the book takes the record of an event: true if the event's time closes the open step, whose row is then in
    // `closed` [count]. Call once per event; a time before the latest one counts as the latest.
    bool close_before(std::int64_t event_ns, double* closed);
    // After the book took it: a trade or a change of the book enters the open step. Heartbeats change nothing.
    void take(const Record& record, const Book& book);
    // The open step's row [count], unscaled. All finite; zeros before the book was ever usable.
    void row(double* out) const;
    void reset();
    bool started() const { return started_; }                        // the book has been usable
    std::int64_t step_start_ns() const { return step_ * step_ns_; }  // of the open step, once started
    double mid() const { return best_.mid; }                         // the last one; 0 before the start
    std::uint64_t refused() const { return refused_; }               // trades and books with impossible numbers

  private:
    // What happened in one step, or in several.
    struct Sums {
        double trades = 0, volume = 0, notional = 0, bought = 0, sold = 0;
        double quotes = 0, flow = 0, squared_return = 0, depth = 0, spread = 0;
        void add(const Sums& other);
    };
    struct Step {
        Sums sums;
        double mid, vwap;   // at its end; of its trades
        std::int64_t step;  // event time over step_ns
    };
    // Of the last usable book.
    struct Best {
        double bid, bid_size, ask, ask_size;
        double mid, spread, depth;  // spread over the mid; mean of both sizes
        double imbalance[4], micro_distance;
    };
    struct Horizon {  // over the closed steps of it
        Sums sums;
        std::int64_t first_step;  // its oldest step
    };

    const Step& ago(size_t steps) const { return ring_[(closed_ - steps) % longest]; }  // 1: the last closed one
    void close();
    Horizon over(size_t steps) const;
    void take_trade(const Trade& trade);
    void take_book(const Book& book);
    void start(double mid, double spread);

    std::int64_t step_ns_;
    Step ring_[longest] = {};
    std::uint64_t closed_ = 0;  // steps so far
    double first_mid_ = 0;
    // Made anew when a step closes.
    Horizon over_8_ = {}, over_64_ = {};
    double base_[5] = {};                             // mids before the horizons of momentum
    double usual_volume_ = 0, volume_deviation_ = 0;  // of a closed step: mean, standard deviation
    VolumeProfile profile_;
    // Of the open step.
    Sums open_;
    std::int64_t step_ = 0;
    double skipped_ = 0;
    // Of now.
    bool started_ = false;
    std::int64_t now_ns_ = 0, taken_ns_ = 0, traded_ns_ = 0;
    Best best_ = {};
    std::uint64_t changes_seen_ = 0, refused_ = 0;
};

}  // namespace strikeforge
