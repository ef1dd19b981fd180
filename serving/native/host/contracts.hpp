// The contracts around one underlying: their features under the tick's spot, and their values. Rules:
// docs/host-rules.md.
#pragma once

#include <cstddef>
#include <vector>

#include "base/aligned.hpp"
#include "head/repricing.hpp"

namespace strikeforge {

// As the caller's table holds them; [count] each, copied.
struct ContractTable {
    size_t count;
    const double *strike, *tau, *carry, *discount, *right, *last_volatility;  // forward = carry * spot; tau in years
};

// How features become the head's input: (v - mean) / deviation, clipped, but for the columns left unscaled; [K] each.
struct ContractScaler {
    size_t columns;  // K: the first known_features are computed, the rest are zeros
    const double *mean, *deviation;
    const unsigned char* unscaled;
    double clip;
};

class Contracts {
  public:
    static constexpr size_t known_features = 8;
    Contracts(const ContractTable& table, const ContractScaler& scaler, double reference_spot, NativeEngine& engine,
              const OptionKernels& kernels);
    // Values of the contracts [first, first + count) under `spot` and a context the engine gave: volatility, price and
    // Greeks with respect to the spot (delta_forward * carry, gamma_forward * carry^2).
    void value(const float* context, double spot, size_t first, size_t count);
    size_t count() const { return strike_.size(); }
    const double* price() const { return price_.data(); }
    const double* delta() const { return delta_.data(); }
    const double* gamma() const { return gamma_.data(); }
    const double* vega() const { return vega_.data(); }
    const double* theta() const { return theta_.data(); }
    const float* volatility() const { return volatility_.data(); }

  private:
    // the author of host/contracts.cpp fills these in
    Aligned<double> strike_, price_, delta_, gamma_, vega_, theta_;
    Aligned<float> volatility_;
};

}  // namespace strikeforge
