// The writing side. Ordering of a slot (a sequence lock, Boehm 2012, with the fences folded into the accesses, since
// the thread sanitizer knows no fences): the number becomes odd; then the words, each a release, so that who sees one
// of them sees the odd number too; then the number becomes even, a release, so that who sees it sees all words. On x86
// every one of these is a plain store. `written` follows: it may lag by the record of a writer killed in between.
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "base/clock.hpp"
#include "transport/ring.hpp"
#include "transport/ring_file.hpp"

namespace strikeforge {

using ring::ReaderEntry;
using ring::Slot;

struct RingWriter::Impl {
    ring::OpenRing ring;
    std::uint64_t next = 0;   // number of the record to be written
    std::uint64_t limit = 0;  // lossless: first record for which readers must be looked at again
    std::uint64_t waits = 0;
    std::int64_t looked_for_dead = 0;  // when, CLOCK_MONOTONIC nanoseconds
    bool waiting = false;              // a counted wait isn't over
    bool lossless = false;
    const std::atomic<std::uint32_t>* stop = nullptr;

    bool stopped() const { return stop != nullptr && stop->load(std::memory_order_acquire) != 0; }

    void put(const Record& record) {
        Slot& slot = ring.slot_of(next);
        slot.number.store(2 * next + 1, std::memory_order_relaxed);
        for (size_t place = 0; place < record_bytes / 8; ++place)
            slot.words[place].store(__atomic_load_n(&record.words[place], __ATOMIC_RELAXED),  // see copy_record
                                    std::memory_order_release);
        slot.number.store(2 * next + 2, std::memory_order_release);
        ++next;
        ring.header->written.store(next, std::memory_order_release);
    }

    // A reader that falls asleep sets the flag, then sends a barrier through this thread, then looks at the slot once
    // more: it sees the record, or we see its flag. So nothing is paid here but a load.
    void tell_sleepers() {
        std::atomic_signal_fence(std::memory_order_seq_cst);  // the compiler keeps the order that the barrier counts on
        if (ring.header->asleep.load(std::memory_order_relaxed) != 0) [[unlikely]] {
            ring.header->asleep.store(0, std::memory_order_release);
            wake_all(ring.header->asleep);
        }
    }

    bool has_room() {
        if (!lossless) return true;
        if (ring.header->joined.load(std::memory_order_relaxed) == 0 && next < limit) return true;
        return look_at_readers();
    }

    // How far we may write before the slowest lossless reader must be looked at again.
    bool look_at_readers() {
        ring.header->joined.exchange(0, std::memory_order_acq_rel);
        limit = next + ring.capacity();
        for (const ReaderEntry& entry : ring.header->readers) {
            if (entry.lossless.load(std::memory_order_acquire) == 0) continue;
            const std::uint64_t until = entry.next.load(std::memory_order_acquire) + ring.capacity();
            if (until < limit) limit = until;
        }
        return next < limit;
    }

    // Readers that were killed aren't waited for. The table's lock keeps a new one from coming while we look.
    void forget_the_dead() {
        if (!ring.file->lock(ring::table_lock)) return;
        for (size_t place = 0; place < ring::most_readers; ++place) {
            ReaderEntry& entry = ring.header->readers[place];
            if (entry.lossless.load(std::memory_order_relaxed) != 0 &&
                !ring.file->locked_by_another(ring::first_reader_lock + static_cast<off_t>(place)))
                entry.lossless.store(0, std::memory_order_relaxed);
        }
        ring.file->unlock(ring::table_lock);
    }

    bool wait_for_room(std::int64_t timeout_ns);

    // True if there is room, at the latest after so long. A wait is counted once, however many calls it takes.
    bool make_room(std::int64_t timeout_ns) {
        if (!has_room()) {
            if (timeout_ns <= 0) return false;
            waits += !waiting;
            waiting = !wait_for_room(timeout_ns);
            return !waiting;
        }
        waiting = false;
        return true;
    }
};

bool RingWriter::Impl::wait_for_room(std::int64_t timeout_ns) {
    constexpr int looks_before_sleep = 200;
    constexpr std::int64_t dead_every_ns = 2'000'000;
    constexpr timespec pause = {0, 20'000};
    const std::int64_t begin = monotonic_ns();
    for (int looks = 0;; ++looks) {
        if (look_at_readers()) return true;
        if (looks < looks_before_sleep) continue;
        const std::int64_t now = monotonic_ns();
        if (now - begin >= timeout_ns) return false;
        if (now - looked_for_dead >= dead_every_ns) {
            forget_the_dead();
            looked_for_dead = now;
        } else {
            ::nanosleep(&pause, nullptr);
        }
    }
}

RingWriter::RingWriter(const std::string& path, std::uint64_t capacity, bool lossless) : impl_(new Impl) {
    Impl& self = *impl_;
    self.ring = ring::open_to_write(path, capacity);
    self.lossless = lossless;
    ring::Header& header = *self.ring.header;
    // What the writer before us finished counts, also where it couldn't say so any more.
    self.next = header.written.load(std::memory_order_acquire);
    if (self.next > 0 && self.ring.slot_of(self.next - 1).number.load(std::memory_order_acquire) != 2 * self.next)
        refuse_ring(path, "record " + std::to_string(self.next - 1) + " not in its slot",
                    "a ring as a writer leaves it", "stop who uses it and remove the file; its writer makes it anew");
    while (self.ring.slot_of(self.next).number.load(std::memory_order_acquire) == 2 * self.next + 2) ++self.next;
    header.written.store(self.next, std::memory_order_release);
    header.writer_process.store(::getpid(), std::memory_order_relaxed);
    header.writer_reached.store(be_reached_by_barriers() ? 1 : 0, std::memory_order_relaxed);
    header.writers.fetch_add(1, std::memory_order_release);
}

RingWriter::~RingWriter() = default;

void RingWriter::write(const Record& record) {
    Impl& self = *impl_;
    if (!self.has_room()) [[unlikely]]
        while (!self.stopped() && !self.make_room(10'000'000)) continue;
    self.put(record);
    self.tell_sleepers();
}

void RingWriter::give_up_on(const std::atomic<std::uint32_t>& stop) {
    impl_->stop = &stop;
}

void RingWriter::write_many(const Record* records, size_t count) {
    for (size_t place = 0; place < count; ++place) write(records[place]);
}

bool RingWriter::room(std::int64_t timeout_us) {
    return impl_->make_room(std::min(timeout_us, longest_us) * 1000);
}

std::uint64_t RingWriter::written() const {
    return impl_->next;
}

std::uint64_t RingWriter::waits() const {
    return impl_->waits;
}

std::uint64_t RingWriter::writers() const {
    return impl_->ring.header->writers.load(std::memory_order_relaxed);
}

bool RingWriter::left_behind() const {
    return impl_->ring.file->left_behind();
}

std::uint64_t RingWriter::capacity() const {
    return impl_->ring.capacity();
}

}  // namespace strikeforge
