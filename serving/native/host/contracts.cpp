// Features in the order of docs/host-rules.md "Contracts"; head and Black-76 are head/repricing.hpp's.
#include "host/contracts.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace strikeforge {

namespace {

enum Column : size_t { prior, sqrt_tau, anchored, moneyness, moneyness_squared, move, move_moneyness, side };
static_assert(side + 1 == Contracts::known_features);

Aligned<double> copied(const double* from, size_t count) {
    Aligned<double> to(count);
    std::copy_n(from, count, to.data());
    return to;
}

}  // namespace

Contracts::Contracts(const ContractTable& table, const ContractScaler& scaler, double reference_spot,
                     NativeEngine& engine, const OptionKernels& kernels)
    : reference_spot_(reference_spot),
      clip_(scaler.clip),
      columns_(engine.contract_features()),
      strike_(copied(table.strike, table.count)),
      tau_(copied(table.tau, table.count)),
      carry_(copied(table.carry, table.count)),
      discount_(copied(table.discount, table.count)),
      right_(copied(table.right, table.count)),
      root_(table.count),
      forward_(table.count),
      features_(table.count * engine.contract_features()),
      price_(table.count),
      delta_(table.count),
      gamma_(table.count),
      vega_(table.count),
      theta_(table.count),
      volatility_(table.count),
      repricing_(engine, kernels) {
    if (columns_ < known_features)
        throw EngineProblem("the head takes " + std::to_string(columns_) + " contract features, the loop gives " +
                            std::to_string(known_features));
    for (size_t column = 0; column < known_features; ++column) {
        mean_[column] = scaler.mean[column];
        deviation_[column] = scaler.deviation[column];
        unscaled_[column] = scaler.unscaled[column] != 0;
    }
    constexpr double nothing = std::numeric_limits<double>::quiet_NaN();
    for (size_t i = 0; i < table.count; ++i) {
        root_[i] = std::sqrt(tau_[i]);
        float* row = features_.data() + i * columns_;
        row[prior] = scaled(table.last_volatility[i], prior);
        row[sqrt_tau] = scaled(root_[i], sqrt_tau);
        row[anchored] = scaled(1.0, anchored);
        row[side] = scaled(right_[i], side);
        price_[i] = delta_[i] = gamma_[i] = vega_[i] = theta_[i] = nothing;
        volatility_[i] = std::numeric_limits<float>::quiet_NaN();
    }
}

float Contracts::scaled(double value, size_t column) const {
    if (unscaled_[column]) return static_cast<float>(value);
    return static_cast<float>(std::min(std::max((value - mean_[column]) / deviation_[column], -clip_), clip_));
}

void Contracts::value(const float* context, double spot, size_t first, size_t count) {
    const double of_spot = std::log(spot / reference_spot_);
    for (size_t i = first; i < first + count; ++i) {
        forward_[i] = carry_[i] * spot;
        const double m = std::min(std::max(std::log(strike_[i] / forward_[i]) / root_[i], -1.0), 1.0);
        const double moved = of_spot / root_[i];
        float* row = features_.data() + i * columns_;
        row[moneyness] = scaled(m, moneyness);
        row[moneyness_squared] = scaled(m * m, moneyness_squared);
        row[move] = scaled(moved, move);
        row[move_moneyness] = scaled(moved * m, move_moneyness);
    }
    const ChainView chain{count,
                          features_.data() + first * columns_,
                          forward_.data() + first,
                          strike_.data() + first,
                          tau_.data() + first,
                          discount_.data() + first,
                          right_.data() + first};
    repricing_.run_with(context, chain,
                        {volatility_.data() + first, price_.data() + first, delta_.data() + first,
                         gamma_.data() + first, vega_.data() + first, theta_.data() + first});
    for (size_t i = first; i < first + count; ++i) {
        delta_[i] = delta_[i] * carry_[i];
        gamma_[i] = gamma_[i] * carry_[i] * carry_[i];
    }
}

}  // namespace strikeforge
