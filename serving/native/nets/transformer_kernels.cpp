#include "nets/transformer_kernels.hpp"

#include "base/tables.hpp"

namespace strikeforge {

namespace {

void fill(Isa isa, TransformerKernels& table) {
    switch (isa) {
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
}

}  // namespace

const TransformerKernels& transformer_kernels(Isa isa) {
    static const auto all = tables_by_isa<TransformerKernels>(fill);
    return all[static_cast<size_t>(isa)];
}

}  // namespace strikeforge
