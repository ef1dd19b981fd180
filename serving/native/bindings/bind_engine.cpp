// The engine of a pricing bundle, and one encoder alone (for tests and for timing nets that have no head). Arguments
// are taken as they come and checked by arrays.hpp: no conversion, no temporary, on any call of the tick's path.
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <memory>

#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "bindings/choices.hpp"
#include "nets/engine.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace strikeforge {

namespace {

using Array = nb::ndarray<nb::numpy, const float, nb::c_contig, nb::device::cpu>;
using Arrays = std::map<std::string, Array>;
using Numbers = std::map<std::string, double>;

Weights weights_of(const std::string& file, const Arrays& arrays) {
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, array] : arrays) {
        Shape shape;
        for (size_t axis = 0; axis < array.ndim(); ++axis) shape.push_back(array.shape(axis));
        tensors.emplace(name, Tensor{array.data(), shape});
    }
    return {file, std::move(tensors)};
}

Choice choice_of(const std::string& precision, const std::string& semantics, const std::string& isa) {
    if (semantics != "window" && semantics != "stateful")
        throw EngineProblem("there are no semantics '" + semantics + "'; there are window, stateful");
    return {named_isa(isa), named_precision(precision),
            semantics == "stateful" ? Semantics::stateful : Semantics::window};
}

std::unique_ptr<Encoder> make_encoder(const std::string& family, const Sizes& sizes, Weights& weights,
                                      const Choice& choice) {
    if (family == "pricing_lstm") return make_lstm(sizes, weights, choice);
    if (family == "pricing_transformer") return make_transformer(sizes, weights, choice);
    throw EngineProblem("the native engine has no pricing net '" + family +
                        "'; it has pricing_lstm, pricing_transformer");
}

// `evaluate`, `advance`, `reset` and their timing, of an engine or an encoder.
template <class Net>
void bind_steps(nb::class_<Net>& bound) {
    bound.def("reset", &Net::reset)
        .def(
            "evaluate",
            [](Net& net, nb::handle x, nb::handle out) {
                const float* step = vector_of("x", x, net.step_features());
                net.evaluate(step, written_vector_of("context", out, net.context_size()));
            },
            "x"_a.none(), "out"_a.none())
        .def(
            "advance", [](Net& net, nb::handle x) { net.advance(vector_of("x", x, net.step_features())); },
            "x"_a.none())
        .def(
            "time_evaluate",
            [](Net& net, nb::handle x, bool advance) {
                using Clock = std::chrono::steady_clock;
                const RowsOf rows = rows_of("x", x, net.step_features());
                std::int64_t* nanoseconds = nullptr;
                nb::object out = new_int64(rows.count, &nanoseconds);
                const std::unique_ptr<float[]> context(new float[net.context_size()]);
                for (size_t row = 0; row < rows.count; ++row) {
                    const float* step = rows.data + row * net.step_features();
                    const auto begin = Clock::now();
                    net.evaluate(step, context.get());
                    const auto end = Clock::now();
                    nanoseconds[row] = std::chrono::duration_cast<std::chrono::nanoseconds>(end - begin).count();
                    if (advance) net.advance(step);
                }
                return out;
            },
            "x"_a, "advance"_a,
            "Nanoseconds of each native `evaluate` of the rows of `x`, the clock's own (about 25) included; each row "
            "is committed afterwards where `advance`.")
        .def_prop_ro("step_features", &Net::step_features)
        .def_prop_ro("window_steps", &Net::window_steps)
        .def_prop_ro("context_size", &Net::context_size);
}

}  // namespace

void bind_engine(nb::module_& module) {
    nb::class_<Encoder> encoder(module, "Encoder");
    encoder.def(
        nb::new_([](const std::string& family, const Numbers& sizes, const std::string& file, const Arrays& arrays,
                    const std::string& precision, const std::string& semantics, const std::string& isa) {
            Weights weights = weights_of(file, arrays);
            auto made = make_encoder(family, Sizes(sizes), weights, choice_of(precision, semantics, isa));
            weights.refuse_rest();
            return made;
        }),
        "family"_a, "sizes"_a, "file"_a, "arrays"_a, "precision"_a, "semantics"_a, "isa"_a);
    bind_steps(encoder);

    nb::class_<NativeEngine> engine(module, "Engine");
    engine
        .def(
            "__init__",
            [](NativeEngine* self, const std::string& family, const Numbers& sizes,
               const std::vector<std::pair<std::string, Arrays>>& members, const std::string& precision,
               const std::string& semantics, const std::string& isa) {
                const Choice choice = choice_of(precision, semantics, isa);
                std::vector<Member> made;
                for (const auto& [file, arrays] : members) {
                    Weights weights = weights_of(file, arrays);
                    Member member;
                    member.encoder = make_encoder(family, Sizes(sizes), weights, choice);
                    member.head = make_head(Sizes(sizes), weights, choice.isa, choice.precision);
                    weights.refuse_rest();
                    made.push_back(std::move(member));
                }
                new (self) NativeEngine(std::move(made), choice.precision);
            },
            "family"_a, "sizes"_a, "members"_a, "precision"_a, "semantics"_a, "isa"_a)
        .def(
            "head",
            [](NativeEngine& self, nb::handle context, nb::handle contracts, nb::handle out) {
                const float* known = vector_of("context", context, self.context_size());
                const RowsOf rows = rows_of("contracts", contracts, self.contract_features());
                float* iv = written_vector_of("iv", out, rows.count);
                if (rows.count) self.head(known, rows.data, rows.count, self.contract_features(), iv);
            },
            "context"_a.none(), "contracts"_a.none(), "out"_a.none())
        .def_prop_ro("contract_features", &NativeEngine::contract_features);
    bind_steps(engine);
}

}  // namespace strikeforge
