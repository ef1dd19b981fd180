// What everybody may look at while the loop runs: two files in shared memory, mapped by whoever wants to know.
//
// The board: plain numbers written by the loop alone, each atomically; a reader may see two of them from different
// events. The chain: a line for each contract, as last swept. Both are published while no record waits, or every
// `Loop::publish_records`; nothing is ever read back from them but what stands under "Asked". Layout for
// Python: `board_layout` (bindings/bind_board.cpp, serving/host/board.py).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "host/histogram.hpp"
#include "host/risk.hpp"
#include "transport/shared_memory.hpp"

namespace strikeforge {

// The hops that are timed: from the one before (queue: from scheduled arrival) to its own end.
enum class Hop : std::uint8_t {
    queue,          // arrival -> read
    book,           // with the fills that a trade makes
    features,       // with the scaling of the open step
    evaluate,       // the net
    reprice,        // the quoted contracts
    decide,         // risk on the market, the strategy, every check
    order,          // the order ring's writes
    tick_to_order,  // arrival -> last order written; events that sent one
    tick_to_done,   // arrival -> done; every event
    advance,        // commit of a closed step, in the events that close one
    sweep,          // one slice of the chain
    hop_count
};
inline constexpr size_t hops = static_cast<size_t>(Hop::hop_count);
const char* hop_name(Hop hop);

struct Board {
    static constexpr std::uint64_t layout = 1;
    static constexpr size_t most_contracts = 64;  // quoted
    using Count = std::atomic<std::uint64_t>;
    using Time = std::atomic<std::int64_t>;
    using Number = std::atomic<double>;

    Count version;  // layout; written last

    // Asked from outside. The loop looks at `kill` before every record and before every order, at `stop` before every
    // record.
    alignas(64) std::atomic<std::uint32_t> kill;  // a KillSource: halt; the loop takes it back to 0 when it acts
    std::atomic<std::uint32_t> stop;              // not 0: end the loop
    std::atomic<std::uint32_t> halt_file;         // not 0: the kill file is there, and nobody resumes

    // Told by the loop.
    alignas(64) Count records, events, trades, orders, cancels, fills, signals, refused;
    Count skipped, unknown, time_went_back;         // records of other instruments, of no market's kind; events
    Count refused_books, refused_numbers, unheard;  // pictures; trades and books; intents beyond the room for them
    Count lost, gaps, writers;  // overtaken in the ring; holes in the sequence; how many writers the tick ring has had
    Count advances, sweeps, controls, controls_refused, allocations;  // allocations: of the module since the run began
    Time event_ns, started_ns, alive_ns, sweep_age_ns;                // event time; the others CLOCK_MONOTONIC
    Number spot, profit, best_profit, delta, gamma, vega, anomaly_score, clipped_share;
    std::atomic<std::uint32_t> state, why, model_expired, running, process, contracts, chain;
    Count refused_by[static_cast<size_t>(Reason::reason_count)];
    Number position[most_contracts], fair[most_contracts], volatility[most_contracts], bid[most_contracts],
        ask[most_contracts];  // bid, ask: of our working orders; 0: none

    Histogram hop[hops];
};
static_assert(Board::Count::is_always_lock_free && Board::Number::is_always_lock_free);

enum class KillSource : std::uint32_t { none = 0, asked = 1, signal = 2, file = 3 };

// One contract as last swept: a cache line.
struct alignas(64) ChainLine {
    Board::Number volatility, fair, delta, gamma, vega, theta;
    Board::Number spot;    // under which it was valued
    Board::Time event_ns;  // the event's whose spot that is
};

struct ChainHeader {
    alignas(64) Board::Count version;  // Board::layout; written last
    Board::Count count;
};

// Memory of zeros: a file that other processes of this user map (mode 0600), or without a path this process's own.
class SharedPage {
  public:
    // RingProblem if somebody else holds a page of that name; one that nobody holds is replaced.
    SharedPage(const std::string& path, size_t bytes);
    ~SharedPage();
    SharedPage(const SharedPage&) = delete;
    SharedPage& operator=(const SharedPage&) = delete;
    std::byte* data() const { return data_; }
    size_t bytes() const { return bytes_; }

  private:
    std::unique_ptr<SharedFile> file_;
    std::byte* data_ = nullptr;
    const size_t bytes_;
};

}  // namespace strikeforge
