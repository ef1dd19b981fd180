#include "bindings/arrays.hpp"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <string>

#include "nets/weights.hpp"

namespace nb = nanobind;

namespace strikeforge {

namespace {

bool is_plain(nb::handle object, int dimensions) {
    if (!PyArray_Check(object.ptr())) return false;
    auto* array = reinterpret_cast<PyArrayObject*>(object.ptr());
    return PyArray_TYPE(array) == NPY_FLOAT && PyArray_NDIM(array) == dimensions && PyArray_ISCARRAY_RO(array);
}

PyArrayObject* array_of(nb::handle object) {
    return reinterpret_cast<PyArrayObject*>(object.ptr());
}

// Raises what serving.engine.check_array raises; what passes it there is refused for its layout.
[[noreturn]] void refuse(const char* name, nb::handle object, const nb::tuple& shape, bool written) {
    nb::module_::import_("serving.engine").attr("check_array")(name, object, shape, nb::arg("written") = written);
    const std::string strides = nb::str(object.attr("strides")).c_str();
    throw EngineProblem(std::string("tensor '") + name +
                        "': expected a C-contiguous, aligned array in the machine's byte order, found strides " +
                        strides + ": use numpy.ascontiguousarray");
}

}  // namespace

void import_numpy() {
    if (PyArray_ImportNumPyAPI() < 0) throw nb::python_error();
}

const float* vector_of(const char* name, nb::handle array, size_t size) {
    if (!is_plain(array, 1) || static_cast<size_t>(PyArray_DIM(array_of(array), 0)) != size) [[unlikely]]
        refuse(name, array, nb::make_tuple(size), false);
    return static_cast<const float*>(PyArray_DATA(array_of(array)));
}

float* written_vector_of(const char* name, nb::handle array, size_t size) {
    if (!is_plain(array, 1) || static_cast<size_t>(PyArray_DIM(array_of(array), 0)) != size ||
        !PyArray_ISWRITEABLE(array_of(array))) [[unlikely]]
        refuse(name, array, nb::make_tuple(size), true);
    return static_cast<float*>(PyArray_DATA(array_of(array)));
}

RowsOf rows_of(const char* name, nb::handle array, size_t columns) {
    if (!is_plain(array, 2) || static_cast<size_t>(PyArray_DIM(array_of(array), 1)) != columns) [[unlikely]] {
        const bool has_rows = PyArray_Check(array.ptr()) && PyArray_NDIM(array_of(array)) > 0;
        const auto count = has_rows ? static_cast<size_t>(PyArray_DIM(array_of(array), 0)) : size_t{0};
        refuse(name, array, nb::make_tuple(count, columns), false);
    }
    return {static_cast<const float*>(PyArray_DATA(array_of(array))),
            static_cast<size_t>(PyArray_DIM(array_of(array), 0))};
}

nb::object new_int64(size_t size, std::int64_t** data) {
    npy_intp shape = static_cast<npy_intp>(size);
    nb::object array = nb::steal(PyArray_SimpleNew(1, &shape, NPY_INT64));
    if (!array.is_valid()) throw nb::python_error();
    *data = static_cast<std::int64_t*>(PyArray_DATA(array_of(array)));
    return array;
}

}  // namespace strikeforge
