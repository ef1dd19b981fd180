// The dense kernels of an instruction set, picked once at load; what each does: table.hpp.
#pragma once

#include "base/cpu.hpp"
#include "dense/pack.hpp"
#include "dense/table.hpp"

namespace strikeforge {

// The table of a level; the level must be supported.
const DenseKernels& dense_kernels(Isa isa);

}  // namespace strikeforge
