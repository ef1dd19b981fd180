// What the rings carry: 56 bytes in one of a few shapes, which with a slot's own number fill one cache line.
//
// Two clocks, never mixed. `event_ns`: the market's, nanoseconds since 1970 UTC, from the data; everything that is
// decided is decided by it, so the same records give the same orders. `arrival_ns`, `sent_ns`: CLOCK_MONOTONIC of this
// machine; only measured with, never decided by. An *event* is what a consumer acts on: any one record, or the levels
// of one picture of the book, from `first` to `last`. serving/host/records.py makes NumPy types of `record_layout`.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace strikeforge {

enum class Kind : std::uint8_t {
    none = 0,
    trade = 1,      // somebody traded
    quote = 2,      // the best bid, the best ask, or both
    level = 3,      // one level of a picture of the book, both sides
    heartbeat = 4,  // time passed; the feed lives
    order = 5,      // what left us: new, replace, cancel
    fill = 6,       // what was done of our order
    signal = 7,     // what the loop has to tell: changes of state, reasons, fair values
    control = 8,    // what an operator asks
};

// Flags of trade, quote, level.
inline constexpr std::uint8_t has_bid = 1, has_ask = 2;         // quote, level: the sides that it speaks of
inline constexpr std::uint8_t buyer_took = 1, seller_took = 2;  // trade: who crossed the spread; neither: unknown
inline constexpr std::uint8_t first = 4, last = 8;              // level: begins, ends the picture
// Bits 4-7 of a level's flags: which level, 0 is the best.
inline constexpr int level_shift = 4;

// Flags of order and fill.
inline constexpr std::uint8_t is_buy = 1, is_new = 2, is_replace = 4, is_cancel = 8;

struct RecordHeader {
    std::int64_t event_ns;
    std::uint32_t sequence;    // of its source, counted by one: a hole is a loss
    std::uint16_t instrument;  // 0: the underlying; 1...: the quoted contracts, in order
    Kind kind;
    std::uint8_t flags;
};

struct Trade {
    RecordHeader header;
    double price, size;
    double unused[2];
    std::int64_t arrival_ns;
};

struct Quote {  // and Level
    RecordHeader header;
    double bid, bid_size, ask, ask_size;  // money, units; 0 where the side isn't spoken of
    std::int64_t arrival_ns;
};

struct Order {
    RecordHeader header;     // event_ns: of the event that caused it
    std::uint64_t order_id;  // of this session, from 1; a replacement has a new one
    double price, quantity;
    std::int64_t arrival_ns;  // of the event that caused it
    std::int64_t sent_ns;
};

struct Fill {
    RecordHeader header;
    std::uint64_t order_id;
    double price, quantity;
    double underlying;  // price of the trade that printed through it
    std::int64_t arrival_ns;
};

struct Signal {
    RecordHeader header;  // flags: a SignalCode (host/loop.hpp)
    double value[4];
    std::int64_t arrival_ns;
};

struct Control {
    RecordHeader header;  // flags: a ControlCode (host/loop.hpp)
    double value[4];
    std::int64_t arrival_ns;
};

union Record {
    RecordHeader header;
    Trade trade;
    Quote quote;
    Order order;
    Fill fill;
    Signal signal;
    Control control;
    std::uint64_t words[7];
};
inline constexpr size_t record_bytes = 56;
static_assert(sizeof(Record) == record_bytes && sizeof(Trade) == record_bytes && sizeof(Quote) == record_bytes &&
              sizeof(Order) == record_bytes && sizeof(Fill) == record_bytes && sizeof(Signal) == record_bytes &&
              sizeof(Control) == record_bytes);

// A load of bytes that several stores wrote can't be forwarded: it waits until those, and all stores before them, are
// in the cache. Behind a slot of a ring whose line another core has, that is 50 to 150 ns a record. So what is just
// being made is written and copied in words of 8 bytes, which compilers don't join where they are atomic.
inline void copy_record(Record& to, const Record& from) {
    for (size_t place = 0; place < record_bytes / 8; ++place)
        to.words[place] = __atomic_load_n(&from.words[place], __ATOMIC_RELAXED);
}

static_assert(std::endian::native == std::endian::little && offsetof(RecordHeader, sequence) == 8);
inline void set_sequence(Record& record, std::uint32_t sequence) {
    record.words[1] = (record.words[1] >> 32 << 32) | sequence;
}

inline void set_header(Record& record, std::int64_t event_ns, std::uint32_t sequence, std::uint16_t instrument,
                       Kind kind, std::uint8_t flags) {
    record.words[0] = static_cast<std::uint64_t>(event_ns);
    record.words[1] = sequence | static_cast<std::uint64_t>(instrument) << 32 | static_cast<std::uint64_t>(kind) << 48 |
                      static_cast<std::uint64_t>(flags) << 56;
}

}  // namespace strikeforge
