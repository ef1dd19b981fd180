#include "nets/weights.hpp"

#include <cmath>

namespace strikeforge {

std::string shape_text(const Shape& shape) {
    std::string text = "(";
    for (size_t at = 0; at < shape.size(); ++at) text += (at ? ", " : "") + std::to_string(shape[at]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

const float* Weights::take(const std::string& name, const Shape& shape) {
    const auto found = all_.find(name);
    if (found == all_.end()) throw EngineProblem(file_ + ": lacks tensor '" + name + "' of shape " + shape_text(shape));
    if (found->second.shape != shape)
        throw EngineProblem(file_ + ": tensor '" + name + "': expected shape " + shape_text(shape) + ", found " +
                            shape_text(found->second.shape));
    size_t count = 1;
    for (const size_t size : shape) count *= size;
    for (size_t at = 0; at < count; ++at) {
        if (!std::isfinite(found->second.data[at]))
            throw EngineProblem(file_ + ": tensor '" + name + "': value " + std::to_string(at) + " of " +
                                std::to_string(count) + " isn't a finite number");
    }
    if (!taken_.insert(name).second) throw std::logic_error(file_ + ": tensor '" + name + "' was taken twice");
    return found->second.data;
}

void Weights::refuse_rest() const {
    for (const auto& [name, tensor] : all_) {
        if (!taken_.contains(name))
            throw EngineProblem(file_ + ": tensor '" + name + "' of shape " + shape_text(tensor.shape) +
                                " belongs to no layer this engine knows");
    }
}

size_t Sizes::take(const std::string& name, size_t least, size_t most) const {
    const auto found = values_.find(name);
    if (found == values_.end()) throw EngineProblem("manifest.json: model_config lacks '" + name + "'");
    const double value = found->second;
    if (value != std::floor(value) || value < static_cast<double>(least) || value > static_cast<double>(most))
        throw EngineProblem("manifest.json: model_config." + name + ": expected a whole number from " +
                            std::to_string(least) + " to " + std::to_string(most) + ", found " + std::to_string(value));
    return static_cast<size_t>(value);
}

}  // namespace strikeforge
