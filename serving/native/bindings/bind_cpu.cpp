#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "base/allocations.hpp"
#include "base/cpu.hpp"
#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "host/jitter.hpp"

namespace strikeforge {

namespace {

nanobind::object array_of(const std::vector<std::int64_t>& values) {
    std::int64_t* data;
    nanobind::object array = new_int64(values.size(), &data);
    std::copy(values.begin(), values.end(), data);
    return array;
}

}  // namespace

void bind_cpu(nanobind::module_& module) {
    module.def(
        "isas",
        [] {
            std::vector<std::string> names;
            for (int level = 0; level <= static_cast<int>(supported_isa()); ++level)
                names.emplace_back(isa_name(static_cast<Isa>(level)));
            return names;
        },
        "Instruction sets this CPU can run, lowest first.");
    module.def(
        "choose_isa", [](const std::string& asked) { return std::string(isa_name(choose_isa(asked))); },
        nanobind::arg("asked") = "", "The set that runs where `asked` is asked for; ValueError where it can't.");
    module.def("cpu_name", &cpu_name, "The processor's own name.");
    module.def(
        "largest_gaps",
        [](size_t windows, std::int64_t window_ns) {
            std::vector<std::int64_t> gaps;
            {
                const nanobind::gil_scoped_release others_may_run;
                gaps = largest_gaps(windows, window_ns);
            }
            return array_of(gaps);
        },
        nanobind::arg("windows"), nanobind::arg("window_ns"),
        "Largest gap (ns) between two readings of the clock in each window of an idle spin.");
    module.def(
        "idle_arrivals",
        [](size_t count, std::int64_t period_ns, std::int64_t busy_ns) {
            std::vector<std::int64_t> taken;
            {
                const nanobind::gil_scoped_release others_may_run;
                taken = idle_arrivals(count, period_ns, busy_ns);
            }
            return array_of(taken);
        },
        nanobind::arg("count"), nanobind::arg("period_ns"), nanobind::arg("busy_ns"),
        "Time (ns) from each scheduled arrival to the end of `busy_ns` of arithmetic for nothing.");
    module.def("clock_cost_ns", &clock_cost_ns, nanobind::arg("batches"),
               nanobind::call_guard<nanobind::gil_scoped_release>(),
               "What reading CLOCK_MONOTONIC takes, ns: the median over batches of 1,000.");
    module.def("allocation_count", &allocation_count, "Allocations of this module since it was loaded.");
}

}  // namespace strikeforge
