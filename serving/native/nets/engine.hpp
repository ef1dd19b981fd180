// A bundle's members side by side: contexts concatenated, volatilities averaged.
#pragma once

#include <memory>
#include <vector>

#include "head/head.hpp"
#include "nets/encoder.hpp"

namespace strikeforge {

struct Member {
    std::unique_ptr<Encoder> encoder;
    std::unique_ptr<Head> head;
};

class NativeEngine {
  public:
    NativeEngine(std::vector<Member> members, Precision precision);  // at least one; all with the same F, K, T
    NativeEngine(const NativeEngine&) = delete;
    NativeEngine& operator=(const NativeEngine&) = delete;
    void reset();
    void evaluate(const float* x, float* context);
    void advance(const float* x);
    void head(const float* context, const float* contracts, size_t count, size_t stride, float* iv);
    size_t step_features() const { return members_.front().encoder->step_features(); }
    size_t window_steps() const { return members_.front().encoder->window_steps(); }
    size_t contract_features() const { return members_.front().head->contract_features(); }
    size_t context_size() const { return context_size_; }
    Precision precision() const { return precision_; }  // its members' weights'

  private:
    std::vector<Member> members_;
    size_t context_size_ = 0;
    Precision precision_;
};

}  // namespace strikeforge
