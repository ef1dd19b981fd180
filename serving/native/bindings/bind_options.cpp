#include "bindings/bindings.hpp"

namespace strikeforge {

void bind_options(nanobind::module_&) {}

}  // namespace strikeforge
