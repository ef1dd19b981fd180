// What operators ask, from other threads and through the board, and how it acts between two records.
#include "host/loop_parts.hpp"

namespace strikeforge {

bool Loop::ask(ControlCode code, double value) {
    if (code == ControlCode::kill) {  // what needs no place in a queue
        board_->kill.store(static_cast<std::uint32_t>(KillSource::asked), std::memory_order_release);
        return true;
    }
    return mailbox_.put({code, value});
}

bool Loop::ask_limits(const Limits& limits, double serial) {
    check_limits(limits);
    if (limits.multiplier != settings_.limits.multiplier || limits.tick_money != settings_.limits.tick_money)
        throw HostProblem("multiplier and tick_money are the contracts' own terms: they change with a restart only");
    Slot expected = Slot::free;
    if (!next_limits_slot_.compare_exchange_strong(expected, Slot::being_written, std::memory_order_acquire))
        return false;
    next_limits_ = limits;
    next_serial_ = serial;
    next_limits_slot_.store(Slot::full, std::memory_order_release);
    return true;
}

// Before every record: what was asked from outside.
void Loop::look_outside() {
    if (killed_within_event_) {
        killed_within_event_ = false;
        discard_resumes();
    }
    if (board_->kill.load(std::memory_order_acquire)) {
        const double source = board_->kill.exchange(0, std::memory_order_acq_rel);
        discard_resumes();
        act(ControlCode::kill, source);
    }
    Asked asked;
    while (mailbox_.take(asked)) act(asked.code, asked.value);
    if (next_limits_slot_.load(std::memory_order_acquire) == Slot::full) take_limits();
}

void Loop::take_limits() {
    gate_.set_limits(next_limits_);
    const double serial = next_serial_;
    next_limits_slot_.store(Slot::free, std::memory_order_release);
    gate_.withdraw(market_, states_, true);
    tell_acted(ControlCode::limits, serial);
}

// A kill wins over a resume that was asked before the kill was seen: which of the two came first isn't known.
void Loop::discard_resumes() {
    Asked asked;
    while (mailbox_.take(asked)) {
        if (asked.code == ControlCode::resume)
            refuse(asked.code, asked.value);
        else
            act(asked.code, asked.value);
    }
}

void Loop::refuse(ControlCode code, double value) {
    ++counts_.controls_refused;
    tell(SignalCode::control_refused, 0, static_cast<double>(code), value, static_cast<double>(counts_.market_records),
         0);
}

void Loop::act(ControlCode code, double value) {
    switch (code) {
        case ControlCode::kill:
            gate_.halt(Reason::kill_switch, market_, states_);
            break;
        case ControlCode::reduce:
            gate_.reduce(Reason::operator_asked);
            break;
        case ControlCode::resume:
            if (board_->halt_file.load(std::memory_order_acquire)) return refuse(code, value);
            gate_.resume();
            break;
        case ControlCode::anomaly_score:
            market_.anomaly_score = value;
            break;
        case ControlCode::model_expired:
            market_.model_expired = value != 0;
            break;
        case ControlCode::cancel_all:
            gate_.cancel_all(market_, states_);
            break;
        default:
            return refuse(code, value);
    }
    gate_.withdraw(market_, states_);
    tell_acted(code, value);
}

void Loop::tell_acted(ControlCode code, double value) {
    ++counts_.controls;
    tell(SignalCode::control_acted, 0, static_cast<double>(code), value, static_cast<double>(counts_.market_records),
         0);
    tell_state();
}

}  // namespace strikeforge
