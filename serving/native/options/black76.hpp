// Black-76 in double precision: prices, Greeks, implied volatilities of arrays of options.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cpu.hpp"

namespace strikeforge {

// Inputs, each [n], or one number for all where the stride is 0. Units as in serving/black76.py.
struct Column {
    const double* data;
    size_t stride;  // 1, or 0: the same for all
};

struct Options {
    Column forward, strike, tau, volatility, discount, right;
};

// Outputs [n]; null where not wanted.
struct Greeks {
    double *price, *delta, *gamma, *vega, *theta, *rho, *vanna, *volga;
};

// Inputs of implied volatilities; `price` discounted.
struct Prices {
    Column price, forward, strike, tau, discount, right;
};

// An output may be an input's own array; otherwise arrays don't overlap.
struct OptionKernels {
    void (*value)(const Options& options, size_t n, const Greeks& out);
    // volatility [n]: NaN where status [n] (VolatilityStatus of serving/black76.py) isn't 0.
    void (*implied)(const Prices& prices, size_t n, double* volatility, signed char* status);
};

// The table of a level; the level must be supported.
const OptionKernels& option_kernels(Isa isa);

// Each instruction set's file fills the table with its own.
namespace tables {
void portable(OptionKernels& table);
#if defined(STRIKEFORGE_X86)
void avx2(OptionKernels& table);
void avx512(OptionKernels& table);
#endif
}  // namespace tables

}  // namespace strikeforge
