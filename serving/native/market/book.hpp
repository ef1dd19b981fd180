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
    // What `apply` will answer; known before it, because a market step closes before its event is taken.
    static bool ends_event(const Record& record) {
        const Kind kind = record.header.kind;
        return kind == Kind::trade || kind == Kind::quote || kind == Kind::heartbeat ||
               (kind == Kind::level && (record.header.flags & last) != 0);
    }
    // True if `record` ends an event (whether or not it was refused); false within a picture, and for what isn't of a
    // market. `now_ns`: the event time at which it counts, the largest so far.
    bool apply(const Record& record, std::int64_t now_ns);
    // The number of the next record in the stream that the book's are part of, whatever its kind; how many are missing
    // before it. A hole ends a picture that was being collected: what is lost may have ended it, and begun another.
    std::uint32_t follow(std::uint32_t sequence) {
        const std::uint32_t missing = sequence - next_sequence_;
        const bool hole = following_ && missing != 0 && missing <= std::uint32_t{INT32_MAX};
        following_ = true;
        next_sequence_ = sequence + 1;
        if (!hole) return 0;
        broken_ = broken_ || collecting_;
        return missing;
    }
    void clear();
    size_t bids() const { return bid_.count; }
    size_t asks() const { return ask_.count; }
    const Level& bid(size_t place) const { return bid_.level[place]; }
    const Level& ask(size_t place) const { return ask_.level[place]; }
    // Both sides there and not crossed (bid < ask): only then is there a mid.
    bool usable() const { return bid_.count && ask_.count && bid_.level[0].price < ask_.level[0].price; }
    double mid() const { return 0.5 * (bid_.level[0].price + ask_.level[0].price); }
    std::int64_t changed_ns() const { return changed_ns_; }  // event time of the last accepted change; 0: never
    std::uint64_t changes() const { return changes_; }       // accepted quotes and pictures
    std::uint64_t refused() const { return refused_; }       // pictures, and quotes that speak of no side

  private:
    struct Side {  // best first
        Level level[depth];
        size_t count;
        void set_best(double price, double size, bool is_bid);
        bool append(double price, double size, bool is_bid);
    };
    void collect(const Quote& level);
    void accept(std::int64_t now_ns);
    Side bid_ = {}, ask_ = {};
    Side next_bid_ = {}, next_ask_ = {};
    unsigned next_levels_ = 0;  // records of the picture so far
    bool collecting_ = false, broken_ = false, following_ = false;
    std::uint32_t next_sequence_ = 0;
    std::int64_t changed_ns_ = 0;
    std::uint64_t changes_ = 0, refused_ = 0;
};

}  // namespace strikeforge
