// serving.native._core: the extension module. Arrays cross by reference; what is written is the caller's memory.
// A refusal is a serving.errors.EngineError, whose module is imported when the first one is raised.
#include "bindings/arrays.hpp"
#include "bindings/bindings.hpp"
#include "nets/weights.hpp"

namespace nb = nanobind;

namespace {

void to_engine_error(const std::exception_ptr& pointer, void*) {
    try {
        std::rethrow_exception(pointer);
    } catch (const strikeforge::EngineProblem& problem) {
        const nb::object error = nb::module_::import_("serving.errors").attr("EngineError");
        PyErr_SetString(error.ptr(), problem.what());
    }
}

}  // namespace

NB_MODULE(_core, module) {
    strikeforge::import_numpy();
    nb::register_exception_translator(to_engine_error);
    strikeforge::bind_cpu(module);
    strikeforge::bind_engine(module);
    strikeforge::bind_dense(module);
    strikeforge::bind_head(module);
    strikeforge::bind_surface(module);
    strikeforge::bind_options(module);
}
