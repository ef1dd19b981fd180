#include "bindings/bindings.hpp"

namespace strikeforge {

void bind_risk(nanobind::module_&) {}

}  // namespace strikeforge
