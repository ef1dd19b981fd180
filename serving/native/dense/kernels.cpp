#include "dense/kernels.hpp"

#include <array>

namespace strikeforge {

namespace {

std::array<DenseKernels, isa_count> make_tables() {
    std::array<DenseKernels, isa_count> out{};
    DenseKernels table{};
    tables::portable(table);
    // What fills a table is itself compiled for its set: only the sets that this CPU has may be asked.
    for (int level = 0; level <= static_cast<int>(supported_isa()); ++level) {
#if defined(STRIKEFORGE_X86)
        switch (static_cast<Isa>(level)) {
            case Isa::portable:
                break;
            case Isa::avx2:
                tables::avx2(table);
                break;
            case Isa::avx512:
                tables::avx512(table);
                break;
            case Isa::vnni:
                tables::vnni(table);
                break;
            case Isa::bf16:
                tables::bf16(table);
                break;
            case Isa::amx:
                break;  // tiles multiply matrices; one vector at a time is bound by memory, not by arithmetic
        }
#endif
        out[static_cast<size_t>(level)] = table;
    }
    return out;
}

}  // namespace

const DenseKernels& dense_kernels(Isa isa) {
    static const std::array<DenseKernels, isa_count> all = make_tables();
    return all[static_cast<size_t>(isa)];
}

}  // namespace strikeforge
