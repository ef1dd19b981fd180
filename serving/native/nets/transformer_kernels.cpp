#include "nets/transformer_kernels.hpp"

#include <array>

namespace strikeforge {

namespace {

std::array<TransformerKernels, isa_count> make_tables() {
    std::array<TransformerKernels, isa_count> out{};
    TransformerKernels table{};
    // What fills a table is itself compiled for its set: only the sets that this CPU has may be asked.
    for (int level = 0; level <= static_cast<int>(supported_isa()); ++level) {
        switch (static_cast<Isa>(level)) {
            case Isa::portable:
                tables::portable(table);
                break;
#if defined(STRIKEFORGE_X86)
            case Isa::avx2:
                tables::avx2(table);
                break;
            case Isa::avx512:
                tables::avx512(table);
                break;
#endif
            default:
                break;  // keys and values are fp32: what comes above AVX-512 has nothing for them
        }
        out[static_cast<size_t>(level)] = table;
    }
    return out;
}

}  // namespace

const TransformerKernels& transformer_kernels(Isa isa) {
    static const std::array<TransformerKernels, isa_count> all = make_tables();
    return all[static_cast<size_t>(isa)];
}

}  // namespace strikeforge
