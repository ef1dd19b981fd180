// The loop: records in, risk-checked orders out. Rules: docs/host-rules.md. One thread; nothing allocates after the
// start, nothing but the records decides.
//
// `event` is the same code live and in replay (loop.cpp), and so is what operators ask (loop_controls.cpp); around
// them, loop_run.cpp reads a ring until it is told to stop, and `process` takes records from memory and keeps what
// leaves.
//
// Signals, each with the event time at which it was true and four values:
//   state          State, Reason, profit, 0. After the cancels that a HALTED brought.
//   control_acted  ControlCode, its value, market records read before it acted, and 0; or, where a kill acted between
//                  two orders of one event: the record of that event counts as not read, and the last value says
//                  before which of all orders asked of the gate (from 1). A control record with these values, put
//                  there into the same records, repeats it.
//   fair_values    fair, delta, volatility, spot; `instrument` is the contract's. Only where asked for.
//   control_refused  ControlCode, its value, market records read: unknown, or a resume while the kill file is there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dense/kernels.hpp"
#include "host/board.hpp"
#include "host/clock.hpp"
#include "host/contracts.hpp"
#include "host/mailbox.hpp"
#include "host/risk.hpp"
#include "host/strategy.hpp"
#include "market/scaler.hpp"
#include "market/tick_features.hpp"
#include "transport/ring.hpp"

namespace strikeforge {

enum class SignalCode : std::uint8_t { state = 1, control_acted = 2, fair_values = 3, control_refused = 4 };

struct RingPaths {
    std::string orders, fills, signals;  // "": kept in memory, for `process`
    std::uint64_t capacity;
    bool lossless;  // wait for readers that joined as such
};

struct LoopSettings {
    std::int64_t step_ns;
    StepScaler step_scaler;  // TickFeatures::count known columns, padded to the engine's
    ContractTable contracts;
    ContractScaler contract_scaler;
    size_t quoted;  // the first ones of the table; at most Board::most_contracts
    double reference_spot;
    Limits limits;
    RingPaths rings;
    std::string board, chain;           // paths of shared memory; "": this process's own
    std::int64_t fair_values_every_ns;  // event time between two signals of fair values; 0: none
    size_t sweep_contracts;             // valued at a time while no record waits
    std::int64_t sweep_every_ns;        // monotonic time between two beginnings of a sweep
};

struct RunSettings {
    bool sleep;                 // wait in the kernel while there is nothing to do, instead of asking again and again
    std::int64_t idle_exit_ns;  // end after so long without a record; 0: never
    std::uint64_t events;       // end after so many; 0: never
};

enum class RunEnd : std::uint8_t { stopped, idle, events };

// Takes the engine over: it is reset, and nobody else may use it as long as the loop lives.
class Loop {
  public:
    static constexpr std::uint64_t publish_records = 64;

    // `dense`: of the engine's instruction set; it is only kept awake with.
    Loop(NativeEngine& engine, const OptionKernels& kernels, const DenseKernels& dense,
         std::unique_ptr<Strategy> strategy, const LoopSettings& settings);
    ~Loop();
    Loop(const Loop&) = delete;
    Loop& operator=(const Loop&) = delete;

    // The records one by one, as if read from a ring; what leaves is in `left`. `sweep`: a slice of the chain after
    // each event. Only for a loop without rings.
    void process(const Record* records, size_t count, bool sweep);
    const std::vector<Record>& left() const { return left_; }
    void forget_left() { left_.clear(); }

    RunEnd run(RingReader& ticks, const RunSettings& settings);

    // From any thread; false where too much waits already.
    bool ask(ControlCode code, double value);
    // From any thread: in force before the next record. False where the ones before haven't been seen yet; HostProblem
    // as from RiskGate::set_limits.
    bool ask_limits(const Limits& limits, double serial);

    Board& board() { return *board_; }
    const SharedPage& board_page() const { return board_page_; }
    const SharedPage& chain_page() const { return chain_page_; }
    bool has_rings() const { return fills_ != nullptr; }
    bool counts_ticks() const { return stopwatch_.counts_ticks(); }

  private:
    class Sink;
    class Laps;
    static constexpr size_t intents_per_contract = 8;  // in one event

    void warm_up();
    void begin_board();

    void handle(const Record& record);
    void event(const Record& record);
    void close_step();
    void fill(const Trade& trade);
    void fill_side(size_t contract, bool buy, double underlying);
    void value_quoted();
    void forget_values();
    void decide();
    void submit(const Intent& intent);

    void look_outside();
    void act(ControlCode code, double value);
    void refuse(ControlCode code, double value);
    void take_limits();
    void discard_resumes();

    void tell_state();
    void tell_acted(ControlCode code, double value);
    void tell_fair_values();
    void tell(SignalCode code, size_t instrument, double a, double b, double c, double d);
    void leave(const Record& record, RingWriter* ring);
    void make_room();

    bool sweep_when_due(std::int64_t now_ns);
    void sweep_slice();
    void publish(std::int64_t now_ns);
    void show_alive(std::int64_t now_ns);
    void publish_ring(const RingReader& ticks);
    void stay_awake();

    // What is valued and decided with.
    LoopSettings settings_;
    NativeEngine& engine_;
    Contracts contracts_;
    Book book_;
    TickFeatures features_;
    double row_[TickFeatures::count];
    Aligned<float> x_, context_;
    Market market_{};
    std::vector<ContractState> states_;
    std::vector<double> volatility_;  // of the quoted; the sweep has its own
    std::unique_ptr<Strategy> strategy_;
    Intents intents_;

    // What is told: memory that others look at, rings, or for `process` what left.
    SharedPage board_page_, chain_page_;
    Board* board_;
    ChainHeader* chain_header_;
    ChainLine* chain_;
    std::unique_ptr<RingWriter> fills_, signals_;
    std::uint64_t fills_written_ = 0, signals_written_ = 0;
    std::vector<Record> left_;
    State told_state_ = State::active;
    Reason told_why_ = Reason::none;
    std::int64_t fair_values_ns_ = 0;  // event time from which the next ones are told

    // Between the strategy and the order ring.
    std::unique_ptr<Sink> sink_;
    RiskGate gate_;

    // What comes from outside.
    Mailbox mailbox_;
    enum class Slot : std::uint32_t { free, being_written, full };
    std::atomic<Slot> next_limits_slot_{Slot::free};
    Limits next_limits_{};
    double next_serial_ = 0;
    std::uint64_t asked_ = 0;        // intents given to the gate
    std::uint64_t kill_before_ = 0;  // a replayed kill acts before that one; 0: none waits
    double replayed_kill_ = 0;       // its source
    bool killed_within_event_ = false;

    struct Counts {  // published now and then
        std::uint64_t records, market_records, events, trades, fills, signals, skipped, unknown, time_went_back, gaps,
            advances, sweeps, controls, controls_refused;
    };
    Counts counts_{};

    // Measured with, never decided by.
    Stopwatch stopwatch_;
    std::unique_ptr<Laps> laps_;
    size_t swept_ = 0;                       // contracts of the sweep under way; 0: none is
    std::uint64_t swept_event_ = 0;          // counts_.events when it began
    std::int64_t sweep_began_ns_ = 0;        // monotonic, as below
    std::int64_t whole_sweep_began_ns_ = 0;  // of the last whole one; 0: there was none

    const DenseKernels& dense_;
    Aligned<float> awake_{lanes};
};

}  // namespace strikeforge
