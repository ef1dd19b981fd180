// serving.native._core: the extension module. Arrays cross by reference; what is written is the caller's memory.
#include "bindings/bindings.hpp"

namespace nb = nanobind;

NB_MODULE(_core, module) {
    strikeforge::bind_cpu(module);
    strikeforge::bind_engine(module);
    strikeforge::bind_dense(module);
    strikeforge::bind_head(module);
    strikeforge::bind_surface(module);
    strikeforge::bind_options(module);
}
