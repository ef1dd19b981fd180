#include "bindings/bindings.hpp"

namespace strikeforge {

void bind_transport(nanobind::module_&) {}

}  // namespace strikeforge
