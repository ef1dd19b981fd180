#include "feed/receiver.hpp"

#include <algorithm>
#include <chrono>

#include "feed/clock.hpp"

namespace strikeforge {

namespace {

constexpr std::int64_t publish_every_ns = 10'000'000, sleep_us = 500;
constexpr std::int64_t close_readings_ns = 2'000;
constexpr std::int64_t oldest_stamp_ns = 60'000'000'000;  // older: the wall clock was set
constexpr std::int64_t ahead_ns = 60'000'000'000;         // a sender whose clock is further ahead isn't believed
constexpr const char* problem_names[] = {
    "", "too_short", "wrong_magic", "wrong_version", "wrong_length", "wrong_number", "wrong_kind"};

}  // namespace

const char* problem_name(FrameProblem problem) {
    return problem_names[static_cast<size_t>(problem)];
}

std::map<std::string, std::uint64_t> named(const ArbiterCounts& counts) {
    return {{"records", counts.delivered}, {"duplicates", counts.duplicates},   {"late", counts.late},
            {"gaps", counts.gaps},         {"gap_records", counts.gap_records}, {"recovered", counts.recovered},
            {"lost", counts.lost},         {"untaken", counts.untaken},         {"sessions", counts.sessions},
            {"jumped", counts.jumped},     {"old_session", counts.old_session}};
}

Receiver::Receiver(std::unique_ptr<DatagramSource> source, const ArbiterOptions& arbiter,
                   const ReceiverOptions& options)
    : source_(std::move(source)), arbiter_options_(arbiter), options_(options) {}

void Receiver::run(RecordSink& sink) {
    arbiter_ = std::make_unique<Arbiter>(arbiter_options_, sink);
    std::int64_t published_ns = 0;
    while (!stop_.load(std::memory_order_relaxed) && !(options_.until_end && arbiter_->ended())) {
        compare_clocks();
        const DatagramSource::Received got = source_->receive(*this);
        const std::int64_t now_ns = monotonic_ns();
        if (answered_.load(std::memory_order_acquire)) take_answers(now_ns);
        if (got.all) arbiter_->tick(now_ns);
        MissingRange missing;
        if (arbiter_->request(missing)) {
            const std::lock_guard lock(mutex_);
            request_ = missing;
            has_request_ = true;
            asked_.notify_one();
        }
        if (now_ns - published_ns >= publish_every_ns) {
            publish();
            published_ns = now_ns;
        }
        if (got.datagrams == 0) {
            if (options_.busy)
                relax();
            else
                source_->wait(sleep_us);
        }
    }
    arbiter_->finish();
    publish();
    done_.store(true);
    const std::lock_guard lock(mutex_);
    asked_.notify_all();
}

// Both clocks are read anew for each batch, since the wall clock may be set; readings that something came between tell
// nothing.
void Receiver::compare_clocks() {
    for (int tries = 0; tries < 4; ++tries) {
        const std::int64_t before_ns = monotonic_ns();
        const std::int64_t real_ns = clock_ns(CLOCK_REALTIME);
        const std::int64_t after_ns = monotonic_ns();
        if (after_ns - before_ns > close_readings_ns && tries < 3) continue;
        real_to_monotonic_ns_ = before_ns - real_ns;
        latest_ns_ = real_ns + ahead_ns;
        return;
    }
}

void Receiver::stop() {
    stop_.store(true);
}

void Receiver::on_datagram(const Datagram& datagram) {
    Frame frame;
    const FrameProblem problem = parse_frame(datagram.data, datagram.bytes, frame);
    if (problem != FrameProblem::none) {
        ++counts_.problems[static_cast<size_t>(problem)];
        return;
    }
    if (frame.session > static_cast<std::uint64_t>(latest_ns_) && frame.session != arbiter_options_.session) {
        ++counts_.future_session;  // would lock the real sender out as the older one
        return;
    }
    for (size_t at = 0; at < frame.count; ++at)
        if (is_of_future(frame.record(at))) {
            ++counts_.future_event;  // event time never goes back: with it no book would ever be stale again
            return;
        }
    ++counts_.frames;
    const std::int64_t now_ns = monotonic_ns();
    std::int64_t arrival_ns = datagram.stamp_ns + real_to_monotonic_ns_;
    if (datagram.stamp_ns == 0 || arrival_ns > now_ns || arrival_ns < now_ns - oldest_stamp_ns) {
        ++counts_.unstamped;
        arrival_ns = now_ns;
    }
    arbiter_->frame(frame, arrival_ns, now_ns);
}

void Receiver::take_answers(std::int64_t now_ns) {
    {
        const std::lock_guard lock(mutex_);
        answers_.swap(taken_answers_);
        answer_records_.swap(taken_records_);
        answered_.store(false, std::memory_order_relaxed);
    }
    size_t at = 0;
    for (const Answer& answer : taken_answers_) {
        if (!answer.has_records) {
            arbiter_->unavailable(answer.range, now_ns);
            continue;
        }
        for (std::uint64_t number = answer.range.first; number < answer.range.first + answer.range.count; ++number) {
            const Record& record = taken_records_[at++];
            if (is_of_future(record)) {
                ++counts_.future_event;
                arbiter_->unavailable({answer.range.session, number, 1}, now_ns);
            } else {
                arbiter_->recovered(answer.range.session, number, record, now_ns);
            }
        }
    }
    taken_answers_.clear();
    taken_records_.clear();
}

bool Receiver::wait_request(MissingRange& out, std::int64_t timeout_us) {
    std::unique_lock lock(mutex_);
    asked_.wait_for(lock, std::chrono::microseconds(timeout_us), [&] { return has_request_ || done_.load(); });
    if (!has_request_) return false;
    has_request_ = false;
    out = request_;
    return true;
}

void Receiver::give(std::uint64_t session, std::uint64_t first, const Record* records, size_t count) {
    const bool fine =
        std::all_of(records, records + count, [](const Record& one) { return is_market_data(one.header.kind); });
    if (!fine) return cannot({session, first, count});  // a server that sends what can't be is one that has nothing
    const std::lock_guard lock(mutex_);
    answers_.push_back({{session, first, count}, true});
    answer_records_.insert(answer_records_.end(), records, records + count);
    answered_.store(true, std::memory_order_release);
}

void Receiver::cannot(const MissingRange& range) {
    const std::lock_guard lock(mutex_);
    answers_.push_back({range, false});
    answered_.store(true, std::memory_order_release);
}

void Receiver::publish() {
    counts_.stream = arbiter_->counts();
    counts_.source = source_->counts();
    const std::lock_guard lock(mutex_);
    published_ = counts_;
}

std::map<std::string, std::uint64_t> Receiver::counts() {
    Counts counts;
    {
        const std::lock_guard lock(mutex_);
        counts = published_;
    }
    std::map<std::string, std::uint64_t> out = named(counts.stream);
    out["frames"] = counts.frames;
    out["future_session"] = counts.future_session;
    out["future_event"] = counts.future_event;
    out["unstamped"] = counts.unstamped;
    out["datagrams"] = counts.source.datagrams;
    out["too_long"] = counts.source.too_long;
    out["foreign"] = counts.source.foreign;
    out["kernel_dropped"] = counts.source.kernel_dropped;
    for (size_t at = 1; at < std::size(problem_names); ++at) out[problem_names[at]] = counts.problems[at];
    return out;
}

}  // namespace strikeforge
