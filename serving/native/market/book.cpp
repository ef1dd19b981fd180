#include "market/book.hpp"

#include <algorithm>
#include <cmath>

namespace strikeforge {

namespace {

bool is_positive(double value) {
    return std::isfinite(value) && value > 0;
}

// Nearer to the middle: a higher bid, a lower ask.
bool is_better(double price, double than, bool is_bid) {
    return is_bid ? price > than : price < than;
}

}  // namespace

void Book::Side::set_best(double price, double size, bool is_bid) {
    if (!is_positive(price) || !is_positive(size)) {
        count = 0;
        return;
    }
    size_t behind = 0;  // the first level that stays
    while (behind < count && !is_better(price, level[behind].price, is_bid)) ++behind;
    const size_t kept = std::min(count - behind, depth - 1);
    if (behind == 0) {
        std::copy_backward(level, level + kept, level + kept + 1);
    } else if (behind > 1) {
        std::copy(level + behind, level + behind + kept, level + 1);
    }
    level[0] = {price, size};
    count = kept + 1;
}

// False if it isn't worse than the level before it.
bool Book::Side::append(double price, double size, bool is_bid) {
    if (!is_positive(price) || !is_positive(size)) return true;
    if (count && !is_better(level[count - 1].price, price, is_bid)) return false;
    level[count++] = {price, size};
    return true;
}

void Book::clear() {
    *this = Book();
}

void Book::accept(std::int64_t now_ns) {
    changed_ns_ = now_ns;
    ++changes_;
}

void Book::collect(const Quote& level) {
    const std::uint8_t flags = level.header.flags;
    if (flags & first) {
        if (collecting_) ++refused_;
        next_bid_.count = next_ask_.count = 0;
        next_levels_ = 0;
        broken_ = false;
    } else if (!collecting_) {
        broken_ = true;
    }
    collecting_ = true;
    if (broken_) return;
    const unsigned number = flags >> level_shift;
    if (number != next_levels_++) {
        broken_ = true;
        return;
    }
    if (number >= depth) return;
    if ((flags & has_bid) && !next_bid_.append(level.bid, level.bid_size, true)) broken_ = true;
    if ((flags & has_ask) && !next_ask_.append(level.ask, level.ask_size, false)) broken_ = true;
}

bool Book::apply(const Record& record, std::int64_t now_ns) {
    const Kind kind = record.header.kind;
    if (kind == Kind::level) {
        collect(record.quote);
        if (!(record.header.flags & last)) return false;
        collecting_ = false;
        if (broken_) {
            ++refused_;
            return true;
        }
        bid_ = next_bid_;
        ask_ = next_ask_;
        accept(now_ns);
        return true;
    }
    if (collecting_ && (kind == Kind::quote || kind == Kind::trade)) {
        collecting_ = false;
        ++refused_;
    }
    if (kind == Kind::quote) {
        const Quote& quote = record.quote;
        if (!(quote.header.flags & (has_bid | has_ask))) {
            ++refused_;
            return true;
        }
        if (quote.header.flags & has_bid) bid_.set_best(quote.bid, quote.bid_size, true);
        if (quote.header.flags & has_ask) ask_.set_best(quote.ask, quote.ask_size, false);
        accept(now_ns);
        return true;
    }
    return ends_event(record);
}

}  // namespace strikeforge
