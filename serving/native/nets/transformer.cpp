// pricing_transformer: banded causal attention with a ring of keys and values (models/pricing_transformer.py).
//
// No step's keys and values depend on a later step, so `advance` leaves in every layer's ring all that the open step
// may look at, and `evaluate` is one step that writes nothing but scratch. A ring holds the band's closed steps, each
// in the slot of the one that leaves the band as it enters.
//
// `stateful`: the rings are carried; `unseen` hides the slots that no step has filled.
// `window`: the context is that of the last T rows alone, rows of zeros before the first. Two cases:
//   T > layers * (band - 1): the last row can't reach the window's edge, so carried rings give exactly the window's
//     context; after `reset` they hold rows of zeros.
//   else: the window's edge shows, and `advance` runs the next window's first T-1 rows afresh.
// In either case, the last layer of a row that isn't the window's last is needed for its keys and values only.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/aligned.hpp"
#include "base/subnormals.hpp"
#include "dense/kernels.hpp"
#include "nets/encoder.hpp"
#include "nets/transformer_kernels.hpp"

namespace strikeforge {

namespace {

constexpr float never = -std::numeric_limits<float>::infinity();

struct Shapes {
    size_t step_features, window, width, heads, layers, band, context;
    size_t dimensions;         // of a head
    size_t padded_dimensions;  // heads stand this far apart in queries, keys, values and their mix
    size_t steps;              // closed ones that a ring holds
    size_t slots;              // of its arrays

    explicit Shapes(const Sizes& sizes)
        : step_features(sizes.take("step_features")),
          window(sizes.take("window")),
          width(sizes.take("width")),
          heads(sizes.take("heads")),
          layers(sizes.take("layers")),
          band(sizes.take("band")),
          context(sizes.take("context")),
          dimensions(width / heads),
          padded_dimensions(padded(dimensions)),
          steps(band - 1),
          slots(padded(steps)) {
        if (width % heads)
            throw EngineProblem("manifest.json: model_config.heads: expected a divisor of width " +
                                std::to_string(width) + ", found " + std::to_string(heads));
    }

    size_t mixed() const { return heads * padded_dimensions; }
    // Where a head's dimension stands among padded ones.
    size_t place(size_t column) const { return column / dimensions * padded_dimensions + column % dimensions; }
};

Aligned<float> copied(const float* from, size_t count) {
    Aligned<float> out(padded(count));
    std::copy_n(from, count, out.data());
    return out;
}

struct Linear {
    Matrix matrix;
    Aligned<float> bias;

    Linear(Weights& weights, const std::string& name, size_t rows, size_t columns, Precision precision)
        : matrix(precision, weights.take(name + ".weight", {rows, columns}), rows, columns),
          bias(copied(weights.take(name + ".bias", {rows}), rows)) {}
    Linear(Matrix ready, Aligned<float> its_bias) : matrix(std::move(ready)), bias(std::move(its_bias)) {}
};

struct Norm {
    Aligned<float> gain, shift;

    Norm(Weights& weights, const std::string& name, size_t width)
        : gain(copied(weights.take(name + ".weight", {width}), width)),
          shift(copied(weights.take(name + ".bias", {width}), width)) {}
};

// Rows in the order [query, key, value][head][padded dimension].
Linear query_key_value(Weights& weights, const std::string& name, const Shapes& shapes, Precision precision) {
    const size_t rows = 3 * shapes.width;
    const float* matrix = weights.take(name + ".weight", {rows, shapes.width});
    const float* bias = weights.take(name + ".bias", {rows});
    std::vector<std::int32_t> order(3 * shapes.mixed(), -1);
    Aligned<float> ordered(order.size());
    for (size_t row = 0; row < rows; ++row) {
        const size_t place = row / shapes.width * shapes.mixed() + shapes.place(row % shapes.width);
        order[place] = static_cast<std::int32_t>(row);
        ordered[place] = bias[row];
    }
    return {Matrix(precision, matrix, rows, shapes.width, order), std::move(ordered)};
}

// Columns in the order [head][padded dimension].
Linear mix(Weights& weights, const std::string& name, const Shapes& shapes, Precision precision) {
    const float* matrix = weights.take(name + ".weight", {shapes.width, shapes.width});
    const float* bias = weights.take(name + ".bias", {shapes.width});
    std::vector<float> spread(shapes.width * shapes.mixed());
    for (size_t row = 0; row < shapes.width; ++row) {
        for (size_t column = 0; column < shapes.width; ++column)
            spread[row * shapes.mixed() + shapes.place(column)] = matrix[row * shapes.width + column];
    }
    return {Matrix(precision, spread.data(), shapes.width, shapes.mixed()), copied(bias, shapes.width)};
}

// The bias of each distance.
struct Biases {
    Aligned<float> open;  // distance 0, [head]
    // The others [head], backwards and twice over: slot s, read at `steps - next + s`, finds the bias of its distance,
    // (next - 1 - s) modulo steps, and 1. What padding finds doesn't matter: no step is ever seen there.
    Aligned<float> ring;
    size_t stride;

