#pragma once

#include <cstdint>

namespace tessera::kernels {

constexpr int64_t kPartLanes = 16;  ///< items of one tile

/// One user against a tile of items: a [n_parts + 1, kPartLanes], row 0 p.e and row k p.r_k, row
/// distance `stride`; open [n_parts, kPartLanes] of 0 and 1, or null. y [kPartLanes] = a_0 + sum_k
/// w_k a_k, w the softmax over the open rows. exp is a polynomial, relative error below 2e-7.
void part_softmax(const float* a, int64_t stride, const float* open, int64_t n_parts, float* y);

}  // namespace tessera::kernels
