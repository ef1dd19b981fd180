#include "head/head.hpp"

namespace strikeforge {

std::unique_ptr<Head> make_head(const Sizes&, Weights&, Isa, Precision) {
    throw EngineProblem("native: the contract head isn't built yet");
}

}  // namespace strikeforge
