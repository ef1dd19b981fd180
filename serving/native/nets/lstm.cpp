// pricing_lstm: stacked LSTM, attention pooling with the newest output as the query, projection
// (models/pricing_lstm.py).
//
// Ahead of the tick, `advance` computes U_l h_l(t-1) + b_l for every layer. What is left for `evaluate`: W_l times the
// layer below, the cell's activations, the newest output's scores against the T-1 outputs before it, the projection.
#include "nets/encoder.hpp"

namespace strikeforge {

std::unique_ptr<Encoder> make_lstm(const Sizes&, Weights&, const Choice&) {
    throw EngineProblem("native: pricing_lstm isn't built yet");
}

}  // namespace strikeforge
