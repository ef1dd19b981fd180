#include "dense/kernels.hpp"

#include <array>

namespace strikeforge {

namespace {

std::array<DenseKernels, isa_count> make_tables() {
    std::array<DenseKernels, isa_count> out{};
    DenseKernels table{};
    for (int level = 0; level < isa_count; ++level) {
        switch (static_cast<Isa>(level)) {
            case Isa::portable:
                tables::portable(table);
                break;
            default:
                break;  // TODO(kernels): the other instruction sets
        }
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
