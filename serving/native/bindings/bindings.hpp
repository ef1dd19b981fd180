// One function for each part of the module.
#pragma once

#include <nanobind/nanobind.h>

namespace strikeforge {
void bind_cpu(nanobind::module_& module);
void bind_engine(nanobind::module_& module);
void bind_dense(nanobind::module_& module);
void bind_head(nanobind::module_& module);
void bind_surface(nanobind::module_& module);
void bind_options(nanobind::module_& module);
void bind_transport(nanobind::module_& module);
void bind_market(nanobind::module_& module);
void bind_risk(nanobind::module_& module);
void bind_loop(nanobind::module_& module);
void bind_feed(nanobind::module_& module);
}  // namespace strikeforge
