// A ring of records in shared memory: one writer, any number of readers in other processes, each at its own place.
//
// A slot is a cache line: its number (odd while it is written) and a record. The writer never waits unless it was made
// `lossless`; a reader that is overtaken is told how many records it lost and goes on with the oldest one there is. A
// reader never sees half a record, whoever is killed and when. Memory ordering and the file's layout: ring.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "transport/records.hpp"

namespace strikeforge {

// Refusals, in words for people; becomes serving.errors.RingError.
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
    std::uint64_t written() const;  // records since the ring was made
    std::uint64_t waits() const;    // how often a lossless writer found the ring full

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

class RingReader {
  public:
    // `name`: a reader of that name goes on where the last one of it stood (its place is kept in the file), and is
    // told what it lost; "" begins with the next record written. `lossless`: a lossless writer waits for it.
    RingReader(const std::string& path, const std::string& name, bool lossless);
    ~RingReader();
    RingReader(const RingReader&) = delete;
    RingReader& operator=(const RingReader&) = delete;
    // The next record, or false if there is none yet. Never blocks, never allocates.
    bool read(Record& out);
    // The same, asleep until a record comes or so many microseconds have passed.
    bool wait(Record& out, std::int64_t timeout_us);
    std::uint64_t position() const;  // number of the next record
    std::uint64_t lost() const;      // records that were overwritten before they were read
    std::uint64_t behind() const;    // records written and not yet read
    std::uint64_t writers() const;   // how many writers this ring has had: it grows when one restarts

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace strikeforge
