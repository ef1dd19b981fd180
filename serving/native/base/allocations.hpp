// Counts what this module allocates, so that "no allocation after warm-up" is a test and not a promise.
#pragma once

#include <cstdint>

namespace strikeforge {

// Calls of operator new inside this module since it was loaded, over all threads.
std::uint64_t allocation_count();

}  // namespace strikeforge
