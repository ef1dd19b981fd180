// surface_vae's answer at the latent's mean, one surface after the other (models/surface_vae.py, whose names these
// are).
//
// The two networks are matrices in the precision asked for; units, shapes, priors and the regime head stay fp32, summed
// in double precision. A host asks once a snapshot: this is written to be read.
#include "nets/surface.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/aligned.hpp"
#include "dense/kernels.hpp"

namespace strikeforge {

namespace {

constexpr double sharpness = 5.0;    // SHARPNESS
constexpr double shape_reach = 5.0;  // SHAPE_REACH

std::vector<float> copied(const float* from, size_t count) {
    return {from, from + count};
}

struct Linear {
    Matrix matrix;
    Aligned<float> bias;

    Linear(Weights& weights, const std::string& name, size_t rows, size_t columns, Precision precision)
        : matrix(precision, weights.take(name + ".weight", {rows, columns}), rows, columns), bias(padded(rows)) {
        std::copy_n(weights.take(name + ".bias", {rows}), rows, bias.data());
    }
};

// Linear, SiLU, linear, SiLU, linear. Inputs are written into `input`; the answer stands in `output`.
class Network {
  public:
    Aligned<float> input, output;

    Network(Weights& weights, const std::string& name, size_t inputs, size_t width, size_t outputs,
            const DenseKernels& kernels, Precision precision)
        : input(padded(inputs)),
          output(padded(outputs)),
          kernels_(kernels),
          precision_(precision),
          inputs_(inputs),
          width_(width),
          first_(weights, name + ".0", width, inputs, precision),
          second_(weights, name + ".3", width, width, precision),
          third_(weights, name + ".5", outputs, width, precision),
          hidden_(padded(width)),
          loaded_(padded(std::max(inputs, width))) {}

    void run() {
        multiply(first_, input.data(), inputs_, hidden_.data());
        kernels_.silu(hidden_.data(), hidden_.size());
        multiply(second_, hidden_.data(), width_, hidden_.data());
        kernels_.silu(hidden_.data(), hidden_.size());
        multiply(third_, hidden_.data(), width_, output.data());
    }

  private:
    void multiply(const Linear& linear, const float* x, size_t count, float* y) {
        VectorView loaded{loaded_.data(), 1.0f};
        kernels_.load(precision_, x, count, &loaded);
        kernels_.gemv(linear.matrix.view(), loaded, linear.bias.data(), y);
    }

    const DenseKernels& kernels_;
    const Precision precision_;
    const size_t inputs_, width_;
    Linear first_, second_, third_;
    Aligned<float> hidden_, loaded_;
};

// What one surface is given, as rows of the caller's arrays.
struct Known {
    const float *surface, *mask, *last, *last_mask, *move;
};

class SurfaceVae final : public SurfaceNet {
  public:
    SurfaceVae(const Sizes& sizes, Weights& weights, Isa isa, Precision precision)
        : cells_(sizes.take("cells")),
          moves_(sizes.take("moves")),
          regimes_(sizes.take("regimes")),
          latent_(sizes.take("latent")),
          shapes_(sizes.take("shapes")),
          width_(sizes.take("width")),
          level_(copied(weights.take("unit_level", {cells_}), cells_)),
          level_deviation_(copied(weights.take("unit_level_deviation", {cells_}), cells_)),
          change_deviation_(copied(weights.take("unit_change_deviation", {cells_}), cells_)),
          move_(copied(weights.take("unit_move", {moves_}), moves_)),
          move_deviation_(copied(weights.take("unit_move_deviation", {moves_}), moves_)),
          shape_weight_(copied(weights.take("shape_weight", {shapes_, cells_}), shapes_ * cells_)),
          shape_mean_(copied(weights.take("shape_mean", {shapes_}), shapes_)),
          shape_deviation_(copied(weights.take("shape_deviation", {shapes_}), shapes_)),
          regime_weight_(copied(weights.take("regime.weight", {regimes_, shapes_}), regimes_ * shapes_)),
          regime_bias_(copied(weights.take("regime.bias", {regimes_}), regimes_)),
          center_(copied(weights.take("center", {regimes_, latent_}), regimes_ * latent_)),
          pull_(copied(weights.take("pull.weight", {latent_, moves_}), latent_ * moves_)),
          encoder_(weights, "encoder", 3 * cells_ + 1 + moves_, width_, 2 * latent_, dense_kernels(isa), precision),
          decoder_(weights, "decoder", latent_ + cells_ + 1 + moves_, width_, 2 * cells_, dense_kernels(isa),
                   precision),
          base_(cells_),
          condition_(cells_ + 1 + moves_),
          shape_(shapes_) {}

    size_t cells() const override { return cells_; }
    size_t moves() const override { return moves_; }
    size_t latent() const override { return latent_; }
    size_t regimes() const override { return regimes_; }

    void answer(size_t count, const float* surface, const float* mask, const float* last, const float* last_mask,
                const float* move, float* completed, float* deviation, float* latent, float* surprise,
                float* regime) override {
        for (size_t row = 0; row < count; ++row) {
            const size_t cell = row * cells_;
            const Known known{surface + cell, mask + cell, last + cell, last_mask + cell, move + row * moves_};
            set_condition(known);
            encode(known);
            std::copy_n(encoder_.output.data(), latent_, latent + row * latent_);
            decode(completed + cell, deviation + cell);
            float* probability = regime + row * regimes_;
            set_regimes(known, completed + cell, probability);
            surprise[row] = surprise_under(probability);
        }
    }

