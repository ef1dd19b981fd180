#include "nets/lstm_memory.hpp"

#include <cmath>
#include <cstring>

namespace strikeforge {

namespace {

// A and B one above the other, each padded: [2 padded(D), H].
Matrix packed_projection(Precision precision, const float* weights, size_t context, size_t hidden) {
    const size_t wide = padded(context);
    Matrix out(precision, 2 * wide, hidden);
    for (size_t row = 0; row < context; ++row) {
        out.set_row(row, weights + row * 2 * hidden);
        out.set_row(wide + row, weights + row * 2 * hidden + hidden);
    }
    return out;
}

Matrix scaled_query(Precision precision, const float* weights, size_t hidden) {
    std::vector<float> scaled(weights, weights + hidden * hidden);
    const float unit = 1.0f / std::sqrt(static_cast<float>(hidden));
    for (float& value : scaled) value *= unit;
    return Matrix(precision, scaled.data(), hidden, hidden);
}

}  // namespace

LstmMemory::LstmMemory(Weights& weights, const Choice& choice, size_t steps, size_t hidden, size_t context)
    : kernels_(&dense_kernels(choice.isa)),
      precision_(choice.precision),
      projection_precision_(choice.precision == Precision::int8 ? Precision::bf16 : choice.precision),
      rows_(steps - 1),
      hidden_(hidden),
      context_size_(context),
      context_padded_(padded(context)),
      query_(scaled_query(precision_, weights.take("query.weight", {hidden, hidden}), hidden)),
      projection_(packed_projection(projection_precision_, weights.take("project.weight", {context, 2 * hidden}),
                                    context, hidden)),
      memory_(precision_, rows_, hidden),
      pooled_(Precision::fp32, context, rows_),
      projection_bias_(2 * context_padded_),
      operand_(4 * padded(hidden)),
      queried_(padded(hidden)),
      projected_(2 * context_padded_),
      score_(padded(rows_ + 1)),
      sum_(context_padded_) {
    std::memcpy(projection_bias_.data(), weights.take("project.bias", {context}), context * sizeof(float));
    clear();
}

void LstmMemory::clear() {
    memory_.clear();
    pooled_.clear();
    next_ = 0;
}

void LstmMemory::project(const float* hidden) {
    VectorView operand{operand_.data(), 1.0f};
    kernels_->load(projection_precision_, hidden, hidden_, &operand);
    kernels_->gemv(projection_.view(), operand, projection_bias_.data(), projected_.data());
}

void LstmMemory::remember(const float* hidden) {
    if (rows_ == 0) return;
    project(hidden);
    memory_.set_row(next_, hidden);
    pooled_.set_column(next_, projected_.data() + context_padded_);
    next_ = (next_ + 1) % rows_;
}

void LstmMemory::context_of(const float* hidden, float* context) {
    project(hidden);
    VectorView operand{operand_.data(), 1.0f};
    kernels_->load(precision_, hidden, hidden_, &operand);
    kernels_->gemv(query_.view(), operand, nullptr, queried_.data());
    kernels_->load(precision_, queried_.data(), hidden_, &operand);
    kernels_->gemv(memory_.view(), operand, nullptr, score_.data());
    score_[rows_] = kernels_->dot(queried_.data(), hidden, queried_.size());
    kernels_->softmax(score_.data(), rows_ + 1);
    const VectorView weights{score_.data(), 1.0f};
    kernels_->gemv(pooled_.view(), weights, projected_.data(), sum_.data());
    const float newest = score_[rows_];
    for (size_t i = 0; i < context_padded_; ++i) sum_[i] += newest * projected_[context_padded_ + i];
    kernels_->tanh(sum_.data(), context_padded_);
    std::memcpy(context, sum_.data(), context_size_ * sizeof(float));
}

}  // namespace strikeforge
