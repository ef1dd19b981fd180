#include "bindings/bindings.hpp"

namespace strikeforge {

void bind_market(nanobind::module_&) {}

}  // namespace strikeforge
