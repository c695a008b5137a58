#pragma once

#include <cstdint>

namespace tessera::kernels {

constexpr int64_t kPartLanes = 16;  ///< items of one tile

/// One user against a tile of items: a [n_parts + 1, kPartLanes], row 0 p.e and row k p.r_k, row
/// distance `stride`; open [n_parts, kPartLanes] of 0 and 1, or null. y [kPartLanes] = a_0 + sum_k
/// w_k a_k, w the softmax over the open rows. exp is a polynomial, relative error below 2e-7.
void part_softmax(const float* a, int64_t stride, const float* open, int64_t n_parts, float* y);

/// True where none of those y is above `limit`: by y <= a_0 + max a_k over the open rows, with room
/// for the rounding of part_softmax(). False wherever an a is NaN.
bool part_below(const float* a, int64_t stride, const float* open, int64_t n_parts, float limit);

/// The items [first, first + kPartLanes) as panels for block_product(): ids [n_items, d] and parts
/// [n_items, n_parts, d] into panel [n_parts + 1, d, kPartLanes], zeros past the last item; open
/// bool [n_items, n_parts] into gates [n_parts, kPartLanes] of 0 and 1 (both null: all open).
void pack_part_tile(const float* ids, const float* parts, const bool* open, int64_t n_items,
                    int64_t n_parts, int64_t d, int64_t first, float* panel, float* gates);

}  // namespace tessera::kernels
