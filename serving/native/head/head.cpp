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
    if (precision == Precision::fp32 && isa >= Isa::amx) return heads::amx_fp32();
    if (precision == Precision::bf16 && isa >= Isa::amx) return heads::amx_bf16();
    if (precision == Precision::int8 && isa >= Isa::amx) return heads::amx_int8();
    if (precision == Precision::bf16 && isa >= Isa::bf16) return heads::bf16_bf16();
    if (precision == Precision::int8 && isa >= Isa::bf16) return heads::bf16_int8();
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

enum class Part { features, hidden };  // whose weights

// A layer's weights as its kernel multiplies them (`as`), rounded to the precision `asked` for.
struct PackedProduct {
    Aligned<std::uint32_t> weights;
    Aligned<float> scale;
    std::vector<float> row_sums;  // scale * sum of a row's q; 0 unless int8 is multiplied
    size_t groups;

    PackedProduct(const Rows& from, size_t width, const HeadPlan& plan, Precision as, Precision asked, Part part)
        : scale(width), row_sums(width) {
        const size_t group = in_word(as);
        // Of the hidden layer also the padding's: kernels write activations for all of `width`.
        groups = padded(part == Part::hidden ? width : from.columns, group) / group;
        // 8 words of two pieces side by side are a tile too: see HeadProduct.
        const bool halves = plan.pieces == 3 && part == Part::features && groups <= 8;
        if (plan.layout == HeadLayout::tiles) groups = padded(groups, halves ? 8 : 16);
        weights = Aligned<std::uint32_t>(halves ? 3 * width * 16 : plan.pieces * width * groups);
        auto* bytes = reinterpret_cast<std::uint8_t*>(weights.data());
        for (size_t row = 0; row < from.rows; ++row) {
            float largest = 0.0f;
            for (size_t k = 0; k < from.columns; ++k) largest = std::fmax(largest, std::fabs(from.at(row, k)));
            scale[row] = largest > smallest_scaled ? largest / 127.0f : 1.0f;
            for (size_t k = 0; k < from.columns; ++k) {
                const float weight = from.at(row, k);
                const float whole = std::nearbyint(weight / scale[row]);
                std::uint8_t* to = bytes + (word(plan, row, k / group) * group + k % group) * (4 / group);
                if (as == Precision::int8) {
                    const auto q = static_cast<std::int8_t>(whole);
                    row_sums[row] += scale[row] * static_cast<float>(q);
                    std::memcpy(to, &q, 1);
                } else if (as == Precision::bf16) {
                    float rest = weight;  // each piece takes the eight bits that lead, so three leave nothing
                    for (size_t piece = 0; piece < plan.pieces; ++piece) {
                        const std::uint16_t half = to_bf16(rest);
                        if (halves)
                            put_halves(width, row, k, piece, half);
                        else
                            std::memcpy(to + piece * width * groups * sizeof(std::uint32_t), &half, 2);
                        rest -= from_bf16(half);
                    }
                } else {
                    const float value = asked == Precision::fp32   ? weight
                                        : asked == Precision::bf16 ? from_bf16(to_bf16(weight))
                                                                   : whole * scale[row];
                    std::memcpy(to, &value, 4);
                }
            }
        }
    }

    // Tiles [3][outputs / 16]: which piece fills their first eight words, and which the others.
    void put_halves(size_t width, size_t row, size_t k, size_t piece, std::uint16_t half) {
        constexpr size_t pieces[3][2] = {{0, 0}, {1, 0}, {2, 1}};
        for (size_t tile = 0; tile < 3; ++tile) {
            for (size_t side = 0; side < 2; ++side) {
                const size_t at = ((tile * width + row) * 16 + side * 8) * 2 + k;
                if (pieces[tile][side] == piece)
                    std::memcpy(reinterpret_cast<std::uint16_t*>(weights.data()) + at, &half, 2);
            }
        }
    }

    size_t word(const HeadPlan& plan, size_t row, size_t group) const {
        if (plan.layout == HeadLayout::blocks)
            return (row / plan.block * groups + group) * plan.block + row % plan.block;
        return ((row / 16 * (groups / 16) + group / 16) * 16 + row % 16) * 16 + group % 16;
    }

    HeadProduct view() const { return {groups, weights.data(), scale.data()}; }
};

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
          first_({first, width, features, features + context}, wide_, plan, plan.first,
                 precision == Precision::int8 ? Precision::fp32 : precision, Part::features),
          second_({second, width, width, width}, wide_, plan, plan.second, precision, Part::hidden),
          context_weights_(context * wide_),
          first_bias_(copy(weights.take("head.network.0.bias", {width}), width, wide_)),
          second_bias_(copy(weights.take("head.network.3.bias", {width}), width, wide_)),
          last_(copy(weights.take("head.network.6.weight", {1, width}), width, wide_)),
          linear_(copy(weights.take("head.linear.weight", {1, features}), features, features)),
          silu_table_(silu_table()) {
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
        scratch_ = Aligned<float>(head_scratch(features, wide_, plan.pieces * (first_.groups + second_.groups)));
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

    // Room for what `places` of tile.hpp and of head_amx.cpp and the portable kernel lay out.
    static size_t head_scratch(size_t features, size_t width, size_t groups) {
        return 16 * width + most_tile_contracts * (features + groups + width);
    }

    // Parabolas c0 + c1 x + c2 x^2 through SiLU at the Chebyshev nodes of pieces, as [3][32], constants first: piece i
    // is what rounds to i pieces' widths, at place i modulo 32. Outermost: 0 and x, less half of what SiLU is there.
    // Afterwards the same larger by 1 / (2 ln 2) in 256: what cutting a float down to bf16 takes on average, where its
    // mantissas are spread as those of numbers of all sizes are.
    static Aligned<float> silu_table() {
        constexpr size_t pieces = 32, whole = 3 * pieces;
        Aligned<float> table(2 * whole);
        const auto silu = [](double x) { return x / (1.0 + std::exp(-x)); };
        const auto put = [&](int piece, double constant, double slope, double curve) {
            const double larger = 1.0 + 1.0 / (2.0 * M_LN2 * 256.0), terms[3] = {constant, slope, curve};
            float* to = table.data() + static_cast<size_t>(piece + static_cast<int>(pieces)) % pieces;
            for (size_t power = 0; power < 3; ++power) {
                to[power * pieces] = static_cast<float>(terms[power]);
                to[whole + power * pieces] = static_cast<float>(terms[power] * larger);
            }
        };
        const double width = static_cast<double>(silu_piece), end = (silu_last_piece - 0.5) * width;
        put(-silu_last_piece, 0.5 * silu(-end), 0.0, 0.0);
        put(silu_last_piece, 0.5 * silu(-end), 1.0, 0.0);
        for (int piece = 1 - silu_last_piece; piece < silu_last_piece; ++piece) {
            double x[3], y[3];
            for (int node = 0; node < 3; ++node) {
                x[node] = width * (piece + 0.5 * std::cos(M_PI * (2 * node + 1) / 6.0));
                y[node] = silu(x[node]);
            }
            const double slope01 = (y[1] - y[0]) / (x[1] - x[0]), slope12 = (y[2] - y[1]) / (x[2] - x[1]);
            const double curve = (slope12 - slope01) / (x[2] - x[0]);  // Newton's divided differences
            put(piece, y[0] - x[0] * slope01 + x[0] * x[1] * curve, slope01 - (x[0] + x[1]) * curve, curve);
        }
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
