// Every figure is written as docs/host-rules.md writes it, in its order: the slow reference repeats it bit for bit.
#include "host/risk.hpp"

#include <algorithm>
#include <cmath>

#include "host/risk_checks.hpp"

namespace strikeforge {

const char* state_name(State state) {
    constexpr const char* names[] = {"ACTIVE", "REDUCING", "HALTED"};
    return names[static_cast<size_t>(state)];
}

const char* reason_name(Reason reason) {
    constexpr const char* names[] = {
        "none",         "halted",      "reducing", "malformed", "stale_book",  "model_guard",  "order_size",
        "price_collar", "self_match",  "position", "notional",  "delta",       "gamma",        "vega",
        "order_rate",   "kill_switch", "loss",     "drawdown",  "market_move", "reject_burst", "operator_asked"};
    static_assert(sizeof(names) / sizeof(*names) == static_cast<size_t>(Reason::reason_count));
    return names[static_cast<size_t>(reason)];
}

RiskGate::RiskGate(const Limits& limits, size_t contracts, OrderSink& orders, const std::atomic<std::uint32_t>* kill)
    : limits_(limits),
      orders_(orders),
      kill_(kill),
      records_(orders.written()),
      fair_(contracts),
      accepted_ns_(most_order_rate) {
    check_limits(limits);
}

void RiskGate::set_limits(const Limits& limits) {
    check_limits(limits);
    if (limits.multiplier != limits_.multiplier || limits.tick_money != limits_.tick_money)
        throw HostProblem("multiplier and tick_money are the contracts' own terms: they change with a restart only");
    limits_ = limits;
}

void RiskGate::on_market(const Market& market, std::vector<ContractState>& contracts) {
    measure_profit(contracts);
    if (state_ == State::halted) return;
    if (!(profit_ > -limits_.loss_money)) return halt(Reason::loss, market, contracts);
    best_profit_ = std::max(best_profit_, profit_);
    if (!(best_profit_ - profit_ < limits_.drawdown_money)) reduce(Reason::drawdown);
    watch_move(market);
    if (state_ == State::reducing && why_ == Reason::market_move && market.event_ns >= pause_end_ns_) {
        state_ = State::active;
        why_ = Reason::none;
    }
    withdraw(market, contracts);
}

// A contract that isn't priced now is valued at the fair value it last had.
void RiskGate::measure_profit(const std::vector<ContractState>& contracts) {
    double total = 0;
    for (size_t place = 0; place < contracts.size(); ++place) {
        const ContractState& contract = contracts[place];
        if (is_known(contract.fair)) fair_[place] = contract.fair;
        total += contract.position == 0 ? contract.cash
                                        : contract.cash + contract.position * fair_[place] * limits_.multiplier;
    }
    profit_ = total;
}

// Two references, so that a move across the renewal of one is still seen against the other.
void RiskGate::watch_move(const Market& market) {
    if (!is_known(market.spot)) return;
    if (std::isnan(reference_.spot) ||
        ns_between(reference_.event_ns, market.event_ns) >= limits_.market_move_window_ns) {
        previous_ = reference_;
        reference_ = {market.spot, market.event_ns};
    }
    const auto moved = [&](const Seen& seen) {
        return std::abs(market.spot / seen.spot - 1) >= limits_.market_move_share;  // false where there is none
    };
    if (!moved(reference_) && !moved(previous_)) return;
    reduce(Reason::market_move);
    pause_end_ns_ = later_by(market.event_ns, limits_.market_move_pause_ns);
    reference_ = {market.spot, market.event_ns};
    previous_ = {};
}

double RiskGate::last_fair(const std::vector<ContractState>& contracts, size_t place) const {
    return is_known(contracts[place].fair) ? contracts[place].fair : fair_[place];
}

Reason RiskGate::submit(const Intent& intent, const Market& market, std::vector<ContractState>& contracts) {
    if (kill_ && kill_->load(std::memory_order_acquire)) halt(Reason::kill_switch, market, contracts);
    ContractState* contract = intent.contract < contracts.size() ? &contracts[intent.contract] : nullptr;
    const bool buys = intent.flags & is_buy;
    if (intent.flags & is_cancel) {
        if (contract) cancel(intent.contract, buys, market, contracts);
        return Reason::none;
    }
    const Question asked{intent,
                         market,
                         contracts,
                         contract,
                         contract ? &working_side(*contract, buys) : nullptr,
                         buys ? intent.quantity : -intent.quantity};
    const Reason reason = Checks::first_broken(*this, asked);
    if (reason == Reason::none)
        accept(asked);
    else
        refuse(reason, asked);
    return reason;
}

void RiskGate::accept(const Question& asked) {
    accepted_ns_[accepted_ % most_order_rate] = asked.market.event_ns;
    *asked.working = {++accepted_, asked.intent.price, asked.intent.quantity};  // its id: orders of this session
    in_a_row_ = 0;
    send(asked.market, asked.intent.contract, asked.intent.flags, *asked.working);
}

void RiskGate::refuse(Reason reason, const Question& asked) {
    ++refused_[static_cast<size_t>(reason)];
    if (asked.replaces() && asked.contract) cancel(asked.intent.contract, asked.buys(), asked.market, asked.contracts);
    in_a_row_ += reason != Reason::halted && reason != Reason::reducing;  // they tell the state, not a fault
    if (!(static_cast<double>(in_a_row_) < limits_.reject_burst_count))
        halt(Reason::reject_burst, asked.market, asked.contracts);
}

void RiskGate::cancel(size_t contract, bool buy, const Market& market, std::vector<ContractState>& contracts) {
    ContractState::Working& order = working_side(contracts[contract], buy);
    if (!order.id) return;
    send(market, contract, is_cancel | (buy ? is_buy : 0), order);
    order = {};
    ++cancelled_;
}

void RiskGate::cancel_all(const Market& market, std::vector<ContractState>& contracts) {
    for (size_t place = 0; place < contracts.size(); ++place) {
        cancel(place, true, market, contracts);
        cancel(place, false, market, contracts);
    }
}

void RiskGate::withdraw(const Market& market, std::vector<ContractState>& contracts, bool limits_changed) {
    for (size_t place = 0; place < contracts.size(); ++place) {
        ContractState& contract = contracts[place];
        for (const bool buys : {true, false}) {
            ContractState::Working& order = working_side(contract, buys);
            if (!order.id) continue;
            const Intent again{static_cast<std::uint16_t>(place),
                               static_cast<std::uint8_t>(is_replace | (buys ? is_buy : 0)), order.price,
                               order.quantity};
            const Question asked{again, market, contracts, &contract, &order, buys ? order.quantity : -order.quantity};
            if (!Checks::may_rest(*this, asked, limits_changed)) cancel(place, buys, market, contracts);
        }
    }
}

void RiskGate::send(const Market& market, size_t contract, std::uint8_t flags, const ContractState::Working& order) {
    Record record;
    set_header(record, market.event_ns, static_cast<std::uint32_t>(++records_),
               static_cast<std::uint16_t>(contract + 1), Kind::order, flags);
    record.order.order_id = order.id;
    record.order.price = order.price;
    record.order.quantity = order.quantity;
    record.order.arrival_ns = market.arrival_ns;
    record.order.sent_ns = 0;
    orders_.leave(ClearedOrder(record));
}

void RiskGate::halt(Reason why, const Market& market, std::vector<ContractState>& contracts) {
    if (state_ == State::halted) return;
    state_ = State::halted;
    why_ = why;
    cancel_all(market, contracts);
}

void RiskGate::reduce(Reason why) {
    const auto lasts = [](Reason reason) {
        return reason == Reason::market_move      ? 1
               : reason == Reason::operator_asked ? 2
               : reason == Reason::drawdown       ? 3
                                                  : 0;
    };
    if (state_ == State::halted) return;
    state_ = State::reducing;
    if (lasts(why) > lasts(why_)) why_ = why;
}

void RiskGate::resume() {
    state_ = State::active;
    why_ = Reason::none;
    best_profit_ = profit_;
    reference_ = previous_ = {};
    in_a_row_ = 0;
}

}  // namespace strikeforge
