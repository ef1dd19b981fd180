// The risk gate and the strategies alone, for tests: the loop has its own (bind_loop.cpp).
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.hpp"
#include "bindings/host_types.hpp"
#include "host/risk.hpp"
#include "host/strategy.hpp"
#include "market/book.hpp"

namespace nb = nanobind;

namespace strikeforge {

Limits limits_of(nb::handle limits) {
    Limits out{};
    for (const LimitField& field : limit_fields) {
        const nb::object value = limits.attr(field.name);
        if (field.number)
            out.*field.number = nb::cast<double>(value);
        else
            out.*field.time = nb::cast<std::int64_t>(value);
    }
    return out;
}

FixedWidth fixed_width_of(nb::handle options) {
    const auto number = [&](const char* name) { return nb::cast<double>(options.attr(name)); };
    return {number("half_width_money"),    number("quantity"),   number("requote_money"),
            number("skew_money_per_unit"), number("tick_money"), nb::cast<std::int64_t>(options.attr("retry_ns"))};
}

namespace {

// fair, delta, gamma, vega, position, cash, then id (an integer's bits), price, quantity of the working buy and sell.
constexpr size_t contract_words = sizeof(ContractState) / sizeof(double);
static_assert(contract_words == 12);

struct BoundGate {
    KeptOrders kept;
    std::atomic<std::uint32_t> kill{0};
    std::vector<ContractState> contracts;
    RiskGate gate;

    BoundGate(nb::handle limits, size_t count, size_t room)
        : kept(room), contracts(count, ContractState{}), gate(limits_of(limits), count, kept, &kill) {}
};

Reason reason_of(unsigned reason) {
    if (reason >= static_cast<unsigned>(Reason::reason_count)) throw HostProblem("there is no such reason");
    return static_cast<Reason>(reason);
}

nb::ndarray<nb::numpy, double, nb::ndim<2>> contracts_of(nb::handle_t<BoundGate> self) {
    auto& contracts = nb::cast<BoundGate&>(self).contracts;
    return nb::ndarray<nb::numpy, double, nb::ndim<2>>(contracts.data(), {contracts.size(), contract_words}, self);
}

nb::bytes take_orders(BoundGate& self) {
    const auto& records = self.kept.records();
    const nb::bytes out(records.data(), records.size() * sizeof(Record));
    self.kept.clear();
    return out;
}

struct BoundStrategy {
    std::unique_ptr<Strategy> strategy;
    Book book;  // no strategy of ours looks at it

