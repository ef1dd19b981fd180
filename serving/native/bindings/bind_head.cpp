#include "bindings/bindings.hpp"

namespace strikeforge {

void bind_head(nanobind::module_&) {}

}  // namespace strikeforge
