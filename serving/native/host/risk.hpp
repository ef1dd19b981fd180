// Risk before every order: the only way to the order ring. Exact rules, in order: docs/host-rules.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "transport/ring.hpp"

namespace strikeforge {

enum class State : std::uint8_t { active = 0, reducing = 1, halted = 2 };

// Why an order was refused, or a state entered. Names for people: reason_name.
enum class Reason : std::uint8_t {
    none = 0,
    halted,
    reducing,
    malformed,
    stale_book,
    model_guard,
    order_size,
    price_collar,
    self_match,
    position,
    notional,
    delta,
    gamma,
    vega,
    order_rate,  // refusals
    kill_switch,
    loss,
    drawdown,
    market_move,
    reject_burst,
    operator_asked,  // states
    reason_count,
};
const char* reason_name(Reason reason);

// All in the units of their names; a limit of infinity doesn't limit. serving/host/limits.py reads and checks them.
struct Limits {
    double collar_money, collar_share;         // |price - fair| <= money + share * fair
    double order_quantity, position_quantity;  // per order; per contract, with what works
    double notional_money;                     // gross, with what works
    double delta, gamma, vega;                 // portfolio, absolute; delta in units of the underlying
    double loss_money, drawdown_money;         // of the session; from its best
    double order_rate_count;                   // at most so many accepted orders in
    std::int64_t order_rate_window_ns;
    std::int64_t stale_book_ns;           // event time since the book changed
    double anomaly_score, clipped_share;  // model guard
    double market_move_share;             // underlying against its reference of
    std::int64_t market_move_window_ns, market_move_pause_ns;
    double reject_burst_count;      // refusals in a row
    double multiplier, tick_money;  // of a contract: units of the underlying; smallest price step
};

// What the loop knows of one quoted contract.
struct ContractState {
    double fair, delta, gamma, vega;  // per unit of the underlying's SPOT; NaN: not priced
    double position, cash;            // signed quantity; money taken in
    struct Working {
        std::uint64_t id = 0;  // 0: none
        double price = 0, quantity = 0;
    } buy, sell;
};

// What the strategy asks.
struct Intent {
    std::uint16_t contract;  // 0...
    std::uint8_t flags;      // is_buy, is_new | is_replace | is_cancel
    double price, quantity;  // 0 for a cancel
};

// What is true now, besides the contracts.
struct Market {
    std::int64_t event_ns, arrival_ns;
    std::int64_t book_changed_ns;
    double spot;           // NaN: no usable book
    double anomaly_score;  // as last told by control
    double clipped_share;  // of the step's features
    bool model_expired;    // as last told by control
};

class RiskGate {
  public:
    RiskGate(const Limits& limits, size_t contracts, RingWriter* orders);  // orders may be null: tests, offline replay
    // Once per event, before the strategy is asked: states that the market or the P&L bring about.
    void on_market(const Market& market, const std::vector<ContractState>& contracts);
    // Check and, if it passes, send and book `intent` in `contracts`; the reason otherwise. A refused replacement
    // cancels what works. `sent`: the record that left, if any (up to one: a replacement is one record).
    Reason submit(const Intent& intent, const Market& market, std::vector<ContractState>& contracts);
    void cancel_all(const Market& market, std::vector<ContractState>& contracts);
    void halt(Reason why);  // kill switch, operator
    void reduce(Reason why);
    void resume();  // an operator's; back to active, references begin anew
    void set_limits(const Limits& limits);
    State state() const { return state_; }
    Reason why() const { return why_; }
    std::uint64_t refused(Reason reason) const { return refused_[static_cast<size_t>(reason)]; }
    std::uint64_t accepted() const { return accepted_; }
    double profit() const { return profit_; }  // of the session, at the last on_market

  private:
    Limits limits_;
    State state_ = State::active;
    Reason why_ = Reason::none;
    std::uint64_t refused_[static_cast<size_t>(Reason::reason_count)] = {};
    std::uint64_t accepted_ = 0;
    double profit_ = 0;
    // the rest: host/risk.cpp's author
};

}  // namespace strikeforge
