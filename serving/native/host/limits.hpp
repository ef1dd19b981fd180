// What a trading host may lose, hold and send at most. serving/host/limits.py reads them from a signed or local file.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace strikeforge {

// What the loop of a host refuses, in words for people; becomes serving.errors.HostError.
struct HostProblem : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// All in the units of their names; a limit of infinity (a time of INT64_MAX) doesn't limit.
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

// The gate remembers the times of so many orders: the largest order_rate_count that isn't infinity.
inline constexpr size_t most_order_rate = 16384;

struct LimitField {
    const char* name;
    double Limits::* number;      // or
    std::int64_t Limits::* time;  // nanoseconds
};
inline constexpr LimitField limit_fields[] = {
    {"collar_money", &Limits::collar_money, nullptr},
    {"collar_share", &Limits::collar_share, nullptr},
    {"order_quantity", &Limits::order_quantity, nullptr},
    {"position_quantity", &Limits::position_quantity, nullptr},
    {"notional_money", &Limits::notional_money, nullptr},
    {"delta", &Limits::delta, nullptr},
    {"gamma", &Limits::gamma, nullptr},
    {"vega", &Limits::vega, nullptr},
    {"loss_money", &Limits::loss_money, nullptr},
    {"drawdown_money", &Limits::drawdown_money, nullptr},
    {"order_rate_count", &Limits::order_rate_count, nullptr},
    {"order_rate_window_ns", nullptr, &Limits::order_rate_window_ns},
    {"stale_book_ns", nullptr, &Limits::stale_book_ns},
    {"anomaly_score", &Limits::anomaly_score, nullptr},
    {"clipped_share", &Limits::clipped_share, nullptr},
    {"market_move_share", &Limits::market_move_share, nullptr},
    {"market_move_window_ns", nullptr, &Limits::market_move_window_ns},
    {"market_move_pause_ns", nullptr, &Limits::market_move_pause_ns},
    {"reject_burst_count", &Limits::reject_burst_count, nullptr},
    {"multiplier", &Limits::multiplier, nullptr},
    {"tick_money", &Limits::tick_money, nullptr},
};
static_assert(sizeof(limit_fields) / sizeof(LimitField) * 8 == sizeof(Limits), "every limit is named here");

// The last line of defence: serving/host/limits.py says the same of a file, every problem at once.
inline void check_limits(const Limits& limits) {
    for (const LimitField& field : limit_fields) {
        const bool fits = field.number ? limits.*field.number >= 0 : limits.*field.time >= 0;  // NaN isn't >= 0
        if (!fits) throw HostProblem(std::string("limit ") + field.name + " must be a number that isn't negative");
    }
    if (!std::isfinite(limits.collar_share))
        throw HostProblem("limit collar_share must be finite; collar_money may be inf");
    if (std::isfinite(limits.order_rate_count) && limits.order_rate_count > static_cast<double>(most_order_rate))
        throw HostProblem("limit order_rate_count must be at most " + std::to_string(most_order_rate) + ", or inf");
    if (!(limits.reject_burst_count >= 1)) throw HostProblem("limit reject_burst_count must be at least 1");
    if (!(limits.multiplier > 0 && std::isfinite(limits.multiplier)))
        throw HostProblem("multiplier must be finite and above 0");
    if (!(limits.tick_money > 0 && std::isfinite(limits.tick_money)))
        throw HostProblem("tick_money must be finite and above 0");
}

}  // namespace strikeforge
