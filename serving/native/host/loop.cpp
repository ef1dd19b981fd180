// One event, in the eight steps of docs/host-rules.md, and what is told of it.
#include "host/loop.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "host/loop_parts.hpp"

namespace strikeforge {

namespace {

constexpr double most_counted = 0x1p53;  // whole numbers below are doubles
constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

LoopSettings checked(LoopSettings settings, const NativeEngine& engine) {
    if (settings.quoted < 1 || settings.quoted > Board::most_contracts || settings.quoted > settings.contracts.count)
        throw HostProblem("quoted contracts: found " + std::to_string(settings.quoted) + ", expected 1 to " +
                          std::to_string(std::min(Board::most_contracts, settings.contracts.count)));
    if (settings.step_scaler.known() != TickFeatures::count)
        throw HostProblem("step scaler: found " + std::to_string(settings.step_scaler.known()) +
                          " known columns, expected " + std::to_string(TickFeatures::count));
    if (settings.step_scaler.padded() != engine.step_features())
        throw HostProblem("step scaler: pads to " + std::to_string(settings.step_scaler.padded()) +
                          " columns, the engine takes " + std::to_string(engine.step_features()));
    if (settings.sweep_contracts < 1) throw HostProblem("sweep_contracts must be at least 1");
    return settings;
}

}  // namespace

Loop::Loop(NativeEngine& engine, const OptionKernels& kernels, const DenseKernels& dense,
           std::unique_ptr<Strategy> strategy, const LoopSettings& given)
    : settings_(checked(given, engine)),
      engine_(engine),
      contracts_(given.contracts, given.contract_scaler, given.reference_spot, engine, kernels),
      features_(given.step_ns),
      x_(engine.step_features()),
      context_(engine.context_size()),
      states_(given.quoted, ContractState{}),
      volatility_(given.quoted, unknown),
      strategy_(std::move(strategy)),
      intents_(intents_per_contract * given.quoted),
      board_page_(given.board, sizeof(Board)),
      chain_page_(given.chain, sizeof(ChainHeader) + given.contracts.count * sizeof(ChainLine)),
      board_(new (board_page_.data()) Board{}),
      chain_header_(new (chain_page_.data()) ChainHeader{}),
      chain_(new (chain_page_.data() + sizeof(ChainHeader)) ChainLine[given.contracts.count]{}),
      sink_(std::make_unique<Sink>(*this, given.rings)),
      gate_(given.limits, given.quoted, *sink_, &board_->kill),
      laps_(std::make_unique<Laps>(stopwatch_, *board_)),
      dense_(dense) {
    market_.spot = unknown;
    forget_values();
    if (!given.rings.orders.empty()) {
        fills_ = std::make_unique<RingWriter>(given.rings.fills, given.rings.capacity, given.rings.lossless);
        signals_ = std::make_unique<RingWriter>(given.rings.signals, given.rings.capacity, given.rings.lossless);
        for (RingWriter* ring : {fills_.get(), signals_.get()}) ring->give_up_on(board_->stop);
        fills_written_ = fills_->written();
        signals_written_ = signals_->written();
    }
    settings_.contracts = {};  // the caller's arrays, copied by now
    settings_.contract_scaler = {};
    warm_up();
    begin_board();
}

Loop::~Loop() {
    board_->running.store(0, std::memory_order_relaxed);
}

// What the first call of anything costs is paid here: pages, lazily bound functions, tables. Nothing of it stays.
void Loop::warm_up() {
    const PlainArithmetic plain;
    for (int i = 0; i < 3; ++i) {
        engine_.evaluate(x_.data(), context_.data());
        contracts_.value(context_.data(), settings_.reference_spot, 0, contracts_.count());
        engine_.advance(x_.data());
    }
    engine_.reset();
}

void Loop::handle(const Record& record) {
    ++counts_.records;
    if (record.header.kind == Kind::control) {
        const double* value = record.control.value;
        const auto code = static_cast<ControlCode>(record.header.flags);
        // Not a count that can still be reached: it kills now, like any other.
        if (code == ControlCode::kill && value[3] > static_cast<double>(asked_) && value[3] < most_counted)
            kill_before_ = static_cast<std::uint64_t>(value[3]), replayed_kill_ = value[0];
        else
            act(code, value[0]);
        return;
    }
    ++counts_.market_records;
    counts_.gaps += book_.follow(record.header.sequence);
    if (record.header.instrument != 0) {
        ++counts_.skipped;
        return;
    }
    if (Book::ends_event(record))
        event(record);
    else if (record.header.kind == Kind::level)
        book_.apply(record, market_.event_ns);
    else
        ++counts_.unknown;
}

void Loop::event(const Record& record) {
    const Kind kind = record.header.kind;
    laps_->begin(record.trade.arrival_ns);
    ++counts_.events;
    if (record.header.event_ns < market_.event_ns) ++counts_.time_went_back;
    market_.event_ns = std::max(market_.event_ns, record.header.event_ns);
    market_.arrival_ns = record.trade.arrival_ns;  // at the same place in every kind
    close_step();
    if (kind != Kind::heartbeat) {
        book_.apply(record, market_.event_ns);
        market_.book_changed_ns = book_.changed_ns();
        if (kind == Kind::trade) fill(record.trade);
        laps_->lap(Hop::book);
        features_.take(record, book_);
        value_quoted();
    }
    decide();
    if (settings_.fair_values_every_ns) tell_fair_values();
    laps_->done(sink_->took_ns(), sink_->last_ns());
}

void Loop::close_step() {
    if (!features_.close_before(market_.event_ns, row_)) return;
    settings_.step_scaler.scale(row_, x_.data());
    engine_.advance(x_.data());
    ++counts_.advances;
    laps_->lap(Hop::advance);
}

// Every quoted contract prints where a trade of the underlying moves it, from the values of the event before.
void Loop::fill(const Trade& trade) {
    ++counts_.trades;
    if (!(std::isfinite(trade.price) && trade.price > 0 && std::isfinite(trade.size) && trade.size > 0)) return;
    const double d = trade.price - market_.spot;
    for (size_t i = 0; i < states_.size(); ++i) {
        const ContractState& state = states_[i];
        const double print = state.fair + state.delta * d + 0.5 * state.gamma * d * d;
        if (state.buy.id && state.buy.price > print) fill_side(i, true, trade.price);
        if (state.sell.id && state.sell.price < print) fill_side(i, false, trade.price);
    }
}

void Loop::fill_side(size_t contract, bool buy, double underlying) {
    ContractState& state = states_[contract];
    ContractState::Working& order = buy ? state.buy : state.sell;
    const double money = order.price * order.quantity * settings_.limits.multiplier;
    state.position += buy ? order.quantity : -order.quantity;
    state.cash += buy ? -money : money;
    Record record;
    set_header(record, market_.event_ns, static_cast<std::uint32_t>(++fills_written_),
               static_cast<std::uint16_t>(contract + 1), Kind::fill, buy ? is_buy : std::uint8_t{0});
    record.fill.order_id = order.id;
    record.fill.price = order.price;
    record.fill.quantity = order.quantity;
    record.fill.underlying = underlying;
    record.fill.arrival_ns = market_.arrival_ns;
    order = {};
    leave(record, fills_.get());
    strategy_->on_fill(record.fill);
}

void Loop::forget_values() {
    for (ContractState& state : states_) state.fair = state.delta = state.gamma = state.vega = unknown;
    std::fill(volatility_.begin(), volatility_.end(), unknown);
}

void Loop::value_quoted() {
    if (!book_.usable()) {
        market_.spot = unknown;
        forget_values();
        laps_->lap(Hop::features);
        return;
    }
    market_.spot = book_.mid();
    features_.row(row_);
    market_.clipped_share = settings_.step_scaler.scale(row_, x_.data());
    laps_->lap(Hop::features);
    engine_.evaluate(x_.data(), context_.data());
    laps_->lap(Hop::evaluate);
    contracts_.value(context_.data(), market_.spot, 0, states_.size());
    for (size_t i = 0; i < states_.size(); ++i) {
        ContractState& state = states_[i];
        state.fair = contracts_.price()[i];
        state.delta = contracts_.delta()[i];
        state.gamma = contracts_.gamma()[i];
        state.vega = contracts_.vega()[i];
        volatility_[i] = contracts_.volatility()[i];
    }
    laps_->lap(Hop::reprice);
}

// Steps 7 and 8.
void Loop::decide() {
    sink_->begin(laps_->timed());
    gate_.on_market(market_, states_);
    tell_state();
    if (gate_.state() != State::halted) {
        intents_.clear();
        strategy_->on_event(market_, book_, states_, intents_);
        for (const Intent& intent : intents_) submit(intent);
        tell_state();
    }
    kill_before_ = 0;
    laps_->lap(Hop::decide);
}

// The gate itself looks at the kill switch. Where that was what halted it, between two orders of one event, it is told
// so that a replay can do the same.
void Loop::submit(const Intent& intent) {
    ++asked_;
    const bool replayed = asked_ == kill_before_;
    if (replayed) board_->kill.store(static_cast<std::uint32_t>(KillSource::asked), std::memory_order_relaxed);
    const bool halted = gate_.state() == State::halted;
    if (gate_.submit(intent, market_, states_) != Reason::none) strategy_->on_refused(intent, market_);
    if (halted || gate_.state() != State::halted || gate_.why() != Reason::kill_switch) return;
    const std::uint32_t asked_by = board_->kill.exchange(0, std::memory_order_acq_rel);
    const double source = replayed ? replayed_kill_ : asked_by;
    killed_within_event_ = true;
    ++counts_.controls;
    tell(SignalCode::control_acted, 0, static_cast<double>(ControlCode::kill), source,
         static_cast<double>(counts_.market_records - 1), static_cast<double>(asked_));
}

void Loop::tell_state() {
    if (gate_.state() == told_state_ && gate_.why() == told_why_) return;
    told_state_ = gate_.state();
    told_why_ = gate_.why();
    tell(SignalCode::state, 0, static_cast<double>(told_state_), static_cast<double>(told_why_), gate_.profit(), 0);
}

void Loop::tell_fair_values() {
    if (std::isnan(market_.spot) || market_.event_ns < fair_values_ns_) return;
    if (__builtin_add_overflow(market_.event_ns, settings_.fair_values_every_ns, &fair_values_ns_))
        fair_values_ns_ = std::numeric_limits<std::int64_t>::max();
    for (size_t i = 0; i < states_.size(); ++i)
        tell(SignalCode::fair_values, i + 1, states_[i].fair, states_[i].delta, volatility_[i], market_.spot);
}

void Loop::tell(SignalCode code, size_t instrument, double a, double b, double c, double d) {
    Record record;
    set_header(record, market_.event_ns, static_cast<std::uint32_t>(++signals_written_),
               static_cast<std::uint16_t>(instrument), Kind::signal, static_cast<std::uint8_t>(code));
    record.signal.value[0] = a;
    record.signal.value[1] = b;
    record.signal.value[2] = c;
    record.signal.value[3] = d;
    record.signal.arrival_ns = market_.arrival_ns;
    leave(record, signals_.get());
}

void Loop::leave(const Record& record, RingWriter* ring) {
    if (record.header.kind == Kind::fill)
        ++counts_.fills;
    else
        ++counts_.signals;
    if (ring)
        ring->write(record);
    else
        left_.push_back(record);
}

}  // namespace strikeforge
