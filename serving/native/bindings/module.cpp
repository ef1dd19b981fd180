// serving.native._core: the extension module. Arrays cross by reference; what is written is the caller's memory.
// A refusal is a serving.errors.EngineError, of the host's rings and limits a HostError; their module is imported when
// the first one is raised.
#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "nets/weights.hpp"
#include "transport/ring.hpp"

namespace nb = nanobind;

namespace {

void raise(const char* name, const std::exception& problem) {
    const nb::object error = nb::module_::import_("serving.errors").attr(name);
    PyErr_SetString(error.ptr(), problem.what());
}

void to_our_errors(const std::exception_ptr& pointer, void*) {
    try {
        std::rethrow_exception(pointer);
    } catch (const strikeforge::EngineProblem& problem) {
        raise("EngineError", problem);
    } catch (const strikeforge::RingProblem& problem) {
        raise("HostError", problem);
    }
}

}  // namespace

NB_MODULE(_core, module) {
    strikeforge::import_numpy();
    nb::register_exception_translator(to_our_errors);
    strikeforge::bind_cpu(module);
    strikeforge::bind_engine(module);
    strikeforge::bind_dense(module);
    strikeforge::bind_head(module);
    strikeforge::bind_surface(module);
    strikeforge::bind_options(module);
    strikeforge::bind_transport(module);
    strikeforge::bind_market(module);
    strikeforge::bind_risk(module);
    strikeforge::bind_loop(module);
    strikeforge::bind_feed(module);
}
