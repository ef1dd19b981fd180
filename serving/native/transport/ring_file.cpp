#include "transport/ring_file.hpp"

#include <bit>
#include <new>
#include <utility>

#include "transport/ring.hpp"

namespace strikeforge::ring {

namespace {

constexpr const char* make_anew = "stop who uses it and remove the file; its writer makes it anew";

std::string in_bytes(std::uint64_t count) {
    return std::to_string(count) + " bytes";
}

// The part of the header that never changes, checked before anything is mapped.
std::uint64_t checked_capacity(const std::string& path, const SharedFile& file) {
    std::uint64_t fixed[6] = {};
    const size_t size = file.size();
    if (size < header_bytes || file.read(fixed, sizeof fixed) != sizeof fixed)
        refuse_ring(path, in_bytes(size), "a ring, at least " + in_bytes(file_bytes(smallest)), make_anew);
    if (fixed[0] != magic) refuse_ring(path, "a file that is no ring", "a ring", "name another path");
    if (fixed[1] != layout)
        refuse_ring(path, "layout " + std::to_string(fixed[1]), "layout " + std::to_string(layout), make_anew);
    const std::uint64_t capacity = fixed[2];
    if (!std::has_single_bit(capacity) || capacity < smallest || capacity > largest)
        refuse_ring(path, "a capacity of " + std::to_string(capacity), "a power of two", make_anew);
    if (fixed[3] != sizeof(Slot) || fixed[4] != record_bytes || fixed[5] != header_bytes)
        refuse_ring(path, "slots of " + in_bytes(fixed[3]) + " with records of " + in_bytes(fixed[4]),
                    in_bytes(sizeof(Slot)) + " with " + in_bytes(record_bytes), make_anew);
    if (size != file_bytes(capacity))
        refuse_ring(path, in_bytes(size), in_bytes(file_bytes(capacity)) + " (its header says so)", make_anew);
    return capacity;
}

OpenRing mapped(std::unique_ptr<SharedFile> file, std::uint64_t capacity) {
    OpenRing ring;
    std::byte* memory = file->map(file_bytes(capacity));
    ring.file = std::move(file);
    ring.header = std::launder(reinterpret_cast<Header*>(memory));
    ring.slots = std::launder(reinterpret_cast<Slot*>(memory + header_bytes));
    ring.mask = capacity - 1;
    return ring;
}

}  // namespace

OpenRing open_to_write(const std::string& path, std::uint64_t capacity) {
    if (!std::has_single_bit(capacity) || capacity < smallest || capacity > largest)
        throw RingProblem("ring '" + path + "': capacity " + std::to_string(capacity) +
                          ": expected a power of two from " + std::to_string(smallest) + " to " +
                          std::to_string(largest));
    for (;;) {
        if (auto file = SharedFile::open(path)) {
            const std::uint64_t found = checked_capacity(path, *file);
            if (!file->lock(writer_lock)) {
                const OpenRing ring = mapped(std::move(file), found);
                const std::int64_t process = ring.header->writer_process.load(std::memory_order_relaxed);
                refuse_ring(path, "a living writer (process " + std::to_string(process) + ")", "none",
                            "a ring has one writer: stop that one, or name another path");
            }
            if (!file->still_named()) continue;  // removed since it was opened
            if (found != capacity)
                refuse_ring(path, "a capacity of " + std::to_string(found), std::to_string(capacity),
                            "say capacity " + std::to_string(found) + ", or " + make_anew);
            return mapped(std::move(file), capacity);
        }
        auto file = SharedFile::make(path, file_bytes(capacity));
        if (!file->lock(writer_lock)) refuse_ring(path, "a new file that is locked", "no lock", "try again");
        SharedFile& made = *file;
        OpenRing ring = mapped(std::move(file), capacity);
        Header& header = *ring.header;
        header.magic = magic;
        header.layout = layout;
        header.capacity = capacity;
        header.slot_bytes = sizeof(Slot);
        header.record_bytes = record_bytes;
        header.header_bytes = header_bytes;
        if (made.publish()) return ring;
    }
}

OpenRing open_to_read(const std::string& path) {
    auto file = SharedFile::open(path);
    if (!file) throw RingProblem("ring '" + path + "': there is none: start what writes it first");
    const std::uint64_t capacity = checked_capacity(path, *file);
    return mapped(std::move(file), capacity);
}

}  // namespace strikeforge::ring
