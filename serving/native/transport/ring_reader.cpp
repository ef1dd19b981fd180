// The reading side. Ordering of a slot: its number, an acquire, so that an even one brings its words; the words, each
// an acquire, so that one of a later record brings the odd number written before it; then the number again: if it is
// the same, no word was of another record. On x86 every one of these is a plain load.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <ctime>

#include "base/clock.hpp"
#include "transport/ring.hpp"
#include "transport/ring_file.hpp"

namespace strikeforge {

using ring::ReaderEntry;
using ring::Slot;

namespace {

enum class Found { record, nothing_yet, overtaken };

using NameWords = std::uint64_t[ring::name_words];

void words_of(const std::string& path, const std::string& name, NameWords& words) {
    const bool printable = std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c != 127; });
    if (name.size() >= sizeof(NameWords) || !printable)
        throw RingProblem("ring '" + path + "': reader '" + name + "': expected a name of at most " +
                          std::to_string(sizeof(NameWords) - 1) + " ASCII characters without spaces");
    std::memset(words, 0, sizeof(NameWords));
    std::memcpy(words, name.data(), name.size());
}

bool has_name(const ReaderEntry& entry, const NameWords& name) {
    for (size_t place = 0; place < ring::name_words; ++place)
        if (entry.name[place].load(std::memory_order_relaxed) != name[place]) return false;
    return true;
}

// Held for microseconds, by readers that come and by a lossless writer; longer only by a process that was stopped.
void lock_table(const std::string& path, SharedFile& file) {
    constexpr std::int64_t patience_ns = 5'000'000'000;
    constexpr timespec pause = {0, 100'000};
    for (const std::int64_t begin = monotonic_ns(); !file.lock(ring::table_lock); ::nanosleep(&pause, nullptr))
        if (monotonic_ns() - begin > patience_ns)
            refuse_ring(path, "its table of readers locked", "it free within 5 s",
                        "a process that joins it was stopped: let it go on, or end it");
}

off_t lock_of(size_t place) {
    return ring::first_reader_lock + static_cast<off_t>(place);
}

}  // namespace

struct RingReader::Impl {
    ring::OpenRing ring;
    ReaderEntry* entry = nullptr;  // where our place is kept, if it is
    std::uint64_t next = 0;        // number of the record to be read
    std::uint64_t dealt_with = 0;  // what the entry says
    std::uint64_t lost = 0;

    Found look(std::uint64_t number) const {
        const std::uint64_t whole = 2 * next + 2;
        if (number == whole) return Found::record;
        return number < whole ? Found::nothing_yet : Found::overtaken;
    }

    // `out` is whole where a record was found.
    Found copy_next(Record& out) {
        const Slot& slot = ring.slot_of(next);
        const Found found = look(slot.number.load(std::memory_order_acquire));
        if (found != Found::record) return found;
        for (size_t place = 0; place < record_bytes / 8; ++place)
            out.words[place] = slot.words[place].load(std::memory_order_acquire);
        if (slot.number.load(std::memory_order_relaxed) != 2 * next + 2) return Found::overtaken;
        ++next;
        return Found::record;
    }

    // To the oldest record there is; while the writer keeps overtaking us, each time twice as far ahead of it. False
    // where the writer can't have overtaken us: the slot's number is somebody's scribble, and waiting here for it to
    // become right would take the thread away from whoever wants it stopped.
    bool catch_up(int attempt) {
        const std::uint64_t written = ring.header->written.load(std::memory_order_acquire);
        if (written <= next) return false;
        std::uint64_t oldest = written > ring.mask ? written - ring.capacity() : 0;
        if (attempt > 0) oldest = std::min(written, oldest + (std::uint64_t{1} << std::min(attempt - 1, 40)));
        if (oldest <= next) return true;
        lost += oldest - next;
        next = oldest;
        return true;
    }

    bool read(Record& out) {
        for (int attempt = 0;; ++attempt) {
            const Found found = copy_next(out);
            if (found != Found::overtaken) [[likely]]
                return found == Found::record;
            if (!catch_up(attempt)) return false;
        }
    }

    // As `read`, without reading.
    bool ready() {
        for (int attempt = 0;; ++attempt) {
            const Found found = look(ring.slot_of(next).number.load(std::memory_order_acquire));
            if (found != Found::overtaken) return found == Found::record;
            if (!catch_up(attempt)) return false;
        }
    }

    void deal() {
        if (dealt_with != next) {
            dealt_with = next;
            if (entry != nullptr) entry->next.store(next, std::memory_order_release);
        }
    }

    ReaderEntry& entry_of(const std::string& path, const std::string& name, bool& resumed);
};

// The entry of that name, or a free one; with its lock held. Under the table's lock.
ReaderEntry& RingReader::Impl::entry_of(const std::string& path, const std::string& name, bool& resumed) {
    NameWords words;
    words_of(path, name, words);
    ReaderEntry* free = nullptr;
    for (size_t place = 0; place < ring::most_readers; ++place) {
        ReaderEntry& known = ring.header->readers[place];
        const bool used = known.used.load(std::memory_order_relaxed) != 0;
        if (used && !name.empty() && has_name(known, words)) {
            if (!ring.file->lock(lock_of(place)))
                refuse_ring(path,
                            "a living reader '" + name + "' (process " +
                                std::to_string(known.process.load(std::memory_order_relaxed)) + ")",
                            "none", "stop that one, or take another name");
            if (free != nullptr) ring.file->unlock(lock_of(static_cast<size_t>(free - ring.header->readers)));
            resumed = true;
            return known;
        }
        const bool nameless = known.name[0].load(std::memory_order_relaxed) == 0;
        if (free == nullptr && (!used || nameless) && ring.file->lock(lock_of(place))) free = &known;
    }
    if (free == nullptr)
        refuse_ring(path, std::to_string(ring::most_readers) + " readers with a name or waited for", "fewer",
                    "take a name again that is used no more, or remove the file when nobody uses it");
    // Somebody's nameless entry until now; ours only when all of it says so.
    free->lossless.store(0, std::memory_order_relaxed);
    free->used.store(0, std::memory_order_release);
    for (size_t place = 0; place < ring::name_words; ++place)
        free->name[place].store(words[place], std::memory_order_relaxed);
    resumed = false;
    return *free;
}

