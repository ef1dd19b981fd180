// What is asked before every order, check by check, in the order of docs/host-rules.md ("Risk, before every order"):
// the table below is all there is. For host/risk.cpp alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "host/event_time.hpp"
#include "host/risk.hpp"

namespace strikeforge {

inline bool is_known(double value) {  // an infinite price or Greek is as good as none
    return std::isfinite(value);
}

inline ContractState::Working& working_side(ContractState& contract, bool buy) {
    return buy ? contract.buy : contract.sell;
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
               ns_between(asked.market.book_changed_ns, asked.market.event_ns) > gate.limits_.stale_book_ns;
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
        return ns_between(accepted_ns, asked.market.event_ns) < gate.limits_.order_rate_window_ns;
    }

    // What is beyond the limit already may come nearer to it, but not to the other side of it at one stroke.
    static bool grows_beyond(double before, double after, double limit) {
        const bool nearer = std::abs(after) <= std::abs(before) && (after > 0) == (before > 0);
        return !(std::abs(after) <= limit || nearer);
    }

    // With what works and pulls the same way: whichever of it fills, and in whatever order, the limit holds. Where
    // a Greek of what is held or works isn't known, neither is the total: then only reductions pass.
    static bool greek(const RiskGate& gate, const Question& asked, double ContractState::* which, double limit) {
        const double change = asked.change * (asked.contract->*which) * gate.limits_.multiplier;
        double total = 0, pending = 0;
        if (std::isinf(limit)) return false;
        for (const ContractState& contract : asked.contracts) {
            if (contract.position == 0 && !contract.buy.id && !contract.sell.id) continue;
            const double value = contract.*which;
            if (!is_known(value)) return !asked.reduces();
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

    // Of what works already, asked as a replacement of itself.
    static bool may_rest(const RiskGate& gate, const Question& asked, bool limits_changed) {
        for (const Row& row : rows) {
            const bool always =
                row.reason == Reason::reducing || row.reason == Reason::stale_book || row.reason == Reason::model_guard;
            const bool counts = limits_changed ? row.reason != Reason::order_rate : always;
            if (counts && row.breaks(gate, asked)) return false;
        }
        return true;
    }
};

}  // namespace strikeforge
