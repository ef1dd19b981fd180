// Memory for weights and states: aligned to cache lines, zeroed, never resized after it was made.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace strikeforge {

inline constexpr size_t cache_line = 64;
inline constexpr size_t lanes = 16;  // rows of packed matrices and all vectors are padded to this many

constexpr size_t padded(size_t count, size_t to = lanes) {
    return (count + to - 1) / to * to;
}

// An array of `count` zeroed T, aligned to 64 bytes. Move only.
template <typename T>
class Aligned {
  public:
    Aligned() = default;
    explicit Aligned(size_t count) : count_(count) {
        if (count == 0) return;
        const size_t bytes = padded(count * sizeof(T), cache_line);
        data_.reset(static_cast<T*>(::operator new(bytes, std::align_val_t{cache_line})));
        std::memset(data_.get(), 0, bytes);
    }
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    size_t size() const { return count_; }
    T& operator[](size_t place) { return data_.get()[place]; }
    const T& operator[](size_t place) const { return data_.get()[place]; }
    void zero() {
        if (count_) std::memset(data_.get(), 0, count_ * sizeof(T));
    }

  private:
    struct Free {
        void operator()(T* memory) const { ::operator delete(memory, std::align_val_t{cache_line}); }
    };
    std::unique_ptr<T, Free> data_;
    size_t count_ = 0;
};

}  // namespace strikeforge
