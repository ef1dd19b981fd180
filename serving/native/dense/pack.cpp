#include "dense/pack.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
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

namespace {

size_t group_of(Precision precision) {
    return precision == Precision::fp32 ? 1 : precision == Precision::bf16 ? 2 : 4;
}

size_t element_bytes(Precision precision) {
    return 4 / group_of(precision);
}

}  // namespace

Matrix::Matrix(Precision precision, size_t rows, size_t columns)
    : precision_(precision),
      rows_(padded(rows)),
      columns_(columns),
      weights_(rows_ * padded(columns, 4) * element_bytes(precision)),
      scale_(rows_),
      correction_(rows_) {}

Matrix::Matrix(Precision precision, const float* weights, size_t rows, size_t columns,
               const std::vector<std::int32_t>& order)
    : Matrix(precision, order.empty() ? rows : order.size(), columns) {
    if (order.size() % lanes) throw std::invalid_argument("a packed order has a multiple of 16 rows");
    for (size_t place = 0; place < rows_; ++place) {
        const std::int64_t row = order.empty() ? static_cast<std::int64_t>(place) : order[place];
        if (row < 0 || static_cast<size_t>(row) >= rows) continue;  // zeros
        set_row(place, weights + static_cast<size_t>(row) * columns);
    }
}

size_t Matrix::at(size_t place, size_t column) const {
    const size_t group = group_of(precision_), vectors = rows_ / lanes;
    const size_t vector = place / lanes, lane = place % lanes, panel = vector / panel_vectors;
    const size_t in_panel = std::min(panel_vectors, vectors - panel * panel_vectors);
    return panel * panel_vectors * lanes * padded(columns_, 4) +
           ((column / group * in_panel + vector % panel_vectors) * lanes + lane) * group + column % group;
}

void Matrix::set_row(size_t place, const float* values) {
    if (precision_ != Precision::int8) {
        for (size_t column = 0; column < columns_; ++column) {
            std::uint8_t* to = weights_.data() + at(place, column) * element_bytes(precision_);
            if (precision_ == Precision::fp32) {
                std::memcpy(to, &values[column], 4);
            } else {
                const std::uint16_t value = to_bf16(values[column]);
                std::memcpy(to, &value, 2);
            }
        }
        return;
    }
    float largest = 0.0f;
    bool finite = true;
    for (size_t column = 0; column < columns_; ++column) {
        largest = std::fmax(largest, std::fabs(values[column]));
        finite = finite && std::isfinite(values[column]);
    }
    float scale = largest > smallest_scaled ? largest / 127.0f : 1.0f;
    if (!finite) scale = std::numeric_limits<float>::quiet_NaN();
    std::int32_t sum = 0;
    for (size_t column = 0; column < columns_; ++column) {
        const auto value = static_cast<std::int8_t>(finite ? std::nearbyint(values[column] / scale) : 0.0f);
        sum += value;
        std::memcpy(weights_.data() + at(place, column), &value, 1);
    }
    scale_[place] = scale;
    correction_[place] = 128 * sum;
}

void Matrix::set_column(size_t column, const float* values) {
    if (precision_ != Precision::fp32) throw std::logic_error("only fp32 matrices are filled by columns");
    for (size_t place = 0; place < rows_; ++place)
        std::memcpy(weights_.data() + at(place, column) * 4, &values[place], 4);
}

void Matrix::clear() {
    weights_.zero();
    scale_.zero();
    correction_.zero();
}

MatrixView Matrix::panel(size_t index) const {
    const size_t first = index * panel_vectors * lanes, left = rows_ - first;
    const size_t element = precision_ == Precision::fp32 ? 4 : precision_ == Precision::bf16 ? 2 : 1;
    MatrixView view = this->view();
    view.rows = std::min(left, panel_vectors * lanes);
    view.weights = weights_.data() + first * view.padded_columns * element;
    view.scale += first;
    view.correction += first;
    return view;
}

MatrixView Matrix::view() const {
    return {precision_, rows_, columns_, padded(columns_, 4), weights_.data(), scale_.data(), correction_.data()};
}

}  // namespace strikeforge
