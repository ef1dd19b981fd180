// Every figure is written as docs/host-rules.md writes it, in its order: the slow reference repeats it bit for bit.
#include "host/risk.hpp"

#include <algorithm>
#include <cmath>

namespace strikeforge {

namespace {

constexpr std::int64_t forever = std::numeric_limits<std::int64_t>::max();

// Times come from data: the difference of two may be too large for one.
std::int64_t after(std::int64_t earlier, std::int64_t later) {
    std::int64_t out;
    return __builtin_sub_overflow(later, earlier, &out) ? (later > earlier ? forever : -forever) : out;
}

std::int64_t later_by(std::int64_t time, std::int64_t wait) {
    std::int64_t out;
    return __builtin_add_overflow(time, wait, &out) ? forever : out;  // wait >= 0
}

bool is_known(double value) {  // an infinite price or Greek is as good as none
    return std::isfinite(value);
}

ContractState::Working& working_side(ContractState& contract, bool buy) {
    return buy ? contract.buy : contract.sell;
}

}  // namespace

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

// One new order or replacement, looked at by every check.
struct RiskGate::Question {
    const Intent& intent;
    const Market& market;
    std::vector<ContractState>& contracts;
    ContractState* contract;          // null: out of range
    ContractState::Working* working;  // that side's order, of id 0 if there is none; null: out of range
    double change;                    // of the position, if it fills

    bool buys() const { return intent.flags & is_buy; }
    bool replaces() const { return intent.flags & is_replace; }
    bool reduces() const {
        return contract && contract->position * change < 0 && intent.quantity <= std::abs(contract->position);
    }
};

// Each true if the order breaks that rule. Written as "not within", so that NaN breaks it.
struct RiskGate::Checks {
    static bool halted(const RiskGate& gate, const Question&) { return gate.state_ == State::halted; }

    static bool reducing(const RiskGate& gate, const Question& asked) {
        return gate.state_ == State::reducing && !asked.reduces();
    }

    static bool malformed(const RiskGate& gate, const Question& asked) {
        const std::uint8_t action = asked.intent.flags & ~is_buy;
        if (!asked.contract || (action != is_new && action != is_replace)) return true;
        const double price = asked.intent.price, quantity = asked.intent.quantity, tick = gate.limits_.tick_money;
        if (!std::isfinite(price) || !std::isfinite(quantity) || !(price > 0) || !(quantity > 0)) return true;
        if (!(std::abs(price - std::round(price / tick) * tick) <= 1e-9 * price)) return true;
        return asked.replaces() != (asked.working->id != 0);
    }

    static bool stale_book(const RiskGate& gate, const Question& asked) {
        return !is_known(asked.market.spot) ||
               after(asked.market.book_changed_ns, asked.market.event_ns) > gate.limits_.stale_book_ns;
    }

    static bool model_guard(const RiskGate& gate, const Question& asked) {
        const ContractState& contract = *asked.contract;
        return !(is_known(contract.fair) && is_known(contract.delta) && is_known(contract.gamma) &&
                 is_known(contract.vega)) ||
               asked.market.model_expired || !(asked.market.anomaly_score <= gate.limits_.anomaly_score) ||
               !(asked.market.clipped_share <= gate.limits_.clipped_share);
    }

    static bool order_size(const RiskGate& gate, const Question& asked) {
        return !(asked.intent.quantity <= gate.limits_.order_quantity);
    }

    static bool price_collar(const RiskGate& gate, const Question& asked) {
        const double fair = asked.contract->fair;
        return !(std::abs(asked.intent.price - fair) <= gate.limits_.collar_money + gate.limits_.collar_share * fair);
    }

    static bool self_match(const RiskGate&, const Question& asked) {
        const ContractState::Working& other = working_side(*asked.contract, !asked.buys());
        if (!other.id) return false;
        return asked.buys() ? asked.intent.price >= other.price : asked.intent.price <= other.price;
    }

    static bool position(const RiskGate& gate, const Question& asked) {
        const double before = asked.contract->position;
        return grows_beyond(before, before + asked.change, gate.limits_.position_quantity);
    }

