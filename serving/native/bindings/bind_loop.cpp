#include "bindings/bindings.hpp"

namespace strikeforge {

void bind_loop(nanobind::module_&) {}

}  // namespace strikeforge
