#include "feed/pacer.hpp"

#include <algorithm>
#include <cmath>

#include "feed/clock.hpp"

namespace strikeforge {

namespace {

// Of a pace so slow that its times leave 64 bits all arrivals are the latest there is: in 146 years.
constexpr std::int64_t latest_arrival_ns = std::int64_t{1} << 62;

std::int64_t whole_ns(double ns) {
    return ns < static_cast<double>(latest_arrival_ns) ? static_cast<std::int64_t>(std::floor(ns)) : latest_arrival_ns;
}

}  // namespace

std::int64_t Schedule::next(std::int64_t event_ns) {
    if (events_++ == 0) first_ns_ = latest_ns_ = event_ns;
    latest_ns_ = std::max(latest_ns_, event_ns);
    if (pace_.kind == PaceKind::fixed) return whole_ns(static_cast<double>(events_ - 1) * 1e9 / pace_.value);
    const std::int64_t elapsed = latest_ns_ - first_ns_;
    if (pace_.value == 1) return elapsed;
    return whole_ns(static_cast<double>(elapsed) / pace_.value);
}

Pacer::Result Pacer::run(const Record* records, size_t count, const Pace& pace, std::int64_t start_ns, bool busy,
                         RecordSink& sink) {
    Schedule schedule(pace);
    Result result{0, 0, start_ns, 0};
    std::int64_t arrival_ns = start_ns;
    for (size_t at = 0; at < count; ++at) {
        if (at == 0 || begins_event(records[at].header)) {
            if (pace.kind != PaceKind::full) arrival_ns = start_ns + schedule.next(records[at].header.event_ns);
            if (!wait_until(pace.kind == PaceKind::full ? start_ns : arrival_ns, busy, stop_)) break;
            const std::int64_t now_ns = monotonic_ns();
            if (pace.kind == PaceKind::full) arrival_ns = now_ns;
            if (result.events++ == 0) result.start_ns = arrival_ns;
            result.latest_ns = std::max(result.latest_ns, now_ns - arrival_ns);
        }
        if (!sink.take(arrived(records[at], arrival_ns))) break;
        ++result.records;
    }
    return result;
}

}  // namespace strikeforge