    static bool notional(const RiskGate& gate, const Question& asked) {
        double held = 0, working = 0;
        for (size_t place = 0; place < asked.contracts.size(); ++place)
            held += std::abs(asked.contracts[place].position) * gate.last_fair(asked.contracts, place);
        for (const ContractState& contract : asked.contracts)
            for (const ContractState::Working* order : {&contract.buy, &contract.sell})
                if (order->id && order != asked.working) working += order->price * order->quantity;
        const double gross = gate.limits_.multiplier * (held + working + asked.intent.price * asked.intent.quantity);
        return !(gross <= gate.limits_.notional_money) && !asked.reduces();
    }

    static bool delta(const RiskGate& gate, const Question& asked) {
        return greek(gate, asked, &ContractState::delta, gate.limits_.delta);
    }

    static bool gamma(const RiskGate& gate, const Question& asked) {
        return greek(gate, asked, &ContractState::gamma, gate.limits_.gamma);
    }

    static bool vega(const RiskGate& gate, const Question& asked) {
        return greek(gate, asked, &ContractState::vega, gate.limits_.vega);
    }

    // Event times never go back, so the order that lies `count` accepted ones behind tells of all after it.
    static bool order_rate(const RiskGate& gate, const Question& asked) {
        if (!std::isfinite(gate.limits_.order_rate_count)) return false;
        const auto count = static_cast<std::uint64_t>(std::ceil(gate.limits_.order_rate_count));
        if (gate.accepted_ < count) return false;
        if (!count) return true;
        const std::int64_t accepted_ns = gate.accepted_ns_[(gate.accepted_ - count) % most_order_rate];
        return after(accepted_ns, asked.market.event_ns) < gate.limits_.order_rate_window_ns;
    }

    static bool grows_beyond(double before, double after, double limit) {
        return !(std::abs(after) <= limit || std::abs(after) <= std::abs(before));
    }

    // With what works and pulls the same way: whichever of it fills, and in whatever order, the limit holds.
    static bool greek(const RiskGate& gate, const Question& asked, double ContractState::* which, double limit) {
        const double change = asked.change * (asked.contract->*which) * gate.limits_.multiplier;
        double total = 0, pending = 0;
        for (const ContractState& contract : asked.contracts) {
            const double value = is_known(contract.*which) ? contract.*which : 0.0;
            total += contract.position * value * gate.limits_.multiplier;
            for (const ContractState::Working* order : {&contract.buy, &contract.sell}) {
                if (!order->id || order == asked.working) continue;
                const double quantity = order == &contract.buy ? order->quantity : -order->quantity;
                const double moved = quantity * value * gate.limits_.multiplier;
                if (change > 0 ? moved > 0 : moved < 0) pending += moved;
            }
        }
        return grows_beyond(total, total + pending + change, limit);
    }

    struct Row {
        Reason reason;
        bool (*breaks)(const RiskGate&, const Question&);
    };
    // The page's order: the first that breaks is the reason. From `stale_book` on the contract is there and the
    // numbers are sound, because `malformed` came before.
    static constexpr Row rows[] = {
        {Reason::halted, halted},
        {Reason::reducing, reducing},
        {Reason::malformed, malformed},
        {Reason::stale_book, stale_book},
        {Reason::model_guard, model_guard},
        {Reason::order_size, order_size},
        {Reason::price_collar, price_collar},
        {Reason::self_match, self_match},
        {Reason::position, position},
        {Reason::notional, notional},
        {Reason::delta, delta},
        {Reason::gamma, gamma},
        {Reason::vega, vega},
        {Reason::order_rate, order_rate},
    };

    // No refusal is without its row, and they stand in the order of `Reason`.
    static constexpr bool complete() {
        size_t place = 0;
        for (const Row& row : rows)
            if (static_cast<size_t>(row.reason) != ++place) return false;
        return place == static_cast<size_t>(Reason::order_rate);
    }

    static Reason first_broken(const RiskGate& gate, const Question& asked) {
        static_assert(complete());
        for (const Row& row : rows)
            if (row.breaks(gate, asked)) return row.reason;
        return Reason::none;
    }
};

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
    if (std::isnan(reference_.spot) || after(reference_.event_ns, market.event_ns) >= limits_.market_move_window_ns) {
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

void RiskGate::send(const Market& market, size_t contract, std::uint8_t flags, const ContractState::Working& order) {
    Record record{};
    record.order = {{market.event_ns, static_cast<std::uint32_t>(++records_), static_cast<std::uint16_t>(contract + 1),
                     Kind::order, flags},
                    order.id,
                    order.price,
                    order.quantity,
                    market.arrival_ns,
                    0};
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
