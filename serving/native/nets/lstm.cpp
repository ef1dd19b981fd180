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

// A power of two near the largest magnitude of a column, so that scaling by it rounds nothing.
float scale_of(const float* column, size_t rows, size_t stride) {
    float largest = 0.0f;
    for (size_t row = 0; row < rows; ++row) largest = std::fmax(largest, std::fabs(column[row * stride]));
    int exponent = 0;
    std::frexp(largest, &exponent);
    return largest > smallest_scaled ? std::ldexp(1.0f, exponent) : 1.0f;
}

// The first layer under int8 is split. Hidden outputs lie within +-1 and share a scale well; the features of a market's
// step share none, and a large one would leave the others no bits. So W's columns are brought to one size, the features
// take what that costs, and the step goes in twice: rounded and, on a scale of its own, what rounding left (16 bits).
struct Layer {
    bool split;
    Aligned<float> column_scale;  // W[:, c] is packed divided by it; ones where not split
    Matrix input, recurrent;      // W, U
    Aligned<float> bias;          // both biases, in packed order
    Aligned<float> cell;          // after the last closed step
    Aligned<float> ahead;         // U h + b of the last closed step
    Aligned<float> next_cell, next_hidden;

    Layer(Weights& weights, Precision precision, size_t index, size_t below, size_t hidden)
        : split(precision == Precision::int8 && index == 0) {
        const auto tensor = [&](const char* kind, const Shape& shape) {
            return weights.take("lstm." + std::string(kind) + "_l" + std::to_string(index), shape);
        };
        const auto order = gate_order(hidden);
        const float* w = tensor("weight_ih", {4 * hidden, below});
        std::vector<float> unit_columns(w, w + 4 * hidden * below);
        column_scale = Aligned<float>(below);
        for (size_t column = 0; column < below; ++column) {
            column_scale[column] = split ? scale_of(w + column, 4 * hidden, below) : 1.0f;
            for (size_t row = 0; row < 4 * hidden; ++row) unit_columns[row * below + column] /= column_scale[column];
        }
        input = Matrix(precision, unit_columns.data(), 4 * hidden, below, order);
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
          rest_(padded(features_)),
          rest_operand_(padded(features_)),
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
            if (layer.split) {
                multiply_in_two(layer, x);
            } else {
                VectorView operand{operand_.data(), 1.0f};
                kernels_.load(choice_.precision, x, width, &operand);
                kernels_.gemv(layer.input.view(), operand, layer.ahead.data(), gates_.data());
            }
            kernels_.lstm_cell(gates_.data(), layer.cell.data(), layer.next_cell.data(), layer.next_hidden.data(),
                               padded(hidden_));
            x = layer.next_hidden.data();
            width = hidden_;
        }
        return x;
    }

    // Each panel of weights meets both halves of the step while it lies in the first-level cache.
    void multiply_in_two(const Layer& layer, const float* x) {
        VectorView rounded{operand_.data(), 1.0f}, rest{rest_operand_.data(), 1.0f};
        for (size_t i = 0; i < features_; ++i) rest_[i] = x[i] * layer.column_scale[i];
        kernels_.load(Precision::int8, rest_.data(), features_, &rounded);
        for (size_t i = 0; i < features_; ++i) rest_[i] -= rounded.scale * (static_cast<float>(operand_[i]) - 128.0f);
        kernels_.load(Precision::int8, rest_.data(), features_, &rest);
        for (size_t index = 0; index < layer.input.panels(); ++index) {
            const MatrixView panel = layer.input.panel(index);
            const size_t first = index * panel_vectors * lanes;
            kernels_.gemv(panel, rounded, layer.ahead.data() + first, gates_.data() + first);
            kernels_.gemv(panel, rest, gates_.data() + first, gates_.data() + first);
        }
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
    Aligned<float> rest_;  // of a split step: what rounding leaves
    Aligned<std::uint8_t> rest_operand_;
    Aligned<float> history_;  // window semantics: the last T-1 closed steps, a ring that begins at `oldest_`
    size_t oldest_ = 0;
};

}  // namespace

std::unique_ptr<Encoder> make_lstm(const Sizes& sizes, Weights& weights, const Choice& choice) {
    return std::make_unique<Lstm>(sizes, weights, choice);
}

}  // namespace strikeforge
