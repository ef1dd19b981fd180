#include "bindings/bindings.hpp"

namespace strikeforge {

void bind_dense(nanobind::module_&) {}

}  // namespace strikeforge
