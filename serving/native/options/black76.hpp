// Black-76: prices, Greeks, implied volatilities of arrays of options, in double precision; prices and four Greeks also
// with single-precision arithmetic, for volatilities that are no better.
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

// For volatilities in single precision: each array [n], outputs [n] too; no array overlaps another.
struct SingleOptions {
    const double *forward, *strike, *tau;
    const float* volatility;
    const double *discount, *right;
};

struct SingleGreeks {
    double *price, *delta, *gamma, *vega, *theta;
};

// An output may be an input's own array; otherwise arrays don't overlap.
struct OptionKernels {
    void (*value)(const Options& options, size_t n, const Greeks& out);
    // volatility [n]: NaN where status [n] (VolatilityStatus of serving/black76.py) isn't 0.
    void (*implied)(const Prices& prices, size_t n, double* volatility, signed char* status);
    // As `value`, its arithmetic in single precision (single_avx512.cpp says with which error); null below AVX-512.
    void (*value_single)(const SingleOptions& options, size_t n, const SingleGreeks& out);
};

// The table of a level; the level must be supported.
const OptionKernels& option_kernels(Isa isa);

// Each instruction set's file fills the table with its own.
namespace tables {
void portable(OptionKernels& table);
#if defined(STRIKEFORGE_X86)
void avx2(OptionKernels& table);
void avx512(OptionKernels& table);
void single_avx512(OptionKernels& table);
#endif
}  // namespace tables

}  // namespace strikeforge
