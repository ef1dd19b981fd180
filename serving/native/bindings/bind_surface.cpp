#include "bindings/bindings.hpp"

namespace strikeforge {

void bind_surface(nanobind::module_&) {}

}  // namespace strikeforge
