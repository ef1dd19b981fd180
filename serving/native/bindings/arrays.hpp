// NumPy arrays as plain pointers, checked on every call.
//
// The check reads the array's own struct (NumPy's C interface): a few nanoseconds, where the buffer protocol costs more
// than a small net. An array that fails it is handed to `serving.engine.check_array`, which raises the EngineError that
// names the tensor, what was expected and what was found: one wording for every back end.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace strikeforge {

void import_numpy();  // once, while the module is loaded

// Float32 arrays in C order, aligned; EngineError names what is wrong.
const float* vector_of(const char* name, nanobind::handle array, size_t size);
float* written_vector_of(const char* name, nanobind::handle array, size_t size);

struct RowsOf {
    const float* data;
    size_t count;
};
RowsOf rows_of(const char* name, nanobind::handle array, size_t columns);

// A new int64 array [size] and where its numbers lie.
nanobind::object new_int64(size_t size, std::int64_t** data);

}  // namespace strikeforge
