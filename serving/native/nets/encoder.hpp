// What every encoder of a market sequence is to the engine: the Engine contract of serving/engine.py without the head.
#pragma once

#include <cstddef>
#include <memory>

#include "base/cpu.hpp"
#include "dense/pack.hpp"
#include "nets/weights.hpp"

namespace strikeforge {

enum class Semantics { window, stateful };

// One net's encoder. Not thread-safe. After construction nothing allocates.
class Encoder {
  public:
    virtual ~Encoder() = default;
    virtual void reset() = 0;
    // Context [D] as if the open step were `x` [F]; commits nothing. The tick's path.
    virtual void evaluate(const float* x, float* context) = 0;
    // Commit the closed step `x` [F] and compute all that doesn't depend on the next one.
    virtual void advance(const float* x) = 0;
    virtual size_t step_features() const = 0;
    virtual size_t window_steps() const = 0;
    virtual size_t context_size() const = 0;
};

struct Choice {
    Isa isa;
    Precision precision;
    Semantics semantics;
};

// Take their tensors from `weights`; EngineProblem names what is wrong.
std::unique_ptr<Encoder> make_lstm(const Sizes& sizes, Weights& weights, const Choice& choice);
std::unique_ptr<Encoder> make_transformer(const Sizes& sizes, Weights& weights, const Choice& choice);

}  // namespace strikeforge
