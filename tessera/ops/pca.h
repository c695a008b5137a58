#pragma once

#include <torch/types.h>

#include "tessera/base/random.h"

namespace tessera {

/// Principal axes of a table (pamd section 1, r2mr section 1), float64.
struct Pca {
  torch::Tensor mean;       ///< [width]
  torch::Tensor axes;       ///< [k, width], orthonormal, the largest absolute entry positive
  double scale = 1;         ///< standard deviation of all kept coordinates; 1 where that is 0
  torch::Tensor explained;  ///< [k], share of the variance on each axis, falling

  /// (x - mean) axes^T / scale: float64 [n, k]. rows [n, width]
  torch::Tensor transform(const torch::Tensor& rows) const;
  /// scale * y axes + mean: float64 [n, width]. coordinates [n, k]
  torch::Tensor inverse(const torch::Tensor& coordinates) const;
};

/// How many axes fit_pca() finds in `n_rows` rows: min(k, width, n_rows - 1), at least 0.
int64_t n_axes(int64_t k, int64_t width, int64_t n_rows);

/// Fits the first n_axes() axes to the rows where `present` (bool [n], undefined:
/// all) holds. Up to a width of 2048 exact, by the covariance; wider tables by subspace iteration
/// from a start drawn from `random` (Halko, Martinsson & Tropp 2011). No row is copied but by
/// blocks.
Pca fit_pca(const torch::Tensor& rows, int64_t k, const Random& random,
            const torch::Tensor& present = {});

}  // namespace tessera
