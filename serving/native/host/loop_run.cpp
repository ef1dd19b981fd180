// Around the events: reading a ring until told to stop, replaying memory, the sweep of the chain while nothing waits,
// and what is told on the board.
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "base/allocations.hpp"
#include "host/loop_parts.hpp"

namespace strikeforge {

namespace {

constexpr std::int64_t sleep_us = 1000;     // how long a sleeping loop may overlook a kill at most
constexpr std::uint64_t spins_a_look = 64;  // at the clock, while nothing comes

template <class Number>
void show(std::atomic<Number>& where, Number what) {
    where.store(what, std::memory_order_relaxed);
}

}  // namespace

// Memory for what one record can make leave: a fill, an order and a cancel a side, fair values, signals.
void Loop::make_room() {
    const size_t most = (4 + intents_per_contract) * states_.size() + 4 * Mailbox::room;
    if (left_.capacity() - left_.size() < most) left_.reserve(2 * left_.capacity() + most);
}

void Loop::process(const Record* records, size_t count, bool sweep) {
    if (has_rings()) throw HostProblem("process: this loop has rings; make one without for records in memory");
    const PlainArithmetic plain;
    laps_->time(false);
    for (size_t i = 0; i < count; ++i) {
        make_room();
        look_outside();
        handle(records[i]);
        if (sweep && !std::isnan(market_.spot)) sweep_slice();
    }
    make_room();
    look_outside();
    publish(monotonic_ns());
}

RunEnd Loop::run(RingReader& ticks, const RunSettings& run) {
    if (!has_rings()) throw HostProblem("run: this loop has no rings; give their paths");
    const PlainArithmetic plain;
    laps_->time(true);
    const std::uint64_t until = run.events ? counts_.events + run.events : 0;
    const std::uint64_t allocated = allocation_count();
    std::int64_t now = monotonic_ns(), last_record = now;
    std::uint64_t idle = 0;
    bool quiet = false;  // a record was awaited in vain
    show(board_->started_ns, now);
    show(board_->running, 1u);
    RunEnd end = RunEnd::stopped;
    Record record;
    std::uint64_t told = counts_.signals;
    const auto tell_all = [&] {
        told = counts_.signals;
        publish(now);
        publish_ring(ticks);
        show(board_->allocations, allocation_count() - allocated);
    };
    while (!board_->stop.load(std::memory_order_acquire)) {
        const bool came = quiet && run.sleep ? ticks.wait(record, sleep_us) : ticks.read(record);
        look_outside();  // after the read: a record written after a kill never comes before it
        if (came) {
            handle(record);
            idle = 0, quiet = false;
            // Of records: events don't count on within a picture, nor while other instruments' records alone come.
            if (counts_.records % publish_records == 0) now = monotonic_ns(), tell_all();
            if (until && counts_.events >= until) {
                end = RunEnd::events;
                break;
            }
            continue;
        }
        // No pause instruction here: it delays the next look by 50 ns, and virtual machines trap it.
        if (!run.sleep) stay_awake();
        const bool first_look = idle++ == 0, control_acted = counts_.signals != told;
        if (first_look || control_acted) now = monotonic_ns(), tell_all();
        if (first_look) last_record = now;
        if (sweep_when_due(now)) {
            now = monotonic_ns();
            if (!swept_) tell_all();  // the whole chain
            continue;
        }
        quiet = true;
        if (!run.sleep && idle % spins_a_look) continue;
        now = monotonic_ns();
        show_alive(now);
        if (run.idle_exit_ns && now - last_record >= run.idle_exit_ns) {
            end = RunEnd::idle;
            break;
        }
    }
    if (end == RunEnd::stopped) {
        act(ControlCode::cancel_all, 0);  // nothing of ours works while nobody watches
        show(board_->stop, 0u);           // after it: until then no reader is waited for
    }
    now = monotonic_ns();
    tell_all();
    show(board_->running, 0u);
    return end;
}

// Wide multipliers go to rest some microseconds after their last product and run slowly at first when they are woken
// (measured: docs/LOG.md, "Tails of the hot loop"): the first tick after a pause would pay for it.
void Loop::stay_awake() {
    dense_.dot(awake_.data(), awake_.data(), lanes);
}

// True if a slice was valued.
bool Loop::sweep_when_due(std::int64_t now) {
    if (std::isnan(market_.spot)) return false;
    if (!swept_) {
        const bool as_before = whole_sweep_began_ns_ && swept_event_ == counts_.events;
        if (as_before || (whole_sweep_began_ns_ && now - sweep_began_ns_ < settings_.sweep_every_ns)) return false;
        sweep_began_ns_ = now;
        swept_event_ = counts_.events;
    }
    const bool timed = laps_->timed();
    if (timed) stopwatch_.anchor();
    const std::int64_t before = timed ? stopwatch_.now() : 0;
    sweep_slice();
    if (timed) laps_->record(Hop::sweep, stopwatch_.now() - before);
    return true;
}

// The next contracts under the last context and spot. The quoted ones' values stand in `states_`: nothing here decides.
void Loop::sweep_slice() {
    const size_t first = swept_, count = std::min(settings_.sweep_contracts, contracts_.count() - first);
    contracts_.value(context_.data(), market_.spot, first, count);
    for (size_t i = first; i < first + count; ++i) {
        ChainLine& line = chain_[i];
        show(line.volatility, static_cast<double>(contracts_.volatility()[i]));
        show(line.fair, contracts_.price()[i]);
        show(line.delta, contracts_.delta()[i]);
        show(line.gamma, contracts_.gamma()[i]);
        show(line.vega, contracts_.vega()[i]);
        show(line.theta, contracts_.theta()[i]);
        show(line.spot, market_.spot);
        show(line.event_ns, market_.event_ns);
    }
    swept_ = first + count;
    if (swept_ < contracts_.count()) return;
    swept_ = 0;
    whole_sweep_began_ns_ = sweep_began_ns_;
    ++counts_.sweeps;
}

void Loop::begin_board() {
    show(board_->contracts, static_cast<std::uint32_t>(states_.size()));
    show(board_->chain, static_cast<std::uint32_t>(contracts_.count()));
    show(board_->process, static_cast<std::uint32_t>(::getpid()));
    publish(monotonic_ns());
    chain_header_->count.store(contracts_.count(), std::memory_order_relaxed);
    chain_header_->version.store(Board::layout, std::memory_order_release);
    board_->version.store(Board::layout, std::memory_order_release);
}

void Loop::publish_ring(const RingReader& ticks) {
    show(board_->lost, ticks.lost());
    show(board_->writers, ticks.writers());
}

void Loop::show_alive(std::int64_t now) {
    show(board_->alive_ns, now);
    show(board_->sweep_age_ns, whole_sweep_began_ns_ ? now - whole_sweep_began_ns_ : std::int64_t{-1});
}

void Loop::publish(std::int64_t now) {
    Board& board = *board_;
    show(board.records, counts_.records);
    show(board.events, counts_.events);
    show(board.trades, counts_.trades);
    show(board.orders, gate_.accepted());
    show(board.cancels, gate_.cancelled());
    show(board.fills, counts_.fills);
    show(board.signals, counts_.signals);
    show(board.skipped, counts_.skipped);
    show(board.unknown, counts_.unknown);
    show(board.time_went_back, counts_.time_went_back);
    show(board.refused_books, book_.refused());
    show(board.refused_numbers, features_.refused());
    show(board.gaps, counts_.gaps);
    show(board.advances, counts_.advances);
    show(board.sweeps, counts_.sweeps);
    show(board.controls, counts_.controls);
    show(board.controls_refused, counts_.controls_refused);
    show(board.unheard, intents_.beyond_room());
    show(board.event_ns, market_.event_ns);
    show_alive(now);
    show(board.spot, market_.spot);
    show(board.profit, gate_.profit());
    show(board.best_profit, gate_.best_profit());
    show(board.anomaly_score, market_.anomaly_score);
    show(board.clipped_share, market_.clipped_share);
    show(board.state, static_cast<std::uint32_t>(gate_.state()));
    show(board.why, static_cast<std::uint32_t>(gate_.why()));
    show(board.model_expired, std::uint32_t{market_.model_expired});
    std::uint64_t refused = 0;
    for (size_t reason = 0; reason < static_cast<size_t>(Reason::reason_count); ++reason) {
        const std::uint64_t count = gate_.refused(static_cast<Reason>(reason));
        show(board.refused_by[reason], count);
        refused += count;
    }
    show(board.refused, refused);
    double delta = 0, gamma = 0, vega = 0;
    const double multiplier = settings_.limits.multiplier;
    for (size_t i = 0; i < states_.size(); ++i) {
        const ContractState& state = states_[i];
        show(board.position[i], state.position);
        show(board.fair[i], state.fair);
        show(board.volatility[i], volatility_[i]);
        show(board.bid[i], state.buy.price);
        show(board.ask[i], state.sell.price);
        if (state.position == 0) continue;
        delta += state.position * state.delta * multiplier;
        gamma += state.position * state.gamma * multiplier;
        vega += state.position * state.vega * multiplier;
    }
    show(board.delta, delta);
    show(board.gamma, gamma);
    show(board.vega, vega);
}

}  // namespace strikeforge
