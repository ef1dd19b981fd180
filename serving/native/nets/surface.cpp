#include "nets/surface.hpp"

namespace strikeforge {

std::unique_ptr<SurfaceNet> make_surface(const Sizes&, Weights&, Isa, Precision) {
    throw EngineProblem("native: surface_vae isn't built yet");
}

}  // namespace strikeforge