    Biases(const float* given, const Shapes& shapes)
        : open(shapes.heads), ring(shapes.heads * (shapes.steps + shapes.slots)), stride(shapes.steps + shapes.slots) {
        for (size_t head = 0; head < shapes.heads; ++head) {
            const float* bias = given + head * shapes.band;
            open[head] = bias[0];
            for (size_t at = 0; at < 2 * shapes.steps; ++at)
                ring[head * stride + at] = bias[(2 * shapes.steps - 1 - at) % shapes.steps + 1];
        }
    }
};

struct Layer {
    Norm attention_norm, forward_norm;
    Linear in, out, up, down;
    Biases biases;
    Aligned<float> keys, values;

    Layer(Weights& weights, const std::string& name, const Shapes& shapes, Precision precision)
        : attention_norm(weights, name + ".attention_norm", shapes.width),
          forward_norm(weights, name + ".forward_norm", shapes.width),
          in(query_key_value(weights, name + ".query_key_value", shapes, precision)),
          out(mix(weights, name + ".mix", shapes, precision)),
          up(weights, name + ".network.0", 2 * shapes.width, shapes.width, precision),
          down(weights, name + ".network.3", shapes.width, 2 * shapes.width, precision),
          biases(weights.take(name + ".distance_bias", {shapes.heads, shapes.band}), shapes),
          keys(shapes.width * shapes.slots),
          values(shapes.mixed() * shapes.slots) {}

    void put(const Shapes& shapes, size_t slot, const float* key, const float* value) {
        for (size_t column = 0; column < shapes.width; ++column)
            keys[column * shapes.slots + slot] = key[shapes.place(column)];
        for (size_t head = 0; head < shapes.heads; ++head)
            std::copy_n(value + head * shapes.padded_dimensions, shapes.padded_dimensions,
                        values.data() + (head * shapes.slots + slot) * shapes.padded_dimensions);
    }
};

class Transformer final : public Encoder {
  public:
    Transformer(const Sizes& sizes, Weights& weights, const Choice& choice)
        : shapes_(sizes),
          dense_(dense_kernels(choice.isa)),
          attention_(transformer_kernels(choice.isa)),
          semantics_(choice.semantics),
          carried_(choice.semantics == Semantics::stateful || shapes_.window > shapes_.layers * (shapes_.band - 1)),
          precision_(choice.precision),
          embed_(weights, "embed", shapes_.width, shapes_.step_features, Precision::fp32),
          norm_(weights, "norm", shapes_.width),
          project_(weights, "project", shapes_.context, shapes_.width, Precision::fp32),
          unseen_(shapes_.slots),
          rows_(carried_ ? 0 : (shapes_.window - 1) * shapes_.step_features),
          loaded_(padded(std::max({shapes_.step_features, 2 * shapes_.width, shapes_.mixed()}))),
          residual_(padded(shapes_.width)),
          normed_(padded(shapes_.width)),
          projected_(3 * shapes_.mixed()),
          mixed_(shapes_.mixed()),
          weight_(shapes_.slots),
          hidden_(padded(2 * shapes_.width)),
          context_(padded(shapes_.context)),
          zeros_(shapes_.step_features) {
        for (size_t layer = 0; layer < shapes_.layers; ++layer)
            layers_.emplace_back(weights, "layers." + std::to_string(layer), shapes_, choice.precision);
        reset();
    }

    void reset() override {
        const SubnormalsAreZero quickly;
        forget();
        if (semantics_ == Semantics::stateful) return;
        rows_.zero();
        oldest_ = 0;
        if (carried_) {
            for (size_t row = 0; row < shapes_.layers * (shapes_.band - 1); ++row) commit(zeros_.data());
        } else {
            run_rows();
        }
    }

    void evaluate(const float* x, float* context) override {
        const SubnormalsAreZero quickly;
        run(x, false);
        dense_.layer_norm(residual_.data(), norm_.gain.data(), norm_.shift.data(), shapes_.width, normed_.data());
        multiply(project_, Precision::fp32, normed_.data(), shapes_.width, project_.bias.data(), context_.data());
        dense_.tanh(context_.data(), context_.size());
        std::copy_n(context_.data(), shapes_.context, context);
    }

    void advance(const float* x) override {
        const SubnormalsAreZero quickly;
        if (carried_) {
            commit(x);
            return;
        }
        if (shapes_.window == 1) return;
        std::copy_n(x, shapes_.step_features, rows_.data() + oldest_ * shapes_.step_features);
        oldest_ = (oldest_ + 1) % (shapes_.window - 1);
        forget();
        run_rows();
    }

