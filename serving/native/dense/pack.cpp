#include "dense/pack.hpp"

#include <bit>
#include <cmath>
#include <stdexcept>

namespace strikeforge {

const char* precision_name(Precision precision) {
    switch (precision) {
        case Precision::fp32:
            return "fp32";
        case Precision::bf16:
            return "bf16";
        case Precision::int8:
            return "int8";
    }
    return "?";
}

Precision parse_precision(const std::string& name) {
    for (Precision one : {Precision::fp32, Precision::bf16, Precision::int8}) {
        if (name == precision_name(one)) return one;
    }
    throw std::invalid_argument("there is no precision '" + name + "'; there are fp32, bf16, int8");
}

std::uint16_t to_bf16(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16) | 0x40);
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(std::uint16_t value) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

Matrix::Matrix(Precision precision, const float* weights, size_t rows, size_t columns,
               const std::vector<std::int32_t>& order)
    : precision_(precision), rows_(order.empty() ? padded(rows) : order.size()), columns_(columns) {
    if (rows_ % lanes) throw std::invalid_argument("a packed order has a multiple of 16 rows");
    const size_t wide = padded(columns, 4);
    const size_t group = precision == Precision::fp32 ? 1 : precision == Precision::bf16 ? 2 : 4;
    const size_t element = precision == Precision::fp32 ? 4 : precision == Precision::bf16 ? 2 : 1;
    weights_ = Aligned<std::uint8_t>(rows_ * wide * element);
    scale_ = Aligned<float>(rows_);
    correction_ = Aligned<std::int32_t>(rows_);
    const size_t vectors = rows_ / lanes;
    for (size_t place = 0; place < rows_; ++place) {
        const std::int64_t row = order.empty() ? static_cast<std::int64_t>(place) : order[place];
        if (row < 0 || static_cast<size_t>(row) >= rows) continue;  // zeros
        const float* source = weights + static_cast<size_t>(row) * columns;
        float largest = 0.0f;
        for (size_t column = 0; column < columns; ++column) largest = std::fmax(largest, std::fabs(source[column]));
        const float scale = largest > 0.0f ? largest / 127.0f : 1.0f;
        scale_[place] = scale;
        const size_t vector = place / lanes, lane = place % lanes, panel = vector / panel_vectors;
        const size_t in_panel = std::min(panel_vectors, vectors - panel * panel_vectors);
        std::uint8_t* begin = weights_.data() + panel * panel_vectors * lanes * wide * element;
        std::int32_t sum = 0;
        for (size_t column = 0; column < columns; ++column) {
            const size_t at =
                ((column / group * in_panel + vector % panel_vectors) * lanes + lane) * group + column % group;
            if (precision == Precision::fp32) {
                std::memcpy(begin + at * 4, &source[column], 4);
            } else if (precision == Precision::bf16) {
                const std::uint16_t value = to_bf16(source[column]);
                std::memcpy(begin + at * 2, &value, 2);
            } else {
                const auto value = static_cast<std::int8_t>(std::lrintf(source[column] / scale));
                sum += value;
                std::memcpy(begin + at, &value, 1);
            }
        }
        correction_[place] = 128 * sum;
    }
}

MatrixView Matrix::view() const {
    return {precision_, rows_, columns_, padded(columns_, 4), weights_.data(), scale_.data(), correction_.data()};
}

}  // namespace strikeforge
