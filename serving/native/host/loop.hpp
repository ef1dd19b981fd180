// The loop: records in, risk-checked orders out. Rules: docs/host-rules.md. One thread; nothing allocates after the
// start.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "host/contracts.hpp"
#include "host/histogram.hpp"
#include "host/risk.hpp"
#include "host/strategy.hpp"
#include "market/tick_features.hpp"

namespace strikeforge {

enum class SignalCode : std::uint8_t { state = 1, control_acted = 2, fair_values = 3 };
enum class ControlCode : std::uint8_t { kill = 1, reduce = 2, resume = 3, anomaly_score = 4, model_expired = 5 };

// The hops that are timed: from the one before (queue: from scheduled arrival) to its own end.
enum class Hop : std::uint8_t {
    queue,
    book,
    features,
    evaluate,
    reprice,
    decide,
    order,
    tick_to_order,
    tick_to_done,
    advance,
    sweep,
    hop_count
};

// What everybody may look at while the loop runs: a page of shared memory (host/board.cpp). Plain numbers, written by
// the loop alone, each atomically; a reader may see two of them from different events. `control` is written by others.
struct Board {
    static constexpr std::uint64_t layout = 1;
    std::atomic<std::uint64_t> version;  // layout; written last
    // Asked from outside; the loop looks at them before every record and the gate before every order.
    alignas(64) std::atomic<std::uint32_t> kill;  // not 0: halt
    std::atomic<std::uint32_t> stop;              // not 0: end the loop
    // Told by the loop.
    alignas(64) std::atomic<std::uint64_t> records, events, trades, orders, cancels, fills, refused, lost, gaps,
        advances, sweeps;
    std::atomic<std::int64_t> event_ns, started_ns, alive_ns, sweep_age_ns;
    std::atomic<double> spot, profit, best_profit, delta, gamma, vega, anomaly_score, clipped_share;
    std::atomic<std::uint32_t> state, why;
    std::atomic<std::uint64_t> refused_by[static_cast<size_t>(Reason::reason_count)];
    static constexpr size_t most_contracts = 64;
    std::atomic<std::uint32_t> contracts;
    std::atomic<double> position[most_contracts], fair[most_contracts], volatility[most_contracts], bid[most_contracts],
        ask[most_contracts];
    Histogram hops[static_cast<size_t>(Hop::hop_count)];
};

}  // namespace strikeforge
