// Packs a head's weights for the kernel that this CPU and precision get.
//
// Only the network's products are reduced: the prior, the linear term, the context's share of the first layer and the
// last layer stay in single precision. int8 weights have a scale per output; activations one per contract, found at
// run time, so a contract's answer doesn't depend on its neighbours.
#include "head/head.hpp"

#include <cmath>
#include <cstring>
#include <vector>

#include "head/kernels.hpp"

namespace strikeforge {

namespace {

constexpr float unit = 0.01f;  // ContractHeadConfig.unit: fixed, no configuration changes it

HeadPlan plan_for(Isa isa, Precision precision) {
#if defined(STRIKEFORGE_X86)
    if (precision == Precision::bf16 && isa >= Isa::amx) return heads::amx_bf16();
    if (precision == Precision::int8 && isa >= Isa::amx) return heads::amx_int8();
    if (precision == Precision::bf16 && isa >= Isa::bf16) return heads::bf16_bf16();
    if (precision == Precision::int8 && isa >= Isa::vnni) return heads::vnni_int8();
    if (isa >= Isa::avx512) return heads::avx512();
    if (isa >= Isa::avx2) return heads::avx2();
#else
    (void)isa, (void)precision;
#endif
    return heads::portable();
}

struct Rows {  // a matrix as models/ stores it, row-major
    const float* data;
    size_t rows, columns, stride;
    float at(size_t row, size_t column) const { return data[row * stride + column]; }
};

size_t in_word(Precision precision) {
    return precision == Precision::fp32 ? 1 : precision == Precision::bf16 ? 2 : 4;
}

// A layer's weights as its kernel multiplies them (`as`), rounded to the precision `asked` for.
struct PackedProduct {
    Aligned<std::uint32_t> weights;
    Aligned<float> scale;
    std::vector<float> row_sums;  // scale * sum of a row's q; 0 unless int8 is multiplied
    size_t groups;

    PackedProduct(const Rows& from, size_t width, const HeadPlan& plan, Precision as, Precision asked)
        : scale(width), row_sums(width) {
        const size_t group = in_word(as);
        groups = (padded(from.columns, group)) / group;
        if (plan.layout != HeadLayout::blocks) groups = padded(groups, 16);
        weights = Aligned<std::uint32_t>(width * groups);
        auto* bytes = reinterpret_cast<std::uint8_t*>(weights.data());
        for (size_t row = 0; row < from.rows; ++row) {
            float largest = 0.0f;
            for (size_t k = 0; k < from.columns; ++k) largest = std::fmax(largest, std::fabs(from.at(row, k)));
            scale[row] = largest > 0.0f ? largest / 127.0f : 1.0f;
            for (size_t k = 0; k < from.columns; ++k) {
                const float weight = from.at(row, k);
                const float whole = std::nearbyint(weight / scale[row]);
                std::uint8_t* to = bytes + (word(plan, row, k / group) * group + k % group) * (4 / group);
                if (as == Precision::int8) {
                    const auto q = static_cast<std::int8_t>(whole);
                    row_sums[row] += scale[row] * static_cast<float>(q);
                    std::memcpy(to, &q, 1);
                } else if (as == Precision::bf16) {
                    const std::uint16_t half = to_bf16(weight);
                    std::memcpy(to, &half, 2);
                } else {
                    const float value = asked == Precision::fp32   ? weight
                                        : asked == Precision::bf16 ? from_bf16(to_bf16(weight))
                                                                   : whole * scale[row];
                    std::memcpy(to, &value, 4);
                }
            }
        }
    }

    size_t word(const HeadPlan& plan, size_t row, size_t group) const {
        if (plan.layout == HeadLayout::blocks)
            return (row / plan.block * groups + group) * plan.block + row % plan.block;
        const size_t tile = (row / 16 * (groups / 16) + group / 16) * 16 * 16;
        if (plan.layout == HeadLayout::tiles) return tile + row % 16 * 16 + group % 16;
        return tile + group % 16 * 16 + row % 16;
    }