    size_t step_features() const override { return shapes_.step_features; }
    size_t window_steps() const override { return shapes_.window; }
    size_t context_size() const override { return shapes_.context; }

  private:
    // Empty rings: no step is seen but the open one.
    void forget() {
        for (Layer& layer : layers_) {
            layer.keys.zero();
            layer.values.zero();
        }
        std::fill_n(unseen_.data(), unseen_.size(), never);
        next_ = 0;
    }

    void run_rows() {
        for (size_t row = 0; row + 1 < shapes_.window; ++row)
            commit(rows_.data() + (oldest_ + row) % (shapes_.window - 1) * shapes_.step_features);
    }

    void commit(const float* x) {
        run(x, true);
        if (shapes_.steps == 0) return;
        unseen_[next_] = 0.0f;
        next_ = (next_ + 1) % shapes_.steps;
    }

    // The step `x` through the layers, its output into `residual_`. A step that is committed leaves its keys and values
    // in the rings, and of its last layer nothing else is needed.
    void run(const float* x, bool committed) {
        multiply(embed_, Precision::fp32, x, shapes_.step_features, embed_.bias.data(), residual_.data());
        for (Layer& layer : layers_) {
            normalise(layer.attention_norm);
            multiply(layer.in, precision_, normed_.data(), shapes_.width, layer.in.bias.data(), projected_.data());
            const bool enough = committed && &layer == &layers_.back();
            if (!enough) attend(layer);
            if (committed && shapes_.steps) layer.put(shapes_, next_, key(), value());  // over what leaves the band
            if (enough) return;
            add(layer.out.bias);
            multiply(layer.out, precision_, mixed_.data(), shapes_.mixed(), residual_.data(), residual_.data());
            normalise(layer.forward_norm);
            multiply(layer.up, precision_, normed_.data(), shapes_.width, layer.up.bias.data(), hidden_.data());
            dense_.silu(hidden_.data(), hidden_.size());
            add(layer.down.bias);
            multiply(layer.down, precision_, hidden_.data(), 2 * shapes_.width, residual_.data(), residual_.data());
        }
    }

    void attend(const Layer& layer) {
        attention_.attend({.query = projected_.data(),
                           .key = key(),
                           .value = value(),
                           .open_bias = layer.biases.open.data(),
                           .keys = layer.keys.data(),
                           .values = layer.values.data(),
                           .bias = layer.biases.ring.data() + shapes_.steps - next_,
                           .bias_stride = layer.biases.stride,
                           .unseen = unseen_.data(),
                           .heads = shapes_.heads,
                           .dimensions = shapes_.dimensions,
                           .padded_dimensions = shapes_.padded_dimensions,
                           .steps = shapes_.steps,
                           .slots = shapes_.slots,
                           .scale = 1.0f / std::sqrt(static_cast<float>(shapes_.dimensions)),
                           .weight = weight_.data(),
                           .out = mixed_.data()});
    }

    const float* key() const { return projected_.data() + shapes_.mixed(); }
    const float* value() const { return projected_.data() + 2 * shapes_.mixed(); }

    void multiply(const Linear& linear, Precision precision, const float* x, size_t count, const float* start,
                  float* y) {
        VectorView loaded{loaded_.data(), 1.0f};
        dense_.load(precision, x, count, &loaded);
        dense_.gemv(linear.matrix.view(), loaded, start, y);
    }

    void normalise(const Norm& norm) {
        dense_.layer_norm(residual_.data(), norm.gain.data(), norm.shift.data(), shapes_.width, normed_.data());
    }

    void add(const Aligned<float>& bias) {
        for (size_t i = 0; i < bias.size(); ++i) residual_[i] += bias[i];
    }

    const Shapes shapes_;
    const DenseKernels& dense_;
    const TransformerKernels& attention_;
    const Semantics semantics_;
    const bool carried_;
    const Precision precision_;
    Linear embed_;
    Norm norm_;
    Linear project_;
    std::vector<Layer> layers_;
    size_t next_ = 0;        // slot of the next step to be committed, in every ring
    Aligned<float> unseen_;  // [slots], 0 or -infinity
    Aligned<float> rows_;    // the window's closed rows [T-1, F], where they are needed
    size_t oldest_ = 0;      // of them
    Aligned<float> loaded_, residual_, normed_, projected_, mixed_, weight_, hidden_, context_, zeros_;
};

}  // namespace

std::unique_ptr<Encoder> make_transformer(const Sizes& sizes, Weights& weights, const Choice& choice) {
    return std::make_unique<Transformer>(sizes, weights, choice);
}

}  // namespace strikeforge
