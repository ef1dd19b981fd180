// The engine of a pricing bundle. Every array is checked on every call; refusals are serving.errors.EngineError.
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.hpp"
#include "nets/engine.hpp"

namespace nb = nanobind;

namespace strikeforge {

namespace {

using Array = nb::ndarray<nb::numpy, const float, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check(const char* name, size_t found, size_t expected) {
    if (found != expected)
        throw EngineProblem(std::string("tensor '") + name + "': expected float32 (" + std::to_string(expected) +
                            ",), found (" + std::to_string(found) + ",)");
}

Weights weights_of(const std::string& file, const std::map<std::string, Array>& arrays) {
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, array] : arrays) {
        Shape shape;
        for (size_t axis = 0; axis < array.ndim(); ++axis) shape.push_back(array.shape(axis));
        tensors.emplace(name, Tensor{array.data(), shape});
    }
    return {file, std::move(tensors)};
}

Member make_member(const std::string& family, const std::string& file, const std::map<std::string, double>& sizes,
                   const std::map<std::string, Array>& arrays, const Choice& choice) {
    Weights weights = weights_of(file, arrays);
    const Sizes known(sizes);
    Member member;
    if (family == "pricing_lstm") {
        member.encoder = make_lstm(known, weights, choice);
    } else if (family == "pricing_transformer") {
        member.encoder = make_transformer(known, weights, choice);
    } else {
        throw EngineProblem("the native engine has no net '" + family +
                            "'; it has pricing_lstm, pricing_transformer, surface_vae");
    }
    member.head = make_head(known, weights, choice.isa, choice.precision);
    weights.refuse_rest();
    return member;
}

}  // namespace

void bind_engine(nb::module_& module) {
    nb::class_<NativeEngine>(module, "Engine")
        .def("__init__",
             [](NativeEngine* self, const std::string& family, const std::map<std::string, double>& sizes,
                const std::vector<std::pair<std::string, std::map<std::string, Array>>>& members,
                const std::string& precision, const std::string& semantics, const std::string& isa) {
                 const Choice choice{choose_isa(isa), parse_precision(precision),
                                     semantics == "stateful" ? Semantics::stateful : Semantics::window};
                 std::vector<Member> made;
                 for (const auto& [file, arrays] : members)
                     made.push_back(make_member(family, file, sizes, arrays, choice));
                 new (self) NativeEngine(std::move(made));
             })
        .def("reset", &NativeEngine::reset)
        .def("evaluate",
             [](NativeEngine& self, const Input& x, const Output& out) {
                 check("x", x.shape(0), self.step_features());
                 check("context", out.shape(0), self.context_size());
                 self.evaluate(x.data(), out.data());
             })
        .def("advance",
             [](NativeEngine& self, const Input& x) {
                 check("x", x.shape(0), self.step_features());
                 self.advance(x.data());
             })
        .def("head", [](NativeEngine& self, const Input& context, const Rows& contracts, const Output& iv) {
            check("context", context.shape(0), self.context_size());
            check("iv", iv.shape(0), contracts.shape(0));
            if (contracts.shape(1) != self.contract_features())
                check("contracts", contracts.shape(1), self.contract_features());
            self.head(context.data(), contracts.data(), contracts.shape(0), contracts.shape(1), iv.data());
        });
}

}  // namespace strikeforge
