// Subnormal floats (below 1.2e-38) taken for zero while a net runs.
//
// A processor multiplies them in microcode, a hundred times slower; an LSTM's cells that decay through a quiet hour, a
// softmax's tail or a caller's 1e-40 would each make a tick late. What is lost is below 1.2e-38 of a context of order
// one. Done on x86-64, where every thread has such a switch; elsewhere nothing is done.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace strikeforge {

// For as long as it lives, on its thread; what the caller had set comes back afterwards.
class SubnormalsAreZero {
  public:
#if defined(__SSE2__)
    SubnormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | flush_results | zero_operands); }
    ~SubnormalsAreZero() { _mm_setcsr(before_); }
#else
    SubnormalsAreZero() {}
    ~SubnormalsAreZero() {}
#endif
    SubnormalsAreZero(const SubnormalsAreZero&) = delete;
    SubnormalsAreZero& operator=(const SubnormalsAreZero&) = delete;

  private:
#if defined(__SSE2__)
    static constexpr unsigned flush_results = 0x8000, zero_operands = 0x40;
    unsigned before_;
#endif
};

}  // namespace strikeforge
