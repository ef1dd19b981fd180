// Opening a ring's file: everything that a hostile or broken file could be is refused here, before it is used.
#pragma once

#include <memory>
#include <string>

#include "transport/ring_layout.hpp"
#include "transport/shared_memory.hpp"

namespace strikeforge::ring {

struct OpenRing {
    std::unique_ptr<SharedFile> file;
    Header* header = nullptr;
    Slot* slots = nullptr;
    std::uint64_t mask = 0;

    std::uint64_t capacity() const { return mask + 1; }
    Slot& slot_of(std::uint64_t record) const { return slots[record & mask]; }
};

// The ring of that name, made if there is none, with the writer's lock held.
OpenRing open_to_write(const std::string& path, std::uint64_t capacity);
// RingProblem if there is none.
OpenRing open_to_read(const std::string& path);

}  // namespace strikeforge::ring
