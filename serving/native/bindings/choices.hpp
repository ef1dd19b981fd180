// What a caller names of a fixed few, looked up; what there isn't is refused as an EngineProblem listing what there is.
#pragma once

#include <stdexcept>
#include <string>

#include "base/cpu.hpp"
#include "dense/pack.hpp"
#include "nets/weights.hpp"

namespace strikeforge {

template <class Chosen>
Chosen named(Chosen (*look)(const std::string&), const std::string& name) {
    try {
        return look(name);
    } catch (const std::invalid_argument& error) {
        throw EngineProblem(error.what());
    }
}

inline Isa named_isa(const std::string& name) {
    return named(choose_isa, name);
}
inline Precision named_precision(const std::string& name) {
    return named(parse_precision, name);
}

}  // namespace strikeforge