    nb::list ask(const BoundGate& gate, const Market& market, size_t room) {
        Intents intents(room);
        strategy->on_event(market, book, gate.contracts, intents);
        nb::list out;
        for (const Intent& intent : intents)
            out.append(nb::make_tuple(intent.contract, intent.flags, intent.price, intent.quantity));
        return out;
    }
    void tell_refused(std::uint16_t contract, std::uint8_t flags, const Market& market) {
        strategy->on_refused({contract, flags, 0, 0}, market);
    }
};

void host_errors(const std::exception_ptr& pointer, void*) {
    try {
        std::rethrow_exception(pointer);
    } catch (const HostProblem& problem) {
        const nb::object error = nb::module_::import_("serving.errors").attr("HostError");
        PyErr_SetString(error.ptr(), problem.what());
    }
}

}  // namespace

void bind_risk(nb::module_& module) {
    nb::register_exception_translator(host_errors);
    std::vector<std::string> names;
    for (const LimitField& field : limit_fields) names.emplace_back(field.name);
    module.attr("LIMIT_NAMES") = nb::cast(names);
    module.attr("MOST_ORDER_RATE") = most_order_rate;
    module.def("reason_name", [](unsigned reason) { return reason_name(reason_of(reason)); }, nb::arg("reason"));
    module.def(
        "state_name",
        [](unsigned state) {
            if (state > static_cast<unsigned>(State::halted)) throw HostProblem("there is no such state");
            return state_name(static_cast<State>(state));
        },
        nb::arg("state"));

    nb::class_<Market>(module, "Market")
        .def(
            "__init__",
            [](Market* self, std::int64_t event_ns, std::int64_t book_changed_ns, double spot, double anomaly_score,
               double clipped_share, bool model_expired, std::int64_t arrival_ns) {
                new (self)
                    Market{event_ns, arrival_ns, book_changed_ns, spot, anomaly_score, clipped_share, model_expired};
            },
            nb::arg("event_ns"), nb::arg("book_changed_ns"), nb::arg("spot"), nb::arg("anomaly_score") = 0.0,
            nb::arg("clipped_share") = 0.0, nb::arg("model_expired") = false, nb::arg("arrival_ns") = 0)
        .def_rw("event_ns", &Market::event_ns)
        .def_rw("arrival_ns", &Market::arrival_ns)
        .def_rw("book_changed_ns", &Market::book_changed_ns)
        .def_rw("spot", &Market::spot)
        .def_rw("anomaly_score", &Market::anomaly_score)
        .def_rw("clipped_share", &Market::clipped_share)
        .def_rw("model_expired", &Market::model_expired);

    nb::class_<BoundGate>(module, "RiskGate", "The gate, its contracts and what left it, for tests.")
        .def(nb::init<nb::handle, size_t, size_t>(), nb::arg("limits"), nb::arg("contracts"), nb::arg("room") = 1024)
        .def_prop_ro("contracts", &contracts_of)
        .def("on_market", [](BoundGate& self, const Market& market) { self.gate.on_market(market, self.contracts); })
        .def(
            "submit",
            [](BoundGate& self, std::uint16_t contract, std::uint8_t flags, double price, double quantity,
               const Market& market) {
                return static_cast<unsigned>(
                    self.gate.submit({contract, flags, price, quantity}, market, self.contracts));
            },
            nb::arg("contract"), nb::arg("flags"), nb::arg("price"), nb::arg("quantity"), nb::arg("market"))
        .def("cancel_all", [](BoundGate& self, const Market& market) { self.gate.cancel_all(market, self.contracts); })
        .def("halt", [](BoundGate& self, unsigned why,
                        const Market& market) { self.gate.halt(reason_of(why), market, self.contracts); })
        .def("reduce", [](BoundGate& self, unsigned why) { self.gate.reduce(reason_of(why)); })
        .def("resume", [](BoundGate& self) { self.gate.resume(); })
        .def("set_limits", [](BoundGate& self, nb::handle limits) { self.gate.set_limits(limits_of(limits)); })
        .def("set_kill", [](BoundGate& self, bool killed) { self.kill = killed; })
        .def("take_orders", &take_orders, "Records that left since the last call, 56 bytes each.")
        .def("refused", [](const BoundGate& self, unsigned reason) { return self.gate.refused(reason_of(reason)); })
        .def_prop_ro("state", [](const BoundGate& self) { return static_cast<unsigned>(self.gate.state()); })
        .def_prop_ro("why", [](const BoundGate& self) { return static_cast<unsigned>(self.gate.why()); })
        .def_prop_ro("accepted", [](const BoundGate& self) { return self.gate.accepted(); })
        .def_prop_ro("cancelled", [](const BoundGate& self) { return self.gate.cancelled(); })
        .def_prop_ro("records", [](const BoundGate& self) { return self.gate.records(); })
        .def_prop_ro("profit", [](const BoundGate& self) { return self.gate.profit(); })
        .def_prop_ro("best_profit", [](const BoundGate& self) { return self.gate.best_profit(); });

    nb::class_<BoundStrategy>(module, "Strategy", "A strategy alone, for tests.")
        .def("ask", &BoundStrategy::ask, nb::arg("gate"), nb::arg("market"), nb::arg("room") = 128,
             "(contract, flags, price, quantity) of each intent.")
        .def("tell_refused", &BoundStrategy::tell_refused, nb::arg("contract"), nb::arg("flags"), nb::arg("market"));
    module.def("null_strategy", [] { return BoundStrategy{make_null_strategy(), {}}; });
    module.def(
        "fixed_width",
        [](nb::handle options, size_t contracts) {
            return BoundStrategy{make_fixed_width(fixed_width_of(options), contracts), {}};
        },
        nb::arg("options"), nb::arg("contracts"));
}

}  // namespace strikeforge
