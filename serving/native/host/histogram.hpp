// A latency histogram as HdrHistogram lays it out: 3 significant digits, 1 ns to 2^34 ns (17 s); larger counts as that.
//
// One writer; any reader of the same (shared) memory sees counts that only grow. Recording is a store or two.
// Source: Gil Tene, HdrHistogram; the index arithmetic is that of its documentation (unit 1 ns, 2048 sub-buckets).
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace strikeforge {

struct Histogram {
    static constexpr int sub_bits = 11, largest_bits = 34;
    static constexpr size_t sub_buckets = size_t{1} << sub_bits;
    static constexpr size_t slots = (largest_bits - sub_bits + 2) * (sub_buckets / 2);
    std::atomic<std::uint64_t> total, sum_ns, max_ns;
    std::atomic<std::uint64_t> counts[slots];

    static size_t slot_of(std::uint64_t ns) {
        if (ns >= (std::uint64_t{1} << largest_bits)) ns = (std::uint64_t{1} << largest_bits) - 1;
        const int bucket = std::bit_width(ns | (sub_buckets - 1)) - sub_bits;
        return (static_cast<size_t>(bucket) << (sub_bits - 1)) + static_cast<size_t>(ns >> bucket);
    }
    void record(std::int64_t elapsed_ns) {
        const std::uint64_t ns = elapsed_ns < 0 ? 0 : static_cast<std::uint64_t>(elapsed_ns);
        add(counts[slot_of(ns)], 1);
        add(total, 1);
        add(sum_ns, ns);
        if (ns > max_ns.load(std::memory_order_relaxed)) max_ns.store(ns, std::memory_order_relaxed);
    }

  private:
    static void add(std::atomic<std::uint64_t>& to, std::uint64_t what) {  // one writer: no locked instruction
        to.store(to.load(std::memory_order_relaxed) + what, std::memory_order_relaxed);
    }
};

}  // namespace strikeforge
