// The attention pooling of pricing_lstm over the last T outputs, with all but the newest output's share computed ahead.
//
//     q = Q h / sqrt(H);  w = softmax(q . m_0, ..., q . m_(T-2), q . h);  context = tanh(A h + b + B sum of w m)
//
// h: the newest output [H]; m: the T-1 outputs before it, zeros before the first; [A B]: the projection. What
// `remember` keeps of an output is itself, as a row of a packed matrix, and B m [D], so that the sum runs over D and
// not H numbers. The order of rows doesn't matter to a softmax: they lie in a ring. fp32 throughout, but for the
// products with Q, A, B and the remembered rows, whose precision is that of the choice (A and B are bf16 under int8:
// their error goes straight into the context).
#pragma once

#include "dense/kernels.hpp"
#include "nets/encoder.hpp"

namespace strikeforge {

class LstmMemory {
  public:
    // Takes `query.weight` [H, H], `project.weight` [D, 2 H] and `project.bias` [D].
    LstmMemory(Weights& weights, const Choice& choice, size_t steps, size_t hidden, size_t context);
    void clear();
    void remember(const float* hidden);                    // [H], padded with zeros
    void context_of(const float* hidden, float* context);  // context [D]
    size_t context_size() const { return context_size_; }

  private:
    void project(const float* hidden);

    const DenseKernels* kernels_;
    Precision precision_, projection_precision_;
    size_t rows_, hidden_, context_size_, context_padded_;
    Matrix query_, projection_;  // projection_: rows of A, then of B
    Matrix memory_, pooled_;     // [T-1, H]; fp32 [D, T-1]
    Aligned<float> projection_bias_;
    Aligned<std::uint8_t> operand_;  // a vector in a matrix's precision
    Aligned<float> queried_, projected_, score_, sum_;
    size_t next_ = 0;
};

}  // namespace strikeforge
