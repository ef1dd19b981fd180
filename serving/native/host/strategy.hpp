// What decides: sees the market and the contracts, asks for orders; the risk gate has the last word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "host/risk.hpp"
#include "market/book.hpp"

namespace strikeforge {

// Room for what one event may ask; never grows. What is asked beyond it isn't taken, and counted.
class Intents {
  public:
    explicit Intents(size_t room) : room_(room) { intents_.reserve(room); }
    void clear() { intents_.clear(); }  // not the count
    void ask(const Intent& intent) {
        if (intents_.size() < room_)
            intents_.push_back(intent);
        else
            ++beyond_room_;
    }
    std::uint64_t beyond_room() const { return beyond_room_; }
    const Intent* begin() const { return intents_.data(); }
    const Intent* end() const { return intents_.data() + intents_.size(); }

  private:
    size_t room_;
    std::uint64_t beyond_room_ = 0;
    std::vector<Intent> intents_;
};

class Strategy {
  public:
    virtual ~Strategy() = default;
    // After every event. Deterministic in its arguments and its own state; allocates nothing; reads no clock.
    virtual void on_event(const Market& market, const Book& book, const std::vector<ContractState>& contracts,
                          Intents& out) = 0;
    virtual void on_fill(const Fill&) {}
    virtual void on_refused(const Intent&, const Market&) {}  // what it asked, by the gate
};

// Asks for nothing.
std::unique_ptr<Strategy> make_null_strategy();

// A bid and an ask around every quoted contract's fair value; rules in docs/host-rules.md. Money and units as named.
// It asks at most twice for a contract in one event. HostProblem where an option makes no sense.
struct FixedWidth {
    double half_width_money, quantity, requote_money, skew_money_per_unit, tick_money;
    std::int64_t retry_ns;  // event time without a new order on a side after one was refused there
};
std::unique_ptr<Strategy> make_fixed_width(const FixedWidth& options, size_t contracts);

}  // namespace strikeforge
