// Arrays of options. serving/black76.py broadcasts; types and lengths are checked here on every call.
//
// Other threads of Python may run meanwhile where there are so many options that it pays: who has let go of the
// interpreter's lock may wait 5 ms for it, and a quote must not.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "bindings/bindings.hpp"
#include "options/black76.hpp"

namespace nb = nanobind;

namespace strikeforge {

namespace {

using Input = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Singles = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Status = nb::ndarray<std::int8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr size_t options_worth_waiting = 1u << 18;  // 5 ms and more of work

[[noreturn]] void refuse(const char* name, size_t found, const std::string& expected) {
    throw std::invalid_argument(std::string(name) + ": expected " + expected + " numbers, found " +
                                std::to_string(found));
}

template <class Array>
void check_place(const char* name, const Array& array) {
    if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(double) != 0)
        throw std::invalid_argument(std::string(name) + ": expected an array aligned to 8 bytes: use numpy.copy");
}

// One number for all, or one each.
Column column(const char* name, const Input& array, size_t count) {
    check_place(name, array);
    if (array.shape(0) == count) return {array.data(), 1};
    if (array.shape(0) != 1) refuse(name, array.shape(0), "1 or " + std::to_string(count));
    return {array.data(), 0};
}

double* wanted(const char* name, const std::optional<Output>& array, size_t count) {
    if (!array) return nullptr;
    check_place(name, *array);
    if (array->shape(0) != count) refuse(name, array->shape(0), std::to_string(count));
    return array->data();
}

class BoundOptions {
  public:
    explicit BoundOptions(const std::string& isa) : isa_(choose_isa(isa)), kernels_(option_kernels(isa_)) {}
    std::string isa() const { return isa_name(isa_); }

    void value(size_t count, const Input& forward, const Input& strike, const Input& tau, const Input& volatility,
               const Input& discount, const Input& right, const std::optional<Output>& price,
               const std::optional<Output>& delta, const std::optional<Output>& gamma,
               const std::optional<Output>& vega, const std::optional<Output>& theta, const std::optional<Output>& rho,
               const std::optional<Output>& vanna, const std::optional<Output>& volga) const {
        const Options options = {column("forward", forward, count),   column("strike", strike, count),
                                 column("tau", tau, count),           column("volatility", volatility, count),
                                 column("discount", discount, count), column("right", right, count)};
        const Greeks out = {wanted("price", price, count), wanted("delta", delta, count), wanted("gamma", gamma, count),
                            wanted("vega", vega, count),   wanted("theta", theta, count), wanted("rho", rho, count),
                            wanted("vanna", vanna, count), wanted("volga", volga, count)};
        std::optional<nb::gil_scoped_release> others_may_run;
        if (count >= options_worth_waiting) others_may_run.emplace();
        kernels_.value(options, count, out);
    }

    bool has_single() const { return kernels_.value_single != nullptr; }

    void value_single(const Input& forward, const Input& strike, const Input& tau, const Singles& volatility,
                      const Input& discount, const Input& right, const Output& price, const Output& delta,
                      const Output& gamma, const Output& vega, const Output& theta) const {
        if (!has_single())
            throw std::invalid_argument("instruction set " + isa() + " has no single-precision kernel; avx512 has");
        const size_t count = volatility.shape(0);
        const auto each = [count](const char* name, const Input& array) {
            check_place(name, array);
            if (array.shape(0) != count) refuse(name, array.shape(0), std::to_string(count));
            return array.data();
        };
        kernels_.value_single(
            {each("forward", forward), each("strike", strike), each("tau", tau), volatility.data(),
             each("discount", discount), each("right", right)},
            count,
            {wanted("price", price, count), wanted("delta", delta, count), wanted("gamma", gamma, count),
             wanted("vega", vega, count), wanted("theta", theta, count)});
    }

    void implied(size_t count, const Input& price, const Input& forward, const Input& strike, const Input& tau,
                 const Input& discount, const Input& right, const Output& volatility, const Status& status) const {
        const Prices prices = {column("price", price, count),       column("forward", forward, count),
                               column("strike", strike, count),     column("tau", tau, count),
                               column("discount", discount, count), column("right", right, count)};
        check_place("volatility", volatility);
        if (volatility.shape(0) != count) refuse("volatility", volatility.shape(0), std::to_string(count));
        if (status.shape(0) != count) refuse("status", status.shape(0), std::to_string(count));
        std::optional<nb::gil_scoped_release> others_may_run;
        if (count >= options_worth_waiting) others_may_run.emplace();
        kernels_.implied(prices, count, volatility.data(), status.data());
    }

  private:
    Isa isa_;
    const OptionKernels& kernels_;
};

}  // namespace

void bind_options(nb::module_& module) {
    nb::class_<BoundOptions>(module, "Options")
        .def(nb::init<const std::string&>(), nb::arg("isa") = "")
        .def_prop_ro("isa", &BoundOptions::isa)
        .def("value", &BoundOptions::value, nb::arg("count"), nb::arg("forward").noconvert(),
             nb::arg("strike").noconvert(), nb::arg("tau").noconvert(), nb::arg("volatility").noconvert(),
             nb::arg("discount").noconvert(), nb::arg("right").noconvert(), nb::arg("price").noconvert().none(),
             nb::arg("delta").noconvert().none(), nb::arg("gamma").noconvert().none(),
             nb::arg("vega").noconvert().none(), nb::arg("theta").noconvert().none(), nb::arg("rho").noconvert().none(),
             nb::arg("vanna").noconvert().none(), nb::arg("volga").noconvert().none())
        .def_prop_ro("has_single", &BoundOptions::has_single)
        .def("value_single", &BoundOptions::value_single, nb::arg("forward").noconvert(), nb::arg("strike").noconvert(),
             nb::arg("tau").noconvert(), nb::arg("volatility").noconvert(), nb::arg("discount").noconvert(),
             nb::arg("right").noconvert(), nb::arg("price").noconvert(), nb::arg("delta").noconvert(),
             nb::arg("gamma").noconvert(), nb::arg("vega").noconvert(), nb::arg("theta").noconvert())
        .def("implied_volatility", &BoundOptions::implied, nb::arg("count"), nb::arg("price").noconvert(),
             nb::arg("forward").noconvert(), nb::arg("strike").noconvert(), nb::arg("tau").noconvert(),
             nb::arg("discount").noconvert(), nb::arg("right").noconvert(), nb::arg("volatility").noconvert(),
             nb::arg("status").noconvert());
}

}  // namespace strikeforge
