// What operators ask of a running loop: a bounded queue of many writers and one reader, none of whom ever waits.
//
// Source: Dmitry Vyukov, bounded MPMC queue (each cell's turn says whose it is), with one reader.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace strikeforge {

enum class ControlCode : std::uint8_t {
    kill = 1,           // HALTED; value 0: a KillSource
    reduce = 2,         // REDUCING
    resume = 3,         // ACTIVE, unless the kill file is there
    anomaly_score = 4,  // value 0: the score
    model_expired = 5,  // value 0: 0 or not
    cancel_all = 6,     // every working order is cancelled; the state stays
    limits = 7,         // told, never asked here: value 0 is the serial of the limits in force from now on
};

struct Asked {
    ControlCode code;
    double value;
};

class Mailbox {
  public:
    static constexpr size_t room = 64;
    Mailbox() {
        for (size_t place = 0; place < room; ++place) cells_[place].turn.store(place, std::memory_order_relaxed);
    }
    // False where it is full: the loop hasn't looked for a long time.
    bool put(const Asked& asked) {
        std::uint64_t at = writers_.load(std::memory_order_relaxed);
        for (;;) {
            Cell& cell = cells_[at % room];
            const std::uint64_t turn = cell.turn.load(std::memory_order_acquire);
            if (turn == at) {
                if (!writers_.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) continue;
                cell.asked = asked;
                cell.turn.store(at + 1, std::memory_order_release);
                return true;
            }
            if (turn < at) return false;
            at = writers_.load(std::memory_order_relaxed);
        }
    }
    // The oldest one, or false if there is none. The loop alone.
    bool take(Asked& out) {
        Cell& cell = cells_[reader_ % room];
        if (cell.turn.load(std::memory_order_acquire) != reader_ + 1) return false;
        out = cell.asked;
        cell.turn.store(reader_ + room, std::memory_order_release);
        ++reader_;
        return true;
    }

  private:
    struct alignas(64) Cell {
        std::atomic<std::uint64_t> turn;
        Asked asked;
    };
    std::array<Cell, room> cells_;
    alignas(64) std::atomic<std::uint64_t> writers_{0};
    alignas(64) std::uint64_t reader_ = 0;
};

}  // namespace strikeforge
