// One tick of the underlying -> every contract's volatility, price and Greeks, in one call.
#pragma once

#include <cstddef>

#include "base/aligned.hpp"
#include "nets/engine.hpp"
#include "options/black76.hpp"

namespace strikeforge {

// A chain as the caller keeps it; the caller may write into the arrays between calls. Units as in serving/black76.py.
struct ChainView {
    size_t count;
    const float* contracts;  // [count, K], scaled
    const double *forward, *strike, *tau, *discount, *right;
};

// The caller's memory, [count] each.
struct RepricedView {
    float* volatility;
    double *price, *delta, *gamma, *vega, *theta;
};

enum class Arithmetic { doubles, single };

// Not thread-safe, like its engine. After construction nothing allocates.
class Repricing {
  public:
    // `arithmetic` single: where the kernels have it, Black-76 in single precision (single_avx512.cpp states the
    // error).
    Repricing(NativeEngine& engine, const OptionKernels& kernels, Arithmetic arithmetic = Arithmetic::doubles);
    // The open step `x` [F] is evaluated, not committed.
    void run(const float* x, const ChainView& chain, const RepricedView& out);
    // The same with the context [D] already known.
    void run_with(const float* context, const ChainView& chain, const RepricedView& out);

  private:
    NativeEngine& engine_;
    const OptionKernels& kernels_;
    bool single_;
    Aligned<float> context_;
    Aligned<double> volatility_;  // of one batch, as Black-76 takes it
};

}  // namespace strikeforge
