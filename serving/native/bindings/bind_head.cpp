// The contract head alone (to test and to time it), and repricing of a chain by an engine. No array is converted: a
// copy would be written to in the caller's place.
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "bindings/choices.hpp"
#include "head/repricing.hpp"

namespace nb = nanobind;

namespace strikeforge {

namespace {

using Tensors = std::map<std::string, nb::ndarray<nb::numpy, const float, nb::c_contig, nb::device::cpu>>;
using Input = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check(const char* name, size_t found, size_t expected) {
    if (found != expected)
        throw EngineProblem(std::string("tensor '") + name + "': expected size " + std::to_string(expected) +
                            ", found " + std::to_string(found));
}

std::unique_ptr<Head> head_of(const std::map<std::string, double>& sizes, const Tensors& arrays,
                              const std::string& precision, const std::string& isa) {
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, array] : arrays) {
        Shape shape;
        for (size_t axis = 0; axis < array.ndim(); ++axis) shape.push_back(array.shape(axis));
        tensors.emplace(name, Tensor{array.data(), shape});
    }
    Weights weights("weights of the head", std::move(tensors));
    auto head = make_head(Sizes(sizes), weights, named_isa(isa), named_precision(precision));
    weights.refuse_rest();
    return head;
}

struct BoundHead {
    std::unique_ptr<Head> head;
};

constexpr size_t value_rows = 5;  // price, delta, gamma, vega, theta

// A chain's arrays and the engine stay alive as long as this.
struct BoundRepricing {
    NativeEngine& engine;
    Repricing repricing;
    Rows contracts;
    Doubles forward, strike, tau, discount, right;
    ChainView chain;

    BoundRepricing(NativeEngine& engine, const std::string& isa, Rows contracts, Doubles forward, Doubles strike,
                   Doubles tau, Doubles discount, Doubles right)
        : engine(engine),
          repricing(engine, option_kernels(named_isa(isa)),
                    engine.precision() == Precision::fp32 ? Arithmetic::doubles : Arithmetic::single),
          contracts(std::move(contracts)),
          forward(std::move(forward)),
          strike(std::move(strike)),
          tau(std::move(tau)),
          discount(std::move(discount)),
          right(std::move(right)),
          chain{this->contracts.shape(0), this->contracts.data(), this->forward.data(), this->strike.data(),
                this->tau.data(),         this->discount.data(),  this->right.data()} {
        check("contracts", this->contracts.shape(1), engine.contract_features());
        check("forward", this->forward.shape(0), chain.count);
        check("strike", this->strike.shape(0), chain.count);
        check("tau", this->tau.shape(0), chain.count);
        check("discount", this->discount.shape(0), chain.count);
        check("right", this->right.shape(0), chain.count);
    }

    RepricedView place(const Output& volatility, const Values& values) const {
        check("volatility", volatility.shape(0), chain.count);
        check("values", values.shape(0), value_rows);
        check("values of a row", values.shape(1), chain.count);
        double* at = values.data();
        const size_t n = chain.count;
        return {volatility.data(), at, at + n, at + 2 * n, at + 3 * n, at + 4 * n};
    }
};

}  // namespace

void bind_head(nb::module_& module) {
    nb::class_<BoundHead>(module, "Head", "A contract head alone; tensors by their names in a net's state dict.")
        .def(
            "__init__",
            [](BoundHead* self, const std::map<std::string, double>& sizes, const Tensors& arrays,
               const std::string& precision,
               const std::string& isa) { new (self) BoundHead{head_of(sizes, arrays, precision, isa)}; },
            nb::arg("sizes"), nb::arg("tensors"), nb::arg("precision") = "fp32", nb::arg("isa") = "")
        .def(
            "volatility",
            [](BoundHead& self, const Input& context, const Rows& contracts, const Output& iv, float share, bool add) {
                check("context", context.shape(0), self.head->context_size());
                check("contracts", contracts.shape(1), self.head->contract_features());
                check("iv", iv.shape(0), contracts.shape(0));
                self.head->volatility(context.data(), contracts.data(), contracts.shape(0), contracts.shape(1), share,
                                      add, iv.data());
            },
            nb::arg("context").noconvert(), nb::arg("contracts").noconvert(), nb::arg("iv").noconvert(),
            nb::arg("share") = 1.0f, nb::arg("add") = false);
    nb::class_<BoundRepricing>(module, "Repricing", "A chain and the engine that reprices it (serving/repricing.py).")
        .def(nb::init<NativeEngine&, const std::string&, Rows, Doubles, Doubles, Doubles, Doubles, Doubles>(),
             nb::keep_alive<1, 2>(), nb::arg("engine"), nb::arg("isa"), nb::arg("contracts").noconvert(),
             nb::arg("forward").noconvert(), nb::arg("strike").noconvert(), nb::arg("tau").noconvert(),
             nb::arg("discount").noconvert(), nb::arg("right").noconvert())
        .def(
            "run",
            [](BoundRepricing& self, nb::handle x, const Output& volatility, const Values& values) {
                const float* step = vector_of("x", x, self.engine.step_features());
                self.repricing.run(step, self.chain, self.place(volatility, values));
            },
            nb::arg("x").none(), nb::arg("volatility").noconvert(), nb::arg("values").noconvert());
}

}  // namespace strikeforge
