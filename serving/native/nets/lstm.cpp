// pricing_lstm: stacked LSTM, attention pooling with the newest output as the query, projection
// (models/pricing_lstm.py).
//
// Ahead of the tick, `advance` computes U_l h_l(t-1) + b_l for every layer and what the pooling can know
// (lstm_memory.hpp). What is left for `evaluate`: W_l times the layer below, the cells' activations, the pooling's
// scores, the projection. In window semantics `advance` runs the next window's first T-1 steps from zero state, zero
// rows before the first.
#include <cmath>
#include <cstring>

#include "base/subnormals.hpp"
#include "dense/kernels.hpp"
#include "nets/encoder.hpp"
#include "nets/lstm_memory.hpp"

namespace strikeforge {

namespace {

// Torch stacks the gates as [i, f, g, o][H]; a cell reads blocks of 16 units, [block][i, f, g, o][16] (table.hpp).
std::vector<std::int32_t> gate_order(size_t hidden) {
    std::vector<std::int32_t> order;
    for (size_t block = 0; block < padded(hidden) / lanes; ++block)
        for (size_t gate = 0; gate < 4; ++gate)
            for (size_t lane = 0; lane < lanes; ++lane) {
                const size_t unit = block * lanes + lane;
                order.push_back(unit < hidden ? static_cast<std::int32_t>(gate * hidden + unit) : -1);
            }
    return order;
}

struct Layer {
    Precision of_input;       // of W: bf16 under int8 in the first layer
    Matrix input, recurrent;  // W, U
    Aligned<float> bias;      // both biases, in packed order
    Aligned<float> cell;      // after the last closed step
    Aligned<float> ahead;     // U h + b of the last closed step
    Aligned<float> next_cell, next_hidden;

    // Hidden outputs lie within +-1 and share a scale well; a market's step doesn't: one large feature would leave the
    // others no bits.
    Layer(Weights& weights, Precision precision, size_t index, size_t below, size_t hidden)
        : of_input(index == 0 && precision == Precision::int8 ? Precision::bf16 : precision) {
        const auto tensor = [&](const char* kind, const Shape& shape) {
            return weights.take("lstm." + std::string(kind) + "_l" + std::to_string(index), shape);
        };
        const auto order = gate_order(hidden);
        input = Matrix(of_input, tensor("weight_ih", {4 * hidden, below}), 4 * hidden, below, order);
        recurrent = Matrix(precision, tensor("weight_hh", {4 * hidden, hidden}), 4 * hidden, hidden, order);
        const float* input_bias = tensor("bias_ih", {4 * hidden});
        const float* recurrent_bias = tensor("bias_hh", {4 * hidden});
        bias = Aligned<float>(order.size());
        ahead = Aligned<float>(order.size());
        for (size_t place = 0; place < order.size(); ++place) {
            const auto row = static_cast<size_t>(order[place]);
            if (order[place] >= 0) bias[place] = input_bias[row] + recurrent_bias[row];
        }
        cell = Aligned<float>(padded(hidden));
        next_cell = Aligned<float>(padded(hidden));
        next_hidden = Aligned<float>(padded(hidden));
    }

    void clear() {
        cell.zero();
        std::memcpy(ahead.data(), bias.data(), bias.size() * sizeof(float));
    }
};

class Lstm final : public Encoder {
  public:
    Lstm(const Sizes& sizes, Weights& weights, const Choice& choice)
        : kernels_(dense_kernels(choice.isa)),
          choice_(choice),
          features_(sizes.take("step_features")),
          steps_(sizes.take("window")),
          hidden_(sizes.take("hidden")),
          memory_(weights, choice, steps_, hidden_, sizes.take("context")),
          gates_(4 * padded(hidden_)),
          operand_(4 * padded(std::max(features_, hidden_))),
          history_(choice.semantics == Semantics::window ? (steps_ - 1) * features_ : 0) {
        const size_t layers = sizes.take("layers", 1, 64);
        for (size_t index = 0; index < layers; ++index)
            layers_.emplace_back(weights, choice.precision, index, index == 0 ? features_ : hidden_, hidden_);
        reset();
    }

    void reset() override {
        const SubnormalsAreZero quickly;
        clear();
        history_.zero();
        oldest_ = 0;
        if (choice_.semantics == Semantics::window) run_history();
    }

    void evaluate(const float* x, float* context) override {
        const SubnormalsAreZero quickly;
        memory_.context_of(step(x), context);
    }

    void advance(const float* x) override {
        const SubnormalsAreZero quickly;
        if (choice_.semantics == Semantics::stateful) {
            commit(x);
        } else if (steps_ > 1) {
            std::memcpy(history_.data() + oldest_ * features_, x, features_ * sizeof(float));
            oldest_ = (oldest_ + 1) % (steps_ - 1);
            clear();
            run_history();
        }
    }

    size_t step_features() const override { return features_; }
    size_t window_steps() const override { return steps_; }
    size_t context_size() const override { return memory_.context_size(); }

  private:
    void clear() {
        for (Layer& layer : layers_) layer.clear();
        memory_.clear();
    }

    void run_history() {
        for (size_t row = 0; row + 1 < steps_; ++row)
            commit(history_.data() + (oldest_ + row) % (steps_ - 1) * features_);
    }

    // The top layer's output [padded(H)] of a step after the last closed one; every layer's next state is in its
    // scratch.
    const float* step(const float* x) {
        size_t width = features_;
        for (Layer& layer : layers_) {
            VectorView operand{operand_.data(), 1.0f};
            kernels_.load(layer.of_input, x, width, &operand);
            kernels_.gemv(layer.input.view(), operand, layer.ahead.data(), gates_.data());
            kernels_.lstm_cell(gates_.data(), layer.cell.data(), layer.next_cell.data(), layer.next_hidden.data(),
                               padded(hidden_));
            x = layer.next_hidden.data();
            width = hidden_;
        }
        return x;
    }

    void commit(const float* x) {
        memory_.remember(step(x));
        for (Layer& layer : layers_) {
            std::swap(layer.cell, layer.next_cell);
            VectorView operand{operand_.data(), 1.0f};
            kernels_.load(choice_.precision, layer.next_hidden.data(), hidden_, &operand);
            kernels_.gemv(layer.recurrent.view(), operand, layer.bias.data(), layer.ahead.data());
        }
    }

    const DenseKernels& kernels_;
    Choice choice_;
    size_t features_, steps_, hidden_;
    LstmMemory memory_;
    std::vector<Layer> layers_;
    Aligned<float> gates_;
    Aligned<std::uint8_t> operand_;
    Aligned<float> history_;  // window semantics: the last T-1 closed steps, a ring that begins at `oldest_`
    size_t oldest_ = 0;
};

}  // namespace

std::unique_ptr<Encoder> make_lstm(const Sizes& sizes, Weights& weights, const Choice& choice) {
    return std::make_unique<Lstm>(sizes, weights, choice);
}

}  // namespace strikeforge
