// The contracts around one underlying: their features under the tick's spot, and their values. Rules:
// docs/host-rules.md.
#pragma once

#include <cstddef>

#include "base/aligned.hpp"
#include "head/repricing.hpp"

namespace strikeforge {

// As the caller's table holds them; [count] each, copied.
struct ContractTable {
    size_t count;
    const double *strike, *tau, *carry, *discount, *right, *last_volatility;  // forward = carry * spot; tau in years
};

// How features become the head's input: (v - mean) / deviation, clipped, but for the columns left unscaled; [known].
struct ContractScaler {
    const double *mean, *deviation;
    const unsigned char* unscaled;
    double clip;
};

// After construction nothing allocates.
class Contracts {
  public:
    static constexpr size_t known_features = 8;
    // Where the engine's head takes more columns than are known, the rest are zeros; EngineProblem where it takes
    // fewer.
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
    float scaled(double value, size_t column) const;
    double reference_spot_, clip_;
    double mean_[known_features], deviation_[known_features];
    bool unscaled_[known_features];
    size_t columns_;  // K
    Aligned<double> strike_, tau_, carry_, discount_, right_, root_, forward_;
    Aligned<float> features_;  // [count, K]; the columns that don't move with the spot are filled once
    Aligned<double> price_, delta_, gamma_, vega_, theta_;
    Aligned<float> volatility_;
    Repricing repricing_;
};

}  // namespace strikeforge
