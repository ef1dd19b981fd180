#include "bindings/bindings.hpp"

namespace strikeforge {

void bind_feed(nanobind::module_&) {}

}  // namespace strikeforge
