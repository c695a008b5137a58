#pragma once

#include <torch/types.h>

namespace tessera {

// Rows of length one; float32 and float64, one pass forward and one backward, equal for any number
// of threads.

/// x / |x| by row; a row shorter than 1e-12 becomes 0, with gradient 0. x [n, d]
torch::Tensor unit_rows(const torch::Tensor& x);
torch::Tensor unit_rows_composed(const torch::Tensor& x);

/// unit_rows of (s + floor) e + (1 - s) h, the fusion of r2mr section 5; gradients to whichever of
/// s [n], e and h [n, d] asks for one:
///   dv = (g - (g . v^) v^) / |v|;  ds = dv . (e - h);  de = (s + floor) dv;  dh = (1 - s) dv
torch::Tensor fused_unit_rows(const torch::Tensor& s, const torch::Tensor& e,
                              const torch::Tensor& h, double floor);
/// (s + floor) e + (1 - s) h by row.
torch::Tensor fused_rows(const torch::Tensor& s, const torch::Tensor& e, const torch::Tensor& h,
                         double floor);

}  // namespace tessera
