#include "feed/arbiter.hpp"

#include <algorithm>
#include <stdexcept>

namespace strikeforge {

Arbiter::Arbiter(const ArbiterOptions& options, RecordSink& sink) : options_(options), sink_(sink) {
    const std::uint64_t capacity = options.capacity;
    if (capacity < 2 || (capacity & (capacity - 1)) != 0 || capacity > (std::uint64_t{1} << 24))
        throw std::invalid_argument("capacity must be a power of two from 2 to 2^24");
    if (options.reorder_records < 1 || options.reorder_records > capacity)
        throw std::invalid_argument("reorder_records must be from 1 to capacity");
    if (options.reorder_ns < 0 || options.recovery_ns < 0 || options.jump_records < 1 || options.jump_frames < 1)
        throw std::invalid_argument("times must not be negative, jump_records and jump_frames 1 or more");
    slots_.resize(capacity);
    there_.resize(capacity);
}

// Whether a frame is of the session that is followed; a newer one is followed from here on.
bool Arbiter::follows(const Frame& frame) {
    if (options_.session != 0 ? frame.session != options_.session : frame.session < session_) {
        ++counts_.old_session;
        return false;
    }
    if (frame.session == session_) return true;
    if (session_ != 0) give_up(known_);  // what the old one left behind
    const bool joins = session_ == 0;
    session_ = frame.session;
    ++counts_.sessions;
    if (joins)
        next_ = options_.first != 0 ? options_.first : frame.first;
    else  // the sender began anew, and so does its counting
        next_ = frame.first <= options_.jump_records ? 1 : frame.first;
    known_ = next_;
    end_ = gap_end_ = hole_ = far_next_ = 0;
    far_frames_ = 0;
    asked_ = false;
    for (Range& range : lost_) range = {};
    return true;
}

// A frame far ahead is a defect or an attack and would throw all between away; several in a row with records, that go
// on from one another, are a sender that we lost for long.
bool Arbiter::jumps(const Frame& frame) {
    const std::uint64_t end = frame.first + frame.count;
    if (frame.first <= std::max(known_, next_) + options_.jump_records) return false;
    if (frame.count != 0 && end != far_next_) {  // else it tells nothing, or is the other line's copy
        far_frames_ = frame.first == far_next_ ? far_frames_ + 1 : 1;
        far_next_ = end;
    }
    if (far_frames_ < options_.jump_frames) {
        ++counts_.jumped;
        return true;
    }
    far_frames_ = 0;
    known_ = frame.first;
    give_up(frame.first);
    return false;
}

void Arbiter::frame(const Frame& frame, std::int64_t arrival_ns, std::int64_t now_ns) {
    now_ns_ = now_ns;
    if (!follows(frame) || jumps(frame)) return;
    known_ = std::max(known_, frame.first);
    if (frame.ends) end_ = std::max(end_, frame.first);
    for (std::uint64_t number = frame.first; number < frame.first + frame.count; ++number) {
        if (number >= next_ + options_.capacity) give_up(number - options_.capacity + 1);
        if (!store(number, arrived(frame.record(number - frame.first), arrival_ns))) count_behind(number);
        known_ = std::max(known_, number + 1);
    }
    examine(false);
}

void Arbiter::recovered(std::uint64_t session, std::uint64_t number, const Record& record, std::int64_t now_ns) {
    now_ns_ = now_ns;
    if (session != session_ || number < next_ || number >= gap_end_ || number >= next_ + options_.capacity) return;
    if (store(number, arrived(record, now_ns))) ++counts_.recovered;
    examine(false);
}

void Arbiter::unavailable(const MissingRange& range, std::int64_t now_ns) {
    now_ns_ = now_ns;
    if (range.session != session_ || range.first > next_ || range.first + range.count <= next_) return;
    give_up(std::min(range.first + range.count, gap_end_));
    examine(false);
}

void Arbiter::tick(std::int64_t now_ns) {
    now_ns_ = now_ns;
    if (session_ != 0) examine(true);
}

void Arbiter::finish() {
    give_up(known_);
}

bool Arbiter::request(MissingRange& out) {
    if (!asked_) return false;
    asked_ = false;
    if (gap_end_ <= next_) return false;  // came meanwhile
    out = {session_, next_, std::min(gap_end_ - next_, options_.capacity)};
    return true;
}

// Takes a record unless its number left already or waits already.
bool Arbiter::store(std::uint64_t number, const Record& record) {
    const std::uint64_t slot = number & (options_.capacity - 1);
    if (number < next_ || there_[slot] != 0) return false;
    Record numbered;
    copy_record(numbered, record);
    set_sequence(numbered, static_cast<std::uint32_t>(number));
    if (number == next_) {
        deliver(numbered);
        drain();
    } else {
        slots_[slot] = numbered;
        there_[slot] = 1;
    }
    return true;
}

void Arbiter::deliver(const Record& record) {
    ++(sink_.take(record) ? counts_.delivered : counts_.untaken);
    ++next_;
}

void Arbiter::drain() {
    for (std::uint64_t slot = next_ & (options_.capacity - 1); there_[slot] != 0;
         slot = next_ & (options_.capacity - 1)) {
        there_[slot] = 0;
        deliver(slots_[slot]);
    }
}

// The stream goes on at `end` (at most known_): what is there until then leaves, what isn't is lost.
void Arbiter::give_up(std::uint64_t end) {
    while (next_ < end) {
        drain();
        if (next_ >= end) break;
        if (next_ >= gap_end_) declare();
        const std::uint64_t begin = next_;
        const std::uint64_t held_end = std::min(end, begin + options_.capacity);  // beyond, nothing is there
        while (next_ < held_end && there_[next_ & (options_.capacity - 1)] == 0) ++next_;
        if (next_ == begin + options_.capacity) next_ = end;
        counts_.lost += next_ - begin;
        Range& latest = lost_[lost_at_ % remembered];
        if (latest.end == begin)
            latest.end = next_;
        else
            lost_[++lost_at_ % remembered] = {begin, next_};
    }
    drain();
}

// The first number behind next_ that is there; where none is, that of what is known to come.
std::uint64_t Arbiter::hole_end() const {
    const std::uint64_t last = std::min(known_, next_ + options_.capacity);
    for (std::uint64_t number = next_; number < last; ++number)
        if (there_[number & (options_.capacity - 1)] != 0) return number;
    return known_;
}

void Arbiter::declare() {
    gap_end_ = hole_end();
    ++counts_.gaps;
    counts_.gap_records += gap_end_ - next_;
    deadline_ns_ = now_ns_ + options_.recovery_ns;
    asked_ = options_.recovery_ns > 0;
}

// Declares a hole whose time has come, and gives up one whose recovery took too long.
void Arbiter::examine(bool timed) {
    while (next_ < known_) {
        if (next_ >= gap_end_) {
            if (hole_ != next_) {
                hole_ = next_;
                hole_since_ns_ = now_ns_;
            }
            const bool overdue = timed && now_ns_ - hole_since_ns_ >= options_.reorder_ns;
            if (known_ - next_ <= options_.reorder_records && !overdue) return;
            declare();
        }
        if (options_.recovery_ns > 0 && !(timed && now_ns_ >= deadline_ns_)) return;
        give_up(gap_end_);
    }
}

void Arbiter::count_behind(std::uint64_t number) {
    if (number < next_)
        for (const Range& range : lost_)
            if (number >= range.first && number < range.end) {
                ++counts_.late;
                return;
            }
    ++counts_.duplicates;
}

}  // namespace strikeforge
