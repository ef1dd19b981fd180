// Lines into a ring: datagrams -> frames -> one stream -> records. One thread receives; another, which asks the
// recovery server, gets what is missing from `wait_request` and answers with `give` and `cannot`.
//
// A datagram that is no frame of ours is counted by what is wrong with it and forgotten. Nothing allocates while
// records flow (answers of the recovery server are as large as what was asked for).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "feed/arbiter.hpp"
#include "feed/datagrams.hpp"

namespace strikeforge {

struct ReceiverOptions {
    bool busy = false;       // spin; else sleep until something comes
    bool until_end = false;  // end with the session; else only by `stop`
};

const char* problem_name(FrameProblem problem);  // "" for none
std::map<std::string, std::uint64_t> named(const ArbiterCounts& counts);

class Receiver final : DatagramHandler {
  public:
    Receiver(std::unique_ptr<DatagramSource> source, const ArbiterOptions& arbiter, const ReceiverOptions& options);
    // Until `stop`, or the session's end if that was asked for.
    void run(RecordSink& sink);
    void stop();
    const std::atomic<bool>& stopped() const { return stop_; }

    // For the other thread. False: nothing within that time, or the receiver has ended.
    bool wait_request(MissingRange& out, std::int64_t timeout_us);
    void give(std::uint64_t session, std::uint64_t first, const Record* records, size_t count);
    void cannot(const MissingRange& range);
    bool running() const { return !done_.load(); }
    // By name; a hundredth of a second old while it runs.
    std::map<std::string, std::uint64_t> counts();

  private:
    struct Counts {
        ArbiterCounts stream;
        SourceCounts source;
        std::uint64_t problems[static_cast<size_t>(FrameProblem::problem_count)] = {};
        std::uint64_t frames = 0, future_session = 0, future_event = 0, unstamped = 0;
    };
    struct Answer {
        MissingRange range;
        bool has_records;
    };
    void on_datagram(const Datagram& datagram) override;
    bool is_of_future(const Record& record) const { return record.header.event_ns > latest_ns_; }
    void take_answers(std::int64_t now_ns);
    void publish();
    void compare_clocks();

    std::unique_ptr<DatagramSource> source_;
    ArbiterOptions arbiter_options_;
    ReceiverOptions options_;
    std::unique_ptr<Arbiter> arbiter_;
    std::atomic<bool> stop_{false}, done_{false}, answered_{false};
    std::int64_t real_to_monotonic_ns_ = 0, latest_ns_ = 0;
    Counts counts_;

    std::mutex mutex_;  // of all below
    std::condition_variable asked_;
    bool has_request_ = false;
    MissingRange request_{};
    std::vector<Answer> answers_, taken_answers_;
    std::vector<Record> answer_records_, taken_records_;
    Counts published_;
};

}  // namespace strikeforge
