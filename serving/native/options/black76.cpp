#include "options/black76.hpp"

#include "base/tables.hpp"

namespace strikeforge {

namespace {

void fill(Isa isa, OptionKernels& table) {
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
            tables::single_avx512(table);
            break;
#endif
        default:
            break;  // nothing in later sets is of use here
    }
}

}  // namespace

const OptionKernels& option_kernels(Isa isa) {
    static const auto all = tables_by_isa<OptionKernels>(fill);
    return all[static_cast<size_t>(isa)];
}

}  // namespace strikeforge