    HeadProduct view() const { return {groups, weights.data(), scale.data()}; }
};

// What head_rows_amx.cpp multiplies: 16 features' weights twice a step, ...
std::vector<float> twice(const float* from, size_t rows, size_t columns, size_t stride) {
    const size_t width = 2 * padded(columns, 16);
    std::vector<float> out(rows * width);
    for (size_t row = 0; row < rows; ++row) {
        for (size_t k = 0; k < columns; ++k) {
            float* to = out.data() + row * width + k / 16 * 32 + k % 16;
            to[0] = to[16] = from[row * stride + k];
        }
    }
    return out;
}

// ... the weights of activations that are 2^-112 of what they stand for, ...
std::vector<float> enlarged(const float* from, size_t count) {
    std::vector<float> out(from, from + count);
    for (float& weight : out) weight = std::ldexp(weight, 112);
    return out;
}

// ... and a column as two of bf16, the upper and the lower parts of its weights: words [padded / 2][2].
Aligned<float> column_words(const std::vector<float>& column) {
    Aligned<float> words(padded(column.size(), 32));
    auto* bytes = reinterpret_cast<std::uint8_t*>(words.data());
    for (size_t k = 0; k < column.size(); ++k) {
        const std::uint16_t upper = to_bf16(column[k]), lower = to_bf16(column[k] - from_bf16(upper));
        std::memcpy(bytes + 8 * (k / 2) + 2 * (k % 2), &upper, 2);
        std::memcpy(bytes + 8 * (k / 2) + 4 + 2 * (k % 2), &lower, 2);
    }
    return words;
}

Aligned<float> copy(const float* from, size_t count, size_t room) {
    Aligned<float> out(room);
    std::memcpy(out.data(), from, count * sizeof(float));
    return out;
}

class ContractHead final : public Head {
  public:
    ContractHead(size_t features, size_t context, size_t width, Weights& weights, const HeadPlan& plan,
                 Precision precision)
        : ContractHead(features, context, width, weights.take("head.network.0.weight", {width, features + context}),
                       weights.take("head.network.3.weight", {width, width}), weights, plan, precision) {}

    size_t contract_features() const override { return view_.features; }
    size_t context_size() const override { return view_.context; }

    void volatility(const float* context, const float* contracts, size_t count, size_t stride, float share, bool add,
                    float* iv) override {
        kernel_(view_, context, contracts, count, stride, share, add, iv);
    }

  private:
    ContractHead(size_t features, size_t context, size_t width, const float* first, const float* second,
                 Weights& weights, const HeadPlan& plan, Precision precision)
        : kernel_(plan.kernel),
          wide_(padded(width, plan.width_multiple)),
          first_(pack_first(first, features, context, width, plan, precision)),
          second_(pack_second(second, width, plan, precision)),
          context_weights_(context * wide_),
          first_bias_(copy(weights.take("head.network.0.bias", {width}), width, wide_)),
          second_bias_(copy(weights.take("head.network.3.bias", {width}), width, wide_)),
          silu_table_(plan.layout == HeadLayout::rows ? half_silu_table() : silu_table()) {
        const float* last = weights.take("head.network.6.weight", {1, width});
        const float* linear = weights.take("head.linear.weight", {1, features});
        const bool rows = plan.layout == HeadLayout::rows;
        last_ = rows ? column_words(enlarged(last, width)) : copy(last, width, wide_);
        linear_ = rows ? column_words(twice(linear, 1, features, features)) : copy(linear, features, features);
        for (size_t w = 0; w < width; ++w) {
            for (size_t d = 0; d < context; ++d)
                context_weights_[d * wide_ + w] = first[w * (features + context) + features + d];
            second_bias_[w] -= silu_offset * second_.row_sums[w];
        }
        if (plan.layout == HeadLayout::tiles) {  // the same for 16 contracts, as sums of tiles begin
            Aligned<float> spread(wide_ * 16);
            for (size_t at = 0; at < wide_ * 16; ++at) spread[at] = second_bias_[at / 16];
            second_bias_ = std::move(spread);
        }
        scratch_ = Aligned<float>(head_scratch(features, wide_, first_.groups, second_.groups));
        const float bias = *weights.take("head.linear.bias", {1}) + *weights.take("head.network.6.bias", {1});
        const float trust = *weights.take("head.trust", {});
        view_ = {features,
                 context,
                 wide_,
                 first_.view(),
                 second_.view(),
                 context_weights_.data(),
                 first_bias_.data(),
                 second_bias_.data(),
                 last_.data(),
                 linear_.data(),
                 silu_table_.data(),
                 bias,
                 trust,
                 unit,
                 scratch_.data()};
    }

    PackedProduct pack_first(const float* first, size_t features, size_t context, size_t width, const HeadPlan& plan,
                             Precision precision) const {
        const Precision asked = precision == Precision::int8 ? Precision::fp32 : precision;
        if (plan.layout != HeadLayout::rows)
            return {{first, width, features, features + context}, wide_, plan, plan.first, asked};
        const std::vector<float> both = twice(first, width, features, features + context);
        const size_t columns = both.size() / width;
        return {{both.data(), width, columns, columns}, wide_, plan, plan.first, asked};
    }