RingReader::RingReader(const std::string& path, const std::string& name, bool lossless) : impl_(new Impl) {
    Impl& self = *impl_;
    self.ring = ring::open_to_read(path);
    ring::Header& header = *self.ring.header;
    bool resumed = false;
    if (!name.empty() || lossless) {
        lock_table(path, *self.ring.file);
        self.entry = &self.entry_of(path, name, resumed);
        if (!resumed) self.entry->next.store(header.written.load(std::memory_order_acquire), std::memory_order_release);
        self.entry->process.store(::getpid(), std::memory_order_relaxed);
        self.entry->lossless.store(lossless ? 1 : 0, std::memory_order_release);
        self.entry->used.store(1, std::memory_order_release);
        self.ring.file->unlock(ring::table_lock);
        if (lossless) {
            header.joined.store(1, std::memory_order_release);
            // From here on the writer waits for us.
            constexpr timespec until_it_looks = {0, 1'000'000};
            if (!barrier_everywhere()) ::nanosleep(&until_it_looks, nullptr);
        }
    }
    self.next =
        resumed ? self.entry->next.load(std::memory_order_acquire) : header.written.load(std::memory_order_acquire);
    self.dealt_with = self.next;
    if (resumed) self.ready();  // tells at once what was lost
    if (self.entry != nullptr) self.entry->next.store(self.next, std::memory_order_release);
}

RingReader::~RingReader() {
    leave();
}

void RingReader::leave() {
    Impl& self = *impl_;
    if (self.ring.file->left_behind()) return;
    self.deal();
    if (self.entry == nullptr) return;
    self.entry->lossless.store(0, std::memory_order_release);
    self.ring.file->unlock(lock_of(static_cast<size_t>(self.entry - self.ring.header->readers)));
    self.entry = nullptr;
}

bool RingReader::read(Record& out) {
    impl_->deal();
    return impl_->read(out);
}

size_t RingReader::read_many(Record* out, size_t most) {
    impl_->deal();
    if (most == 0 || !impl_->read(out[0])) return 0;
    size_t count = 1;
    while (count < most && impl_->copy_next(out[count]) == Found::record) ++count;
    return count;
}

bool RingReader::wait(Record& out, std::int64_t timeout_us) {
    return wait_until_ready(timeout_us) && read(out);
}

bool RingReader::wait_until_ready(std::int64_t timeout_us) {
    Impl& self = *impl_;
    self.deal();
    if (self.ready()) return true;
    if (timeout_us <= 0) return false;
    // A wake-up can only be missed where the system has no such barrier: then the sleep is short.
    constexpr std::int64_t longest_when_unsure_ns = 500'000;
    const std::int64_t end = monotonic_ns() + std::min(timeout_us, longest_us) * 1000;
    for (;;) {
        self.ring.header->asleep.store(1, std::memory_order_seq_cst);
        const bool sure = barrier_everywhere() && self.ring.header->writer_reached.load(std::memory_order_relaxed) != 0;
        if (self.ready()) return true;
        const std::int64_t left = end - monotonic_ns();
        if (left <= 0) return false;
        sleep_while(self.ring.header->asleep, 1, sure ? left : std::min(left, longest_when_unsure_ns));
    }
}

std::uint64_t RingReader::position() const {
    return impl_->next;
}

std::uint64_t RingReader::lost() const {
    return impl_->lost;
}

std::uint64_t RingReader::behind() const {
    const std::uint64_t written = impl_->ring.header->written.load(std::memory_order_acquire);
    return written > impl_->next ? written - impl_->next : 0;
}

std::uint64_t RingReader::writers() const {
    return impl_->ring.header->writers.load(std::memory_order_acquire);
}

bool RingReader::left_behind() const {
    return impl_->ring.file->left_behind();
}

bool RingReader::writer_lives() const {
    return impl_->ring.file->locked_by_another(ring::writer_lock);
}

std::uint64_t RingReader::capacity() const {
    return impl_->ring.capacity();
}

const std::byte* RingReader::slots() const {
    return reinterpret_cast<const std::byte*>(impl_->ring.slots);
}

bool RingReader::still_there(std::uint64_t first, std::uint64_t count) const {
    if (count > impl_->ring.capacity()) return false;
#if !defined(__SANITIZE_THREAD__)                         // which knows no fences
    std::atomic_thread_fence(std::memory_order_acquire);  // what was looked at was loaded before the numbers are
#endif
    for (std::uint64_t record = first; record < first + count; ++record)
        if (impl_->ring.slot_of(record).number.load(std::memory_order_acquire) != 2 * record + 2) return false;
    return true;
}

void RingReader::skip(std::uint64_t count) {
    impl_->next += std::min(count, behind());
    impl_->deal();
}

}  // namespace strikeforge
