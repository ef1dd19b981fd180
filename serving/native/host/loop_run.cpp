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
void tell(std::atomic<Number>& where, Number what) {
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
    publish(Stopwatch::kernel_ns());
}

RunEnd Loop::run(RingReader& ticks, const RunSettings& run) {
    if (!has_rings()) throw HostProblem("run: this loop has no rings; give their paths");
    const PlainArithmetic plain;
    laps_->time(true);
    const std::uint64_t until = run.events ? counts_.events + run.events : 0;
    const std::uint64_t allocated = allocation_count();
    std::int64_t now = Stopwatch::kernel_ns(), last_record = now;
    std::uint64_t idle = 0;
    bool quiet = false;  // a record was awaited in vain
    tell(board_->started_ns, now);
    tell(board_->running, 1u);
    RunEnd end = RunEnd::stopped;
    Record record;
    const auto tell_all = [&] {
        publish(now);
        publish_ring(ticks);
        tell(board_->allocations, allocation_count() - allocated);
    };
    while (!board_->stop.load(std::memory_order_acquire)) {
        const bool came = quiet && run.sleep ? ticks.wait(record, sleep_us) : ticks.read(record);
        look_outside();  // after the read: a record written after a kill never comes before it
        if (came) {
            handle(record);
            idle = 0, quiet = false;
            if (counts_.events % publish_events == 0) now = Stopwatch::kernel_ns(), tell_all();
            if (until && counts_.events >= until) {
                end = RunEnd::events;
                break;
            }
            continue;
        }
        // No pause instruction here: it delays the next look by 50 ns, and virtual machines trap it.
        if (idle++ == 0) last_record = now = Stopwatch::kernel_ns(), tell_all();
        if (sweep_when_due(now)) {
            now = Stopwatch::kernel_ns();
            continue;
        }
        quiet = true;
        if (!run.sleep && idle % spins_a_look) continue;
        now = Stopwatch::kernel_ns();
        tell(board_->alive_ns, now);
        if (run.idle_exit_ns && now - last_record >= run.idle_exit_ns) {
            end = RunEnd::idle;
            break;
        }
    }
    if (end == RunEnd::stopped) act(ControlCode::cancel_all, 0);  // nothing of ours works while nobody watches
    now = Stopwatch::kernel_ns();
    tell_all();
    tell(board_->running, 0u);
    return end;
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
        tell(line.volatility, static_cast<double>(contracts_.volatility()[i]));
        tell(line.fair, contracts_.price()[i]);
        tell(line.delta, contracts_.delta()[i]);
        tell(line.gamma, contracts_.gamma()[i]);
        tell(line.vega, contracts_.vega()[i]);
        tell(line.theta, contracts_.theta()[i]);
        tell(line.spot, market_.spot);
        tell(line.event_ns, market_.event_ns);
    }
    swept_ = first + count;
    if (swept_ < contracts_.count()) return;
    swept_ = 0;
    whole_sweep_began_ns_ = sweep_began_ns_;
    ++counts_.sweeps;
}

void Loop::begin_board() {
    tell(board_->contracts, static_cast<std::uint32_t>(states_.size()));
    tell(board_->chain, static_cast<std::uint32_t>(contracts_.count()));
    tell(board_->process, static_cast<std::uint32_t>(::getpid()));
    publish(Stopwatch::kernel_ns());
    chain_header_->count.store(contracts_.count(), std::memory_order_relaxed);
    chain_header_->version.store(Board::layout, std::memory_order_release);
    board_->version.store(Board::layout, std::memory_order_release);
}

void Loop::publish_ring(const RingReader& ticks) {
    tell(board_->lost, ticks.lost());
    tell(board_->writers, ticks.writers());
}

void Loop::publish(std::int64_t now) {
    Board& board = *board_;
    tell(board.records, counts_.records);
    tell(board.events, counts_.events);
    tell(board.trades, counts_.trades);
    tell(board.orders, gate_.accepted());
    tell(board.cancels, gate_.cancelled());
    tell(board.fills, counts_.fills);
    tell(board.signals, counts_.signals);
    tell(board.skipped, counts_.skipped);
    tell(board.unknown, counts_.unknown);
    tell(board.time_went_back, counts_.time_went_back);
    tell(board.refused_books, book_.refused());
    tell(board.refused_numbers, features_.refused());
    tell(board.gaps, counts_.gaps);
    tell(board.advances, counts_.advances);
    tell(board.sweeps, counts_.sweeps);
    tell(board.controls, counts_.controls);
    tell(board.controls_refused, counts_.controls_refused);
    tell(board.unheard, intents_.beyond_room());
    tell(board.event_ns, market_.event_ns);
    tell(board.alive_ns, now);
    tell(board.sweep_age_ns, whole_sweep_began_ns_ ? now - whole_sweep_began_ns_ : std::int64_t{-1});
    tell(board.spot, market_.spot);
    tell(board.profit, gate_.profit());
    tell(board.best_profit, gate_.best_profit());
    tell(board.anomaly_score, market_.anomaly_score);
    tell(board.clipped_share, market_.clipped_share);
    tell(board.state, static_cast<std::uint32_t>(gate_.state()));
    tell(board.why, static_cast<std::uint32_t>(gate_.why()));
    tell(board.model_expired, std::uint32_t{market_.model_expired});
    std::uint64_t refused = 0;
    for (size_t reason = 0; reason < static_cast<size_t>(Reason::reason_count); ++reason) {
        const std::uint64_t count = gate_.refused(static_cast<Reason>(reason));
        tell(board.refused_by[reason], count);
        refused += count;
    }
    tell(board.refused, refused);
    double delta = 0, gamma = 0, vega = 0;
    const double multiplier = settings_.limits.multiplier;
    for (size_t i = 0; i < states_.size(); ++i) {
        const ContractState& state = states_[i];
        tell(board.position[i], state.position);
        tell(board.fair[i], state.fair);
        tell(board.volatility[i], volatility_[i]);
        tell(board.bid[i], state.buy.price);
        tell(board.ask[i], state.sell.price);
        if (state.position == 0) continue;
        delta += state.position * state.delta * multiplier;
        gamma += state.position * state.gamma * multiplier;
        vega += state.position * state.vega * multiplier;
    }
    tell(board.delta, delta);
    tell(board.gamma, gamma);
    tell(board.vega, vega);
}

}  // namespace strikeforge
