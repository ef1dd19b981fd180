// The file of a ring, layout 1, in this machine's byte order: two pages of header, then `capacity` slots of 64 bytes.
//
// Everything that changes is an atomic: processes that may be killed between any two instructions share it. Whatever
// two of them touch often has a cache line of its own.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/aligned.hpp"
#include "transport/records.hpp"

namespace strikeforge::ring {

inline constexpr std::uint64_t magic = 0x31676e69526b7453;  // "StkRing1"
inline constexpr std::uint64_t layout = 1;
inline constexpr size_t most_readers = 62;                                      // that have a name, or are waited for
inline constexpr size_t name_words = 5;                                         // 39 bytes and a zero
inline constexpr std::uint64_t smallest = 2, largest = std::uint64_t{1} << 26;  // capacities

using Word = std::atomic<std::uint64_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == 8);

// Record n (from 0) lies in slot n % capacity under the number 2 n + 2, which is 2 n + 1 while it is written.
struct alignas(cache_line) Slot {
    Word number;
    Word words[record_bytes / 8];
};
static_assert(sizeof(Slot) == cache_line);

struct ReaderEntry {
    alignas(cache_line) Word name[name_words];
    std::atomic<std::uint32_t> used;      // the entry is somebody's, living or not
    std::atomic<std::uint32_t> lossless;  // a lossless writer waits for it
    std::atomic<std::int64_t> process;
    alignas(cache_line) Word next;  // number of the record that it hasn't dealt with; written by the reader
};

struct Header {
    // Never changes.
    alignas(cache_line) std::uint64_t magic;
    std::uint64_t layout, capacity, slot_bytes, record_bytes, header_bytes;
    // Changes when writers come and go.
    alignas(cache_line) Word writers;
    std::atomic<std::int64_t> writer_process;
    std::atomic<std::uint32_t> writer_reached;  // by barrier_everywhere (shared_memory.hpp)
    // Set by readers, looked at by the writer after every record.
    alignas(cache_line) std::atomic<std::uint32_t> asleep;  // somebody sleeps until a record comes
    std::atomic<std::uint32_t> joined;                      // a lossless reader came
    // Set by the writer: how many records are whole.
    alignas(cache_line) Word written;
    ReaderEntry readers[most_readers];
};
inline constexpr size_t header_bytes = 8192;
static_assert(sizeof(Header) == header_bytes);

inline constexpr size_t file_bytes(std::uint64_t capacity) {
    return header_bytes + capacity * sizeof(Slot);
}

// Bytes whose locks say who lives (SharedFile).
inline constexpr off_t writer_lock = 0, table_lock = 1, first_reader_lock = 2;

}  // namespace strikeforge::ring
