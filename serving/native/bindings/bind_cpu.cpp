#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "base/allocations.hpp"
#include "base/cpu.hpp"
#include "bindings/bindings.hpp"

namespace strikeforge {

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
    module.def("allocation_count", &allocation_count, "Allocations of this module since it was loaded.");
}

}  // namespace strikeforge
