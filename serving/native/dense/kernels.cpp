#include "dense/kernels.hpp"

#include "base/tables.hpp"

namespace strikeforge {

namespace {

void fill(Isa isa, DenseKernels& table) {
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
        case Isa::vnni:
            tables::vnni(table);
            break;
        case Isa::bf16:
            tables::bf16(table);
            break;
#endif
        default:
            break;  // AMX: tiles multiply matrices; one vector at a time is bound by memory, not by arithmetic
    }
}

}  // namespace

const DenseKernels& dense_kernels(Isa isa) {
    static const auto all = tables_by_isa<DenseKernels>(fill);
    return all[static_cast<size_t>(isa)];
}

}  // namespace strikeforge
