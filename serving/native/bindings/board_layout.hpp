// Where everything lies on the board and in the chain's file, for serving/host/board.py.
#pragma once

#include <nanobind/nanobind.h>

namespace strikeforge {
void bind_board_layout(nanobind::module_& module);
}  // namespace strikeforge
