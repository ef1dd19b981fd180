// What serving/host hands to the loop and the gate, read from Python objects by attribute.
#pragma once

#include <nanobind/nanobind.h>

#include "host/limits.hpp"
#include "host/strategy.hpp"

namespace strikeforge {

Limits limits_of(nanobind::handle limits);            // serving.host.limits.Limits
FixedWidth fixed_width_of(nanobind::handle options);  // half_width_money, quantity, ... as in FixedWidth

}  // namespace strikeforge
