// The contract head (models/contract_head.py): context [D] and contracts [N, K] -> implied volatility [N].
//
// The context's share of the first layer is the same for all contracts, so it is computed once a call and the rest is
// three small matrix products over tiles of contracts that stay in the first-level cache.
#pragma once

#include <cstddef>
#include <memory>

#include "base/cpu.hpp"
#include "dense/pack.hpp"
#include "nets/weights.hpp"

namespace strikeforge {

class Head {
  public:
    virtual ~Head() = default;
    virtual size_t contract_features() const = 0;
    virtual size_t context_size() const = 0;
    // contracts row-major [count, K], rows `stride` floats apart; iv[n] = share * volatility (added to what is there
    // where `add`). Nothing allocates.
    virtual void volatility(const float* context, const float* contracts, size_t count, size_t stride, float share,
                            bool add, float* iv) = 0;
};

// Takes `head.linear.*`, `head.network.*`, `head.trust`; sizes contract_features, context, head_width.
std::unique_ptr<Head> make_head(const Sizes& sizes, Weights& weights, Isa isa, Precision precision);

}  // namespace strikeforge
