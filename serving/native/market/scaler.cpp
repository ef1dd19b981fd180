#include "market/scaler.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace strikeforge {

namespace {

void check(bool good, const std::string& name, double found, const char* expected) {
    if (!good) throw std::invalid_argument(name + ": expected " + expected + ", found " + std::to_string(found));
}

}  // namespace

StepScaler::StepScaler(const double* mean, const double* deviation, size_t known, size_t padded, double clip)
    : mean_(mean, mean + known), deviation_(deviation, deviation + known), padded_(padded), clip_(clip) {
    check(known > 0 && padded >= known, "padded", static_cast<double>(padded), "at least the known columns, and one");
    check(std::isfinite(clip) && clip > 0, "clip", clip, "a number above 0");
    for (size_t column = 0; column < known; ++column) {
        const std::string place = " of column " + std::to_string(column);
        check(std::isfinite(mean[column]), "mean" + place, mean[column], "a number");
        const double found = deviation[column];
        check(std::isfinite(found) && found > 0, "deviation" + place, found, "a number above 0");
    }
}

double StepScaler::scale(const double* row, float* x) const {
    const size_t known = mean_.size();
    int clipped = 0;
    for (size_t column = 0; column < known; ++column) {
        const double scaled = (row[column] - mean_[column]) / deviation_[column];
        clipped += std::abs(scaled) >= clip_;
        x[column] = static_cast<float>(std::min(std::max(scaled, -clip_), clip_));
    }
    std::fill(x + known, x + padded_, 0.0f);
    return static_cast<double>(clipped) / static_cast<double>(known);
}

}  // namespace strikeforge
