// surface_vae's forward pass: completed surfaces, deviations, latents, surprises, regimes (models/surface_vae.py).
#pragma once

#include <cstddef>
#include <memory>

#include "base/cpu.hpp"
#include "dense/pack.hpp"
#include "nets/weights.hpp"

namespace strikeforge {

class SurfaceNet {
  public:
    virtual ~SurfaceNet() = default;
    virtual size_t cells() const = 0;
    virtual size_t moves() const = 0;
    virtual size_t latent() const = 0;
    virtual size_t regimes() const = 0;
    // `count` surfaces; row-major [count, cells] and so on, as serving/surface_score.py names them.
    virtual void answer(size_t count, const float* surface, const float* mask, const float* last,
                        const float* last_mask, const float* move, float* completed, float* deviation, float* latent,
                        float* surprise, float* regime) = 0;
};

std::unique_ptr<SurfaceNet> make_surface(const Sizes& sizes, Weights& weights, Isa isa, Precision precision);

}  // namespace strikeforge
