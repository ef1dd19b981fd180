// Tensors by name, each to be taken exactly once: a missing one, a wrong shape, a value that isn't finite and a tensor
// that nobody took are refused by name. Names and shapes are those of the net's state dict (models/).
#pragma once

#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace strikeforge {

// A refusal that names what is wrong; Python sees an EngineError.
struct EngineProblem : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Shape = std::vector<size_t>;
std::string shape_text(const Shape& shape);  // "(64, 32)"

struct Tensor {
    const float* data;
    Shape shape;
};

class Weights {
  public:
    // `file` is named in refusals.
    Weights(std::string file, std::map<std::string, Tensor> tensors)
        : file_(std::move(file)), all_(std::move(tensors)) {}
    const float* take(const std::string& name, const Shape& shape);
    void refuse_rest() const;  // EngineProblem where a tensor wasn't taken: an unknown layer

  private:
    std::string file_;
    std::map<std::string, Tensor> all_;
    std::set<std::string> taken_;
};

// Far above any net of ours; a sum of so many int8 products (127 x 255 each) doesn't overflow its 32 bits.
inline constexpr size_t largest_size = 1u << 15;

// The whole numbers of a net's configuration (the manifest's model_config).
class Sizes {
  public:
    explicit Sizes(std::map<std::string, double> values) : values_(std::move(values)) {}
    size_t take(const std::string& name, size_t least = 1, size_t most = largest_size) const;

  private:
    std::map<std::string, double> values_;
};

}  // namespace strikeforge
