// A ring of records in shared memory: one writer, any number of readers in other processes, each at its own place.
//
// A slot is a cache line: its number (odd while it is written) and a record. The writer never waits unless it was made
// `lossless`; a reader that is overtaken is told how many records it lost and goes on with the oldest one there is. A
// reader never sees half a record, whoever is killed and when. Memory ordering: ring_writer.cpp, ring_reader.cpp; the
// file's layout: ring_layout.hpp. A writer and a reader are each used by one thread at a time, and not by a child made
// by fork() (`left_behind`), to which nothing of them belongs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "transport/records.hpp"

namespace strikeforge {

// Refusals, in words for people; becomes serving.errors.HostError.
struct RingProblem : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class RingWriter {
  public:
    // Makes the file (mode 0600), or takes over one whose writer is gone, going on after its last whole record;
    // RingProblem if another writer lives, or the file is no ring of this layout. `capacity`: a power of two.
    // `lossless`: wait for readers that joined as such (tests, replay at full pace).
    RingWriter(const std::string& path, std::uint64_t capacity, bool lossless);
    ~RingWriter();
    RingWriter(const RingWriter&) = delete;
    RingWriter& operator=(const RingWriter&) = delete;
    void write(const Record& record);
    // While `stop` isn't 0 a lossless writer waits for nobody: readers are told what they lost. It outlives the writer.
    void give_up_on(const std::atomic<std::uint32_t>& stop);
    void write_many(const Record* records, size_t count);
    // True if the next write won't wait; else waits, at most so many microseconds. For who must do something else
    // meanwhile (Python's signals, a stop flag).
    bool room(std::int64_t timeout_us);
    std::uint64_t written() const;  // records since the ring was made
    std::uint64_t waits() const;    // how often a lossless writer found the ring full
    std::uint64_t writers() const;  // how many writers this ring has had, this one included
    std::uint64_t capacity() const;
    bool left_behind() const;  // this process is a child of the one that opened it: it must not be used

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

class RingReader {
  public:
    // `name`: a reader of that name goes on where the last one of it stood (its place is kept in the file), and is
    // told what it lost; "" begins with the next record written. `lossless`: a lossless writer waits for it.
    // What a read gave is dealt with when the next read is asked for, or the reader is closed: a reader of a name that
    // was killed in between gets it once more.
    RingReader(const std::string& path, const std::string& name, bool lossless);
    ~RingReader();
    RingReader(const RingReader&) = delete;
    RingReader& operator=(const RingReader&) = delete;
    // The next record, or false if there is none yet. Never blocks, never allocates.
    bool read(Record& out);
    // Up to `most` of them; how many. They follow each other without a gap: what was lost lay before the first.
    size_t read_many(Record* out, size_t most);
    // The same as `read`, asleep until a record comes or so many microseconds have passed.
    bool wait(Record& out, std::int64_t timeout_us);
    // Asleep until there is a record to read (true), or so many microseconds have passed.
    bool wait_until_ready(std::int64_t timeout_us);
    std::uint64_t position() const;  // number of the next record
    std::uint64_t lost() const;      // records that were overwritten before they were read
    std::uint64_t behind() const;    // records written and not yet read
    std::uint64_t writers() const;   // how many writers this ring has had: it grows when one restarts
    bool writer_lives() const;       // a system call
    std::uint64_t capacity() const;
    bool left_behind() const;  // as a writer's

    // In place, for who checks afterwards: slots of 64 bytes, number and record; record n is in slot n % capacity.
    const std::byte* slots() const;
    // Whether the records first ... first + count - 1 are still whole in their slots.
    bool still_there(std::uint64_t first, std::uint64_t count) const;
    // Leaves the ring; what was read is dealt with. Only `slots` and `still_there` may be used afterwards.
    void leave();
    // Deals with the next `count` records without copying them; no more than `behind`.
    void skip(std::uint64_t count);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace strikeforge