    PackedProduct pack_second(const float* second, size_t width, const HeadPlan& plan, Precision precision) const {
        if (plan.layout != HeadLayout::rows)
            return {{second, width, width, width}, wide_, plan, plan.second, precision};
        const std::vector<float> large = enlarged(second, width * width);
        return {{large.data(), width, width, width}, wide_, plan, plan.second, precision};
    }

    // Room for what tile.hpp's `places`, head_rows_amx.cpp and the portable kernel lay out.
    static size_t head_scratch(size_t features, size_t width, size_t first_groups, size_t second_groups) {
        return 16 * width + most_tile_contracts * (features + first_groups + second_groups + width);
    }

    struct Parabola {
        double c0, c1, c2;
    };

    // Through y(x) at the Chebyshev nodes of [low, high].
    template <class Function>
    static Parabola parabola(double low, double high, Function function) {
        double x[3], y[3];
        for (int node = 0; node < 3; ++node) {
            x[node] = 0.5 * (low + high) + 0.5 * (high - low) * std::cos(M_PI * (2 * node + 1) / 6.0);
            y[node] = function(x[node]);
        }
        const double slope01 = (y[1] - y[0]) / (x[1] - x[0]), slope12 = (y[2] - y[1]) / (x[2] - x[1]);
        const double curve = (slope12 - slope01) / (x[2] - x[0]);  // Newton's divided differences
        return {y[0] - x[0] * slope01 + x[0] * x[1] * curve, slope01 - (x[0] + x[1]) * curve, curve};
    }

    // -a sigmoid(-a) in 16 pieces of [0, end]; piece i is what rounds to i, so the first and the last are half as wide
    // as the others. [3][16], constants first.
    static Aligned<float> silu_table() {
        Aligned<float> table(3 * 16);
        const double step = static_cast<double>(silu_table_end) / 15.49;
        for (int piece = 0; piece < 16; ++piece) {
            const double low = piece == 0 ? 0.0 : (piece - 0.5) * step;
            const double high = piece == 15 ? static_cast<double>(silu_table_end) : (piece + 0.5) * step;
            const Parabola p = parabola(low, high, [](double a) { return -a / (1.0 + std::exp(a)); });
            table[piece] = static_cast<float>(p.c0);
            table[16 + piece] = static_cast<float>(p.c1);
            table[32 + piece] = static_cast<float>(p.c2);
        }
        return table;
    }

    // SiLU itself, in coefficients that fp16 holds: 32 pieces, 0 in the first and x in the last. [3][32]. What rounding
    // a coefficient takes away, the constant gives back in the piece's middle.
    static Aligned<float> half_silu_table() {
        Aligned<float> table(3 * 32);
        const auto silu = [](double x) { return x / (1.0 + std::exp(-x)); };
        const auto half = [](double x) {  // 11 bits
            int exponent = 0;
            const double mantissa = std::frexp(x, &exponent);
            return std::ldexp(std::nearbyint(std::ldexp(mantissa, 11)), exponent - 11);
        };
        for (int piece = 1; piece < 31; ++piece) {
            const double middle = (piece - 16) * static_cast<double>(half_silu_step);
            const double wide = 0.5 * static_cast<double>(half_silu_step);
            const Parabola p = parabola(middle - wide, middle + wide, silu);
            const double c2 = half(p.c2), c1 = half(p.c1 + 2.0 * middle * (p.c2 - c2));
            const double c0 = half(p.c0 + middle * (p.c1 - c1) + middle * middle * (p.c2 - c2));
            table[piece] = static_cast<float>(c0);
            table[32 + piece] = static_cast<float>(c1);
            table[64 + piece] = static_cast<float>(c2);
        }
        table[32 + 31] = 1.0f;
        return table;
    }

    HeadKernel kernel_;
    size_t wide_;
    PackedProduct first_, second_;
    Aligned<float> context_weights_, first_bias_, second_bias_, last_, linear_, silu_table_, scratch_;
    HeadView view_{};
};

}  // namespace

std::unique_ptr<Head> make_head(const Sizes& sizes, Weights& weights, Isa isa, Precision precision) {
    constexpr size_t anchored = 2;  // the last of the unscaled columns the formula itself reads
    const size_t features = sizes.take("contract_features", anchored + 1), context = sizes.take("context");
    const size_t width = sizes.take("head_width");
    return std::make_unique<ContractHead>(features, context, width, weights, plan_for(isa, precision), precision);
}

}  // namespace strikeforge
