// The depth of one instrument's book, from pictures of several levels, best bids and asks, or one-sided updates.
//
// A quote sets the best level of the sides it speaks of: levels at its price or better go, those behind it stay; a side
// whose price isn't above zero, or whose size is zero, is emptied. Levels are collected from `first` to `last` and
// replace both sides together; a picture without its beginning, with a hole, or not ordered by price is refused as a
// whole. Trades and heartbeats leave the book alone. Nothing allocates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "transport/records.hpp"

namespace strikeforge {

struct Level {
    double price, size;
};

class Book {
  public:
    static constexpr size_t depth = 10;
    // True if `record` ends an event (whether or not it was refused); false within a picture.
    bool apply(const Record& record);
    void clear();
    size_t bids() const { return bids_; }
    size_t asks() const { return asks_; }
    const Level& bid(size_t place) const { return bid_[place]; }
    const Level& ask(size_t place) const { return ask_[place]; }
    // Both sides there and not crossed (bid < ask): only then is there a mid.
    bool usable() const { return bids_ && asks_ && bid_[0].price < ask_[0].price; }
    double mid() const { return 0.5 * (bid_[0].price + ask_[0].price); }
    std::int64_t changed_ns() const { return changed_ns_; }  // event time of the last accepted change; 0: never
    std::uint64_t refused() const { return refused_; }       // events

  private:
    void set_best(Level* side, size_t& count, double price, double size, bool is_bid);
    Level bid_[depth] = {}, ask_[depth] = {};
    size_t bids_ = 0, asks_ = 0;
    Level next_bid_[depth] = {}, next_ask_[depth] = {};
    size_t next_bids_ = 0, next_asks_ = 0;
    bool collecting_ = false, broken_ = false;
    std::int64_t changed_ns_ = 0;
    std::uint64_t refused_ = 0;
};

}  // namespace strikeforge
