// In batches that stay in the cache: head, volatilities to double, Black-76.
#include "head/repricing.hpp"

#include <algorithm>
#include <limits>

namespace strikeforge {

namespace {
// Whole tiles of every kernel (48, 32, 24), and few enough for inputs and outputs to stay in the second-level cache.
constexpr size_t batch = 960;

// Where Black-76 took a volatility of zero and answered the intrinsic value; it refuses others that aren't positive.
void refuse_zeros(const RepricedView& out, size_t at, size_t count) {
    size_t zeros = 0;
    for (size_t i = at; i < at + count; ++i) zeros += out.volatility[i] == 0.0f ? 1 : 0;
    if (zeros == 0) return;
    for (size_t i = at; i < at + count; ++i) {
        if (out.volatility[i] != 0.0f) continue;
        for (double* values : {out.price, out.delta, out.gamma, out.vega, out.theta})
            values[i] = std::numeric_limits<double>::quiet_NaN();
    }
}
}  // namespace

Repricing::Repricing(NativeEngine& engine, const OptionKernels& kernels, Arithmetic arithmetic)
    : engine_(engine),
      kernels_(kernels),
      single_(arithmetic == Arithmetic::single && kernels.value_single != nullptr),
      context_(engine.context_size()),
      volatility_(batch) {}

void Repricing::run(const float* x, const ChainView& chain, const RepricedView& out) {
    engine_.evaluate(x, context_.data());
    run_with(context_.data(), chain, out);
}

void Repricing::run_with(const float* context, const ChainView& chain, const RepricedView& out) {
    const size_t features = engine_.contract_features();
    for (size_t at = 0; at < chain.count; at += batch) {
        const size_t count = std::min(batch, chain.count - at);
        engine_.head(context, chain.contracts + at * features, count, features, out.volatility + at);
        if (single_) {
            kernels_.value_single({chain.forward + at, chain.strike + at, chain.tau + at, out.volatility + at,
                                   chain.discount + at, chain.right + at},
                                  count,
                                  {out.price + at, out.delta + at, out.gamma + at, out.vega + at, out.theta + at});
            refuse_zeros(out, at, count);
            continue;
        }
        for (size_t i = 0; i < count; ++i) {
            const float found = out.volatility[at + i];
            volatility_[i] = found > 0.0f ? static_cast<double>(found) : std::numeric_limits<double>::quiet_NaN();
        }
        const Options options{{chain.forward + at, 1}, {chain.strike + at, 1},   {chain.tau + at, 1},
                              {volatility_.data(), 1}, {chain.discount + at, 1}, {chain.right + at, 1}};
        const Greeks greeks{out.price + at, out.delta + at, out.gamma + at, out.vega + at,
                            out.theta + at, nullptr,        nullptr,        nullptr};
        kernels_.value(options, count, greeks);
    }
}

}  // namespace strikeforge
