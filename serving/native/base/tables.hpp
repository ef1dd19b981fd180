// One table of kernels for each instruction set: each takes the table below it and replaces what it does better.
#pragma once

#include <array>

#include "base/cpu.hpp"

namespace strikeforge {

// `fill(isa, table)` replaces what that set has. It is compiled for its set, so only the sets that this CPU has are
// asked; tables above those stay empty.
template <class Table, class Fill>
std::array<Table, isa_count> tables_by_isa(Fill fill) {
    std::array<Table, isa_count> out{};
    Table table{};
    for (int level = 0; level <= static_cast<int>(supported_isa()); ++level) {
        fill(static_cast<Isa>(level), table);
        out[static_cast<size_t>(level)] = table;
    }
    return out;
}

}  // namespace strikeforge
