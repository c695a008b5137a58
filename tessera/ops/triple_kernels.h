#pragma once

#include <cstdint>

/// The inner loops of LearnBPR on the rows of a triple (user, positive, negative), see kernels.h.
namespace tessera::kernels {

template <typename T>
struct Triple {
  T margin;   ///< u (p - n)
  T squares;  ///< |u|^2 + |p|^2 + |n|^2
};
Triple<float> triple(const float* u, const float* p, const float* n, int64_t d);
Triple<double> triple(const double* u, const double* p, const double* n, int64_t d);

/// All three shrink to `keep` of themselves; then, with the old rows, u += pull (p - n),
/// p += pull u, n -= pull u.
void move_triple(float* u, float* p, float* n, int64_t d, float pull, float keep);
void move_triple(double* u, double* p, double* n, int64_t d, double pull, double keep);

}  // namespace tessera::kernels
