// What the loop is made of that nobody else needs: where orders leave, and how the hops of an event are timed.
#pragma once

#include <cfenv>

#include "host/loop.hpp"

namespace strikeforge {

// Arithmetic as IEEE 754 has it (nearest, subnormals kept), whatever another library left set on this thread: the same
// records must give the same orders in every process.
class PlainArithmetic {
  public:
    PlainArithmetic() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~PlainArithmetic() { std::fesetenv(&before_); }
    PlainArithmetic(const PlainArithmetic&) = delete;
    PlainArithmetic& operator=(const PlainArithmetic&) = delete;

  private:
    std::fenv_t before_;
};

// The order ring, or for `process` the memory in which fills and signals are kept too, in the order of leaving.
class Loop::Sink final : public OrderSink {
  public:
    Sink(Loop& loop, const RingPaths& rings) : loop_(loop) {
        if (rings.orders.empty()) return;
        ring_ = std::make_unique<RingOrderSink>(rings.orders, rings.capacity, rings.lossless);
        ring_->give_up_on(loop.board_->stop);  // else a reader that stands still holds what must end
    }
    std::uint64_t written() const override { return ring_ ? ring_->written() : 0; }
    void leave(const ClearedOrder& order) override {
        if (!ring_) {
            loop_.left_.push_back(order.record());
            return;
        }
        const std::int64_t before = timed_ ? loop_.stopwatch_.now() : 0;
        ring_->leave(order);
        if (!timed_) return;
        last_ns_ = loop_.stopwatch_.now();
        took_ns_ += last_ns_ - before;
    }
    // Of one event: monotonic time after its last order, 0 if it sent none, and what all its writes took.
    void begin(bool timed) {
        timed_ = timed;
        last_ns_ = took_ns_ = 0;
    }
    std::int64_t last_ns() const { return last_ns_; }
    std::int64_t took_ns() const { return took_ns_; }

  private:
    Loop& loop_;
    std::unique_ptr<RingOrderSink> ring_;
    bool timed_ = false;
    std::int64_t last_ns_ = 0, took_ns_ = 0;
};

// Times of one event, put into the histograms when it is over.
class Loop::Laps {
  public:
    Laps(Stopwatch& stopwatch, Board& board) : stopwatch_(stopwatch), board_(board) {}
    void time(bool on) { on_ = on; }
    bool timed() const { return on_; }
    void begin(std::int64_t arrival_ns) {
        if (!on_) return;
        arrival_ns_ = arrival_ns;
        began_ns_ = last_ns_ = stopwatch_.anchor();
        count_ = 0;
    }
    void lap(Hop hop) {
        if (!on_) return;
        const std::int64_t now = stopwatch_.now();
        laps_[count_++] = {hop, now - last_ns_};
        last_ns_ = now;
    }
    // `writing_ns`: the share of `decide` that the order ring's writes took; `sent_ns`: after the last; 0: none.
    void done(std::int64_t writing_ns, std::int64_t sent_ns) {
        if (!on_) return;
        const std::int64_t now = stopwatch_.now();
        for (size_t i = 0; i < count_; ++i) {
            const bool decided = laps_[i].hop == Hop::decide;
            record(laps_[i].hop, laps_[i].took_ns - (decided ? writing_ns : 0));
        }
        if (sent_ns) record(Hop::order, writing_ns);
        if (!arrival_ns_) return;
        record(Hop::queue, began_ns_ - arrival_ns_);
        if (sent_ns) record(Hop::tick_to_order, sent_ns - arrival_ns_);
        record(Hop::tick_to_done, now - arrival_ns_);
    }
    void record(Hop hop, std::int64_t took_ns) { board_.hop[static_cast<size_t>(hop)].record(took_ns); }

  private:
    struct Lap {
        Hop hop;
        std::int64_t took_ns;
    };
    Stopwatch& stopwatch_;
    Board& board_;
    bool on_ = false;
    std::int64_t arrival_ns_ = 0, began_ns_ = 0, last_ns_ = 0;
    size_t count_ = 0;
    Lap laps_[hops];
};

}  // namespace strikeforge
