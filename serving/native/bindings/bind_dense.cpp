// The dense kernels one by one, for tests: each takes and gives NumPy arrays, copied into aligned, padded memory.
#include <nanobind/stl/string.h>

#include <cstring>
#include <limits>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "dense/kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace strikeforge {

namespace {

// x [n] in aligned memory with room for the next multiple of 16; what lies past n is NaN, which nobody may use.
Aligned<float> aligned(nb::handle array, size_t n) {
    const float* from = vector_of("x", array, n);
    Aligned<float> out(padded(n));
    for (size_t i = 0; i < out.size(); ++i) out[i] = i < n ? from[i] : std::numeric_limits<float>::quiet_NaN();
    return out;
}

void give(nb::handle array, const Aligned<float>& from, size_t n) {
    std::memcpy(written_vector_of("out", array, n), from.data(), n * sizeof(float));
}

const DenseKernels& kernels_of(const std::string& isa) {
    return dense_kernels(choose_isa(isa));
}

// out [R] = start [R] + weights [R, C] x [C], packed and multiplied in `precision`.
void gemv(const std::string& isa, const std::string& precision, nb::handle weights, nb::handle x, nb::handle start,
          nb::handle out, size_t columns) {
    const RowsOf rows = rows_of("weights", weights, columns);
    const Matrix matrix(parse_precision(precision), rows.data, rows.count, columns);
    Aligned<float> sums(matrix.rows());
    std::memcpy(sums.data(), vector_of("start", start, rows.count), rows.count * sizeof(float));
    Aligned<std::uint8_t> operand(4 * padded(columns));
    VectorView view{operand.data(), 1.0f};
    kernels_of(isa).load(parse_precision(precision), vector_of("x", x, columns), columns, &view);
    kernels_of(isa).gemv(matrix.view(), view, sums.data(), sums.data());
    give(out, sums, rows.count);
}

// gates [4 n] as blocks, cell [n]; n a multiple of 16; `out` [2 n]: cell, then hidden.
void lstm_cell(const std::string& isa, nb::handle gates, nb::handle cell, nb::handle out, size_t n) {
    const Aligned<float> before = aligned(gates, 4 * n), held = aligned(cell, n);
    Aligned<float> both(2 * n);
    kernels_of(isa).lstm_cell(before.data(), held.data(), both.data(), both.data() + n, n);
    give(out, both, 2 * n);
}

// `kind`: silu, tanh, softmax (over exactly n); in place.
void activate(const std::string& isa, const std::string& kind, nb::handle x, size_t n) {
    Aligned<float> values = aligned(x, n);
    const DenseKernels& kernels = kernels_of(isa);
    if (kind == "silu") {
        kernels.silu(values.data(), padded(n));
    } else if (kind == "tanh") {
        kernels.tanh(values.data(), padded(n));
    } else if (kind == "softmax") {
        kernels.softmax(values.data(), n);
    } else {
        throw std::invalid_argument("there is no activation '" + kind + "'; there are silu, tanh, softmax");
    }
    give(x, values, n);
}

void layer_norm(const std::string& isa, nb::handle x, nb::handle gain, nb::handle shift, nb::handle out, size_t n) {
    const Aligned<float> values = aligned(x, n), unit = aligned(gain, n), offset = aligned(shift, n);
    Aligned<float> normed(padded(n));
    kernels_of(isa).layer_norm(values.data(), unit.data(), offset.data(), n, normed.data());
    give(out, normed, n);
}

}  // namespace

void bind_dense(nb::module_& module) {
    nb::module_ kernels = module.def_submodule("kernels", "The dense kernels of an instruction set, for tests.");
    kernels.def("gemv", &gemv, "isa"_a, "precision"_a, "weights"_a, "x"_a, "start"_a, "out"_a, "columns"_a);
    kernels.def("lstm_cell", &lstm_cell, "isa"_a, "gates"_a, "cell"_a, "out"_a, "n"_a);
    kernels.def("activate", &activate, "isa"_a, "kind"_a, "x"_a, "n"_a);
    kernels.def("layer_norm", &layer_norm, "isa"_a, "x"_a, "gain"_a, "shift"_a, "out"_a, "n"_a);
    kernels.def(
        "dot",
        [](const std::string& isa, nb::handle a, nb::handle b, size_t n) {
            const Aligned<float> left = aligned(a, n), right = aligned(b, n);
            return kernels_of(isa).dot(left.data(), right.data(), n);
        },
        "isa"_a, "a"_a, "b"_a, "n"_a, "n a multiple of 16.");
}

}  // namespace strikeforge
