// Two redundant lines to one stream: by number, the first copy wins; holes are waited for, recovered, or told.
//
// Numbers leave in ascending order, each at most once. A hole is *declared* (a gap) when a number `reorder_records` or
// more beyond it is known, or `reorder_ns` after something beyond it came: by then neither line brings it. With
// recovery the hole is asked for once and the stream waits until `recovery_ns` later; what doesn't come by then, what
// the server no longer has, and what `capacity` held records can't wait for, is lost: the stream goes on behind it, and
// the hole in `sequence` tells the ring's readers. Nothing allocates after the constructor, whatever arrives.
#pragma once

#include <cstdint>
#include <vector>

#include "feed/frame.hpp"

namespace strikeforge {

struct ArbiterOptions {
    std::uint64_t capacity = 1 << 16;  // records held at most behind a hole; a power of two
    std::uint64_t reorder_records = 8192;
    std::int64_t reorder_ns = 2'000'000;
    std::int64_t recovery_ns = 0;          // 0: nobody to ask
    std::uint64_t jump_records = 1 << 20;  // a frame that far ahead is a defect, unless
    std::uint32_t jump_frames = 8;         // so many in a row go on from one another
    std::uint64_t session = 0;             // only this one; 0: the first heard, then newer ones
    std::uint64_t first = 0;               // where to begin; 0: with the first frame heard
};

struct ArbiterCounts {
    std::uint64_t delivered = 0, duplicates = 0;  // records; a duplicate: a number that had been taken already
    std::uint64_t late = 0;                       // records that came after they were given up
    std::uint64_t gaps = 0, gap_records = 0;      // holes declared, and how many numbers they had then
    std::uint64_t recovered = 0, lost = 0;        // records
    std::uint64_t untaken = 0;                    // records that the sink refused: the feed was being stopped
    std::uint64_t sessions = 0;                   // how many were followed
    std::uint64_t old_session = 0, jumped = 0;    // frames that were ignored
};

struct MissingRange {
    std::uint64_t session, first, count;
};

class Arbiter {
  public:
    Arbiter(const ArbiterOptions& options, RecordSink& sink);
    // What a line brought; `arrival_ns` goes into its records, `now_ns` >= it is the time of waiting.
    void frame(const Frame& frame, std::int64_t arrival_ns, std::int64_t now_ns);
    // Answers of the recovery server: records, and what it no longer has. Anything not asked for is ignored.
    void recovered(std::uint64_t session, std::uint64_t number, const Record& record, std::int64_t now_ns);
    void unavailable(const MissingRange& range, std::int64_t now_ns);
    // What waited long enough: only here time counts, so that a reader who was away for a while first takes what lies
    // ready on the other line. Call it when nothing does.
    void tick(std::int64_t now_ns);
    bool request(MissingRange& out);                           // what to ask for, once for each gap
    void finish();                                             // gives up what is still waited for
    bool ended() const { return end_ != 0 && next_ >= end_; }  // the session was ended and all of it left or lost
    std::uint64_t next() const { return next_; }
    const ArbiterCounts& counts() const { return counts_; }

  private:
    bool follows(const Frame& frame);
    bool jumps(const Frame& frame);
    bool store(std::uint64_t number, const Record& record);
    void deliver(const Record& record);
    void drain();
    void give_up(std::uint64_t end);
    void declare();
    void examine(bool timed);
    std::uint64_t hole_end() const;
    void count_behind(std::uint64_t number);

    struct Range {
        std::uint64_t first, end;
    };
    static constexpr size_t remembered = 64;  // lost ranges, to tell late records from duplicates

    ArbiterOptions options_;
    RecordSink& sink_;
    ArbiterCounts counts_;
    std::vector<Record> slots_;
    std::vector<std::uint8_t> there_;
    std::uint64_t session_ = 0, next_ = 0, known_ = 0, end_ = 0;  // next to leave; behind the last number known of
    std::uint64_t gap_end_ = 0;  // of the declared hole, which begins at next_; 0: none
    std::uint64_t hole_ = 0;     // where the stream stands waiting, since
    std::int64_t hole_since_ns_ = 0, deadline_ns_ = 0, now_ns_ = 0;
    bool asked_ = false;
    std::uint64_t far_next_ = 0;
    std::uint32_t far_frames_ = 0;
    Range lost_[remembered] = {};
    size_t lost_at_ = 0;
};

}  // namespace strikeforge
