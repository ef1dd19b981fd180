// pricing_transformer: banded causal attention with a ring of keys and values (models/pricing_transformer.py).
#include "nets/encoder.hpp"

namespace strikeforge {

std::unique_ptr<Encoder> make_transformer(const Sizes&, Weights&, const Choice&) {
    throw EngineProblem("native: pricing_transformer isn't built yet");
}

}  // namespace strikeforge
