// The reference: plain loops over the packed layout, in the order the formulas are written.
#include <cmath>
#include <limits>

#include "dense/kernels.hpp"

namespace strikeforge::tables {

namespace {

float sigmoid(float x) {
    return 1.0f / (1.0f + std::exp(-x));
}

void load(Precision precision, const float* x, size_t n, VectorView* out) {
    const size_t wide = padded(n);
    out->scale = 1.0f;
    if (precision == Precision::fp32) {
        auto* values = static_cast<float*>(out->data);
        for (size_t i = 0; i < wide; ++i) values[i] = i < n ? x[i] : 0.0f;
    } else if (precision == Precision::bf16) {
        auto* values = static_cast<std::uint16_t*>(out->data);
        for (size_t i = 0; i < wide; ++i) values[i] = i < n ? to_bf16(x[i]) : std::uint16_t{0};
    } else {
        float largest = 0.0f;
        bool finite = true;
        for (size_t i = 0; i < n; ++i) {
            largest = std::fmax(largest, std::fabs(x[i]));
            finite = finite && std::isfinite(x[i]);
        }
        if (largest > smallest_scaled) out->scale = largest / 127.0f;
        const float inverse = finite ? 1.0f / out->scale : 0.0f;
        auto* values = static_cast<std::uint8_t*>(out->data);
        for (size_t i = 0; i < wide; ++i) {
            const float value = i < n && finite ? std::nearbyint(x[i] * inverse) : 0.0f;
            values[i] = static_cast<std::uint8_t>(static_cast<int>(value) + 128);
        }
        if (!finite) out->scale = std::numeric_limits<float>::quiet_NaN();
    }
}

float element(const MatrixView& matrix, size_t at, const VectorView& x, size_t column) {
    if (matrix.precision == Precision::fp32) {
        return static_cast<const float*>(matrix.weights)[at] * static_cast<const float*>(x.data)[column];
    }
    return from_bf16(static_cast<const std::uint16_t*>(matrix.weights)[at]) *
           from_bf16(static_cast<const std::uint16_t*>(x.data)[column]);
}

void gemv(const MatrixView& matrix, const VectorView& x, const float* start, float* y) {
    const size_t group = matrix.precision == Precision::fp32 ? 1 : matrix.precision == Precision::bf16 ? 2 : 4;
    const size_t vectors = matrix.rows / lanes;
    for (size_t row = 0; row < matrix.rows; ++row) {
        const size_t vector = row / lanes, lane = row % lanes, panel = vector / panel_vectors;
        const size_t left = vectors - panel * panel_vectors, in_panel = left < panel_vectors ? left : panel_vectors;
        const size_t begin = panel * panel_vectors * lanes * matrix.padded_columns;
        const float from = start == nullptr ? 0.0f : start[row];
        float sum = 0.0f;
        std::int32_t whole = 0;
        for (size_t column = 0; column < matrix.columns; ++column) {
            const size_t at =
                begin + ((column / group * in_panel + vector % panel_vectors) * lanes + lane) * group + column % group;
            if (matrix.precision == Precision::int8) {
                whole += static_cast<const std::int8_t*>(matrix.weights)[at] *
                         static_cast<const std::uint8_t*>(x.data)[column];
            } else {
                sum += element(matrix, at, x, column);
            }
        }
        if (matrix.precision == Precision::int8) {
            sum = static_cast<float>(whole - matrix.correction[row]) * (matrix.scale[row] * x.scale);
        }
        y[row] = from + sum;
    }
}

float dot(const float* a, const float* b, size_t n) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

void lstm_cell(const float* gates, const float* cell, float* cell_out, float* hidden_out, size_t n) {
    for (size_t block = 0; block < n / lanes; ++block) {
        for (size_t lane = 0; lane < lanes; ++lane) {
            const float* gate = gates + block * 4 * lanes + lane;
            const size_t unit = block * lanes + lane;
            const float keep = sigmoid(gate[lanes]) * cell[unit];
            const float next = keep + sigmoid(gate[0]) * std::tanh(gate[2 * lanes]);
            cell_out[unit] = next;
            hidden_out[unit] = sigmoid(gate[3 * lanes]) * std::tanh(next);
        }
    }
}

void softmax(float* x, size_t n) {
    float largest = x[0], sum = 0.0f;
    for (size_t i = 1; i < n; ++i) largest = std::fmax(largest, x[i]);
    for (size_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - largest);
    for (size_t i = 0; i < n; ++i) x[i] /= sum;
}

void layer_norm(const float* x, const float* gain, const float* shift, size_t n, float* out) {
    float mean = 0.0f, variance = 0.0f;
    for (size_t i = 0; i < n; ++i) mean += x[i];
    mean /= static_cast<float>(n);
    for (size_t i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const float unit = 1.0f / std::sqrt(variance / static_cast<float>(n) + 1e-5f);
    for (size_t i = 0; i < n; ++i) out[i] = (x[i] - mean) * unit * gain[i] + shift[i];
    for (size_t i = n; i < padded(n); ++i) out[i] = 0.0f;
}

void silu(float* x, size_t n) {
    for (size_t i = 0; i < n; ++i) x[i] *= sigmoid(x[i]);
}

void hyperbolic_tangent(float* x, size_t n) {
    for (size_t i = 0; i < n; ++i) x[i] = std::tanh(x[i]);
}

}  // namespace

void portable(DenseKernels& table) {
    table = {load, gemv, dot, lstm_cell, layer_norm, silu, hyperbolic_tangent, softmax};
}

}  // namespace strikeforge::tables
