// The row of a market step as the net takes it: (v - mean) / deviation, clipped, rounded to float, padded with zeros.
// docs/host-rules.md, "Scaling".
#pragma once

#include <cstddef>
#include <vector>

namespace strikeforge {

class StepScaler {
  public:
    // `mean`, `deviation` [known], copied; std::invalid_argument unless finite, deviation and clip > 0, padded >=
    // known.
    StepScaler(const double* mean, const double* deviation, size_t known, size_t padded, double clip);
    // `row` [known] to `x` [padded]; the share of the known columns that reach the clip. Allocates nothing.
    double scale(const double* row, float* x) const;
    size_t known() const { return mean_.size(); }
    size_t padded() const { return padded_; }

  private:
    std::vector<double> mean_, deviation_;
    size_t padded_;
    double clip_;
};

}  // namespace strikeforge