  private:
    // What stands for the surface where nothing else is known, and what conditions both networks.
    void set_condition(const Known& known) {
        double given = 0.0;
        for (size_t cell = 0; cell < cells_; ++cell) given += known.last_mask[cell];
        const float seen = given > 0.0 ? 1.0f : 0.0f;
        for (size_t cell = 0; cell < cells_; ++cell) {
            base_[cell] = seen * known.last[cell] + (1.0f - seen) * level_[cell];
            condition_[cell] = std::clamp((base_[cell] - level_[cell]) / level_deviation_[cell], -5.0f, 5.0f);
        }
        condition_[cells_] = seen;
        for (size_t at = 0; at < moves_; ++at)
            condition_[cells_ + 1 + at] = std::clamp((known.move[at] - move_[at]) / move_deviation_[at], -5.0f, 5.0f);
    }

    // Mean and log variance of the latent into the encoder's output.
    void encode(const Known& known) {
        float* input = encoder_.input.data();
        for (size_t cell = 0; cell < cells_; ++cell) {
            const float change = (known.surface[cell] - base_[cell]) / change_deviation_[cell];
            input[cell] = known.mask[cell] * std::clamp(change, -10.0f, 10.0f);
            input[cells_ + cell] = known.mask[cell];
        }
        std::copy(condition_.begin(), condition_.end(), input + 2 * cells_);
        encoder_.run();
    }

    void decode(float* completed, float* deviation) {
        float* input = decoder_.input.data();
        std::copy_n(encoder_.output.data(), latent_, input);
        std::copy(condition_.begin(), condition_.end(), input + latent_);
        decoder_.run();
        const float *change = decoder_.output.data(), *spread = change + cells_;
        for (size_t cell = 0; cell < cells_; ++cell) {
            const float relative = change[cell] * change_deviation_[cell] / base_[cell];
            completed[cell] = base_[cell] * std::exp(std::clamp(relative, -1.0f, 1.0f));
            deviation[cell] = change_deviation_[cell] * std::exp(std::clamp(spread[cell], -5.0f, 3.0f));
        }
    }

    // Probabilities from the shape of the completed surface, known cells as they are.
    void set_regimes(const Known& known, const float* completed, float* probability) {
        for (size_t shape = 0; shape < shapes_; ++shape) {
            double sum = 0.0;
            for (size_t cell = 0; cell < cells_; ++cell) {
                const double volatility = static_cast<double>(known.mask[cell]) * known.surface[cell] +
                                          (1.0 - static_cast<double>(known.mask[cell])) * completed[cell];
                sum += volatility * volatility * shape_weight_[shape * cells_ + cell];
            }
            shape_[shape] = std::clamp((sum - shape_mean_[shape]) / shape_deviation_[shape], -shape_reach, shape_reach);
        }
        double largest = -INFINITY, total = 0.0;
        for (size_t regime = 0; regime < regimes_; ++regime) {
            const double logit = logit_of(regime);
            largest = std::isnan(logit) ? logit : std::max(largest, logit);
        }
        for (size_t regime = 0; regime < regimes_; ++regime) total += std::exp(logit_of(regime) - largest);
        for (size_t regime = 0; regime < regimes_; ++regime)
            probability[regime] = static_cast<float>(std::exp(logit_of(regime) - largest) / total);
    }

    double logit_of(size_t regime) const {
        double sum = regime_bias_[regime];
        for (size_t shape = 0; shape < shapes_; ++shape)
            sum += shape_[shape] * regime_weight_[regime * shapes_ + shape];
        return sharpness * sum;
    }

    // KL divergence of the latent from the regimes' priors, which the move pulls, in the mean over the regimes.
    float surprise_under(const float* probability) const {
        const float *mean = encoder_.output.data(), *log_variance = mean + latent_;
        const float* move = condition_.data() + cells_ + 1;
        double expected = 0.0;
        for (size_t at = 0; at < latent_; ++at) {
            const double log_spread = std::clamp(log_variance[at], -8.0f, 4.0f);
            const double spread = std::exp(log_spread) - log_spread - 1.0;
            double pulled = 0.0;
            for (size_t to = 0; to < moves_; ++to) pulled += static_cast<double>(pull_[at * moves_ + to]) * move[to];
            for (size_t regime = 0; regime < regimes_; ++regime) {
                const double distance = mean[at] - (center_[regime * latent_ + at] + pulled);
                expected += 0.5 * probability[regime] * (spread + distance * distance);
            }
        }
        return static_cast<float>(expected);
    }

    const size_t cells_, moves_, regimes_, latent_, shapes_, width_;
    const std::vector<float> level_, level_deviation_, change_deviation_, move_, move_deviation_;
    const std::vector<float> shape_weight_, shape_mean_, shape_deviation_, regime_weight_, regime_bias_, center_, pull_;
    Network encoder_, decoder_;
    std::vector<float> base_, condition_;
    std::vector<double> shape_;
};

}  // namespace

std::unique_ptr<SurfaceNet> make_surface(const Sizes& sizes, Weights& weights, Isa isa, Precision precision) {
    return std::make_unique<SurfaceVae>(sizes, weights, isa, precision);
}

}  // namespace strikeforge
