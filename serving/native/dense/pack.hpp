// Weights as kernels read them: rows in panels, lanes side by side, one stream from first byte to last.
//
// A matrix W [rows, columns] is cut into panels of up to 8 vectors of 16 rows. Within a panel, all vectors of column
// group 0 come first, then those of group 1, and so on; a vector is 64 bytes in every precision:
//     fp32   [panel][column    ][vector][16]        float
//     bf16   [panel][column / 2][vector][16][2]     upper half of a float, rounded to nearest even
//     int8   [panel][column / 4][vector][16][4]     round(w / scale[row]), in -127..127
// Columns are padded with zeros to a multiple of 4 in every precision, rows to a multiple of 16.
// int8: w ~ scale[row] * q. The vector's bytes are unsigned (value + 128), so that VNNI can multiply them; `correction`
// holds 128 * sum of a row's q, to be taken off again. Integer sums are exact: all instruction sets agree to the bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/aligned.hpp"
#include "dense/table.hpp"

namespace strikeforge {

const char* precision_name(Precision precision);
Precision parse_precision(const std::string& name);  // std::invalid_argument names the choices

class Matrix {
  public:
    Matrix() = default;
    // Zeros, to be filled row by row or column by column.
    Matrix(Precision precision, size_t rows, size_t columns);
    // `weights` row-major [rows, columns]. `order`, where given, says which row stands at each packed place (-1: a row
    // of zeros); its size is a multiple of 16 then.
    Matrix(Precision precision, const float* weights, size_t rows, size_t columns,
           const std::vector<std::int32_t>& order = {});
    // Replace the row at a packed place by `values` [columns]. Nothing allocates.
    void set_row(size_t place, const float* values);
    // Replace a column by `values` [rows]; fp32 only, since a row's scale may change with any of its columns.
    void set_column(size_t column, const float* values);
    void clear();  // zeros
    MatrixView view() const;
    MatrixView panel(size_t index) const;  // of rows [128 index, 128 index + 128)
    size_t panels() const { return (rows_ / lanes + panel_vectors - 1) / panel_vectors; }
    size_t rows() const { return rows_; }  // padded

  private:
    size_t at(size_t place, size_t column) const;  // in elements

    Precision precision_ = Precision::fp32;
    size_t rows_ = 0, columns_ = 0;
    Aligned<std::uint8_t> weights_;
    Aligned<float> scale_;
    Aligned<std::int32_t> correction_;
};

std::uint16_t to_bf16(float value);  // to nearest, ties to even
float from_bf16(std::uint16_t value);

}  // namespace strikeforge
