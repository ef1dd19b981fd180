// The net of a surface bundle. Arrays are the caller's; each is checked on every call and refused by its name.
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include "bindings/bindings.hpp"
#include "bindings/choices.hpp"
#include "nets/surface.hpp"

namespace nb = nanobind;

namespace strikeforge {

namespace {

using Array = nb::ndarray<nb::numpy, const float, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

template <typename Any>
Shape shape_of(const Any& array) {
    Shape shape;
    for (size_t axis = 0; axis < array.ndim(); ++axis) shape.push_back(array.shape(axis));
    return shape;
}

template <typename Any>
auto checked(const char* name, const Any& array, const Shape& expected) {
    const Shape found = shape_of(array);
    if (found != expected)
        throw EngineProblem(std::string("tensor '") + name + "': expected float32 " + shape_text(expected) +
                            ", found " + shape_text(found));
    return array.data();
}

std::unique_ptr<SurfaceNet> make(const std::map<std::string, double>& sizes, const std::string& file,
                                 const std::map<std::string, Array>& arrays, const std::string& precision,
                                 const std::string& isa) {
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, array] : arrays) tensors.emplace(name, Tensor{array.data(), shape_of(array)});
    Weights weights(file, std::move(tensors));
    auto net = make_surface(Sizes(sizes), weights, named_isa(isa), named_precision(precision));
    weights.refuse_rest();
    return net;
}

void answer(SurfaceNet& net, const Input& surface, const Input& mask, const Input& last, const Input& last_mask,
            const Input& move, const Output& completed, const Output& deviation, const Output& latent,
            const Output& surprise, const Output& regime) {
    const size_t count = surface.ndim() ? surface.shape(0) : 0;
    const Shape grid{count, net.cells()};
    net.answer(count, checked("surface", surface, grid), checked("mask", mask, grid), checked("last", last, grid),
               checked("last_mask", last_mask, grid), checked("move", move, {count, net.moves()}),
               checked("completed", completed, grid), checked("deviation", deviation, grid),
               checked("latent", latent, {count, net.latent()}), checked("surprise", surprise, {count}),
               checked("regime", regime, {count, net.regimes()}));
}

}  // namespace

void bind_surface(nb::module_& module) {
    nb::class_<SurfaceNet>(module, "SurfaceNet", "surface_vae's answer at the latent's mean; keeps no state.")
        .def(nb::new_(&make), nb::arg("sizes"), nb::arg("file"), nb::arg("weights"), nb::arg("precision") = "fp32",
             nb::arg("isa") = "")
        .def("answer", &answer, nb::arg("surface"), nb::arg("mask"), nb::arg("last"), nb::arg("last_mask"),
             nb::arg("move"), nb::arg("completed"), nb::arg("deviation"), nb::arg("latent"), nb::arg("surprise"),
             nb::arg("regime"), "Any number of surfaces; the last five arrays are written.")
        .def_prop_ro("latent", &SurfaceNet::latent)
        .def_prop_ro("regimes", &SurfaceNet::regimes);
}

}  // namespace strikeforge
