// Risk before every order: the only way to the order ring. Exact rules, in order: docs/host-rules.md.
//
// The gate alone can make what an OrderSink takes (order_sink.hpp), books what works, and numbers orders and records.
// A comparison that can't be made (NaN) counts as a limit broken. Nothing allocates after the gate was made.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "host/limits.hpp"
#include "host/order_sink.hpp"
#include "transport/records.hpp"

namespace strikeforge {

enum class State : std::uint8_t { active = 0, reducing = 1, halted = 2 };
const char* state_name(State state);

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

// What the loop knows of one quoted contract.
struct ContractState {
    static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();
    // Per unit of the underlying's SPOT; NaN: not priced, as at the start.
    double fair = unknown, delta = unknown, gamma = unknown, vega = unknown;
    double position = 0, cash = 0;  // signed quantity; money taken in
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
    std::int64_t event_ns, arrival_ns;  // event_ns: the loop's now, never earlier than the one before
    std::int64_t book_changed_ns;
    double spot;           // NaN: no usable book
    double anomaly_score;  // as last told by control
    double clipped_share;  // of the step's features
    bool model_expired;    // as last told by control
};

class RiskGate {
  public:
    // `orders` takes what passed. `kill`: where not 0 means halt, looked at before every order; null: nobody can.
    // Both live longer than the gate. HostProblem where a limit makes no sense.
    RiskGate(const Limits& limits, size_t contracts, OrderSink& orders, const std::atomic<std::uint32_t>* kill);
    // Once per event, before the strategy is asked: states that the market or the P&L bring about. What works is
    // cancelled where the state becomes HALTED, here and below, and what may work no longer is withdrawn.
    void on_market(const Market& market, std::vector<ContractState>& contracts);
    // Check and, if it passes, send and book `intent` in `contracts`; the reason otherwise. A refused replacement
    // cancels what works. A cancel of nothing is `none` too: `records` tells what left.
    Reason submit(const Intent& intent, const Market& market, std::vector<ContractState>& contracts);
    void cancel_all(const Market& market, std::vector<ContractState>& contracts);
    // Cancels what works and, asked for now, would be refused as `reducing`, `stale_book` or `model_guard`: an order of
    // a model or a book that aren't trusted any more is as bad resting as sent. `on_market` ends with it.
    // `limits_changed`: or for any other reason but the order rate, which it passed when it was sent.
    void withdraw(const Market& market, std::vector<ContractState>& contracts, bool limits_changed = false);
    void halt(Reason why, const Market& market, std::vector<ContractState>& contracts);  // kill switch, operator
    // A longer-lasting reason stays: market_move < operator_asked < drawdown.
    void reduce(Reason why);
    void resume();  // an operator's; back to active, references begin anew
    // Between two records. HostProblem, and the limits stay, if one makes no sense or the contract's own terms
    // (multiplier, tick_money) differ.
    void set_limits(const Limits& limits);
    const Limits& limits() const { return limits_; }
    State state() const { return state_; }
    Reason why() const { return why_; }
    std::uint64_t refused(Reason reason) const { return refused_[static_cast<size_t>(reason)]; }
    std::uint64_t accepted() const { return accepted_; }  // new and replace
    std::uint64_t cancelled() const { return cancelled_; }
    std::uint64_t records() const { return records_; }  // of the order ring: the last one's sequence
    double profit() const { return profit_; }           // of the session, at the last on_market
    double best_profit() const { return best_profit_; }

  private:
    struct Question;
    struct Checks;
    struct Seen {  // a spot; NaN: none
        double spot = std::numeric_limits<double>::quiet_NaN();
        std::int64_t event_ns = 0;
    };
    void measure_profit(const std::vector<ContractState>& contracts);
    void watch_move(const Market& market);
    double last_fair(const std::vector<ContractState>& contracts, size_t place) const;
    void accept(const Question& asked);
    void refuse(Reason reason, const Question& asked);
    void cancel(size_t contract, bool buy, const Market& market, std::vector<ContractState>& contracts);
    void send(const Market& market, size_t contract, std::uint8_t flags, const ContractState::Working& order);

    Limits limits_;
    OrderSink& orders_;
    const std::atomic<std::uint32_t>* kill_;
    State state_ = State::active;
    Reason why_ = Reason::none;
    std::uint64_t refused_[static_cast<size_t>(Reason::reason_count)] = {};
    std::uint64_t accepted_ = 0, cancelled_ = 0, records_ = 0;
    std::uint64_t in_a_row_ = 0;  // refusals since the last acceptance
    double profit_ = 0, best_profit_ = 0;
    std::vector<double> fair_;               // of each contract, as last known; 0 before
    std::vector<std::int64_t> accepted_ns_;  // event times of the last most_order_rate accepted orders, a ring
    Seen reference_, previous_;
    std::int64_t pause_end_ns_ = 0;
};

}  // namespace strikeforge
