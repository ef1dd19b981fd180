// The transformer's own kernels of an instruction set, picked once at load; what each does: transformer_table.hpp.
#pragma once

#include "base/cpu.hpp"
#include "nets/transformer_table.hpp"

namespace strikeforge {

// The table of a level; the level must be supported.
const TransformerKernels& transformer_kernels(Isa isa);

}  // namespace strikeforge
