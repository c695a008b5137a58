#pragma once

#include <torch/types.h>

#include <array>

#include "tessera/base/random.h"

namespace tessera {

/// Inverted dropout by 16-bit draws: of a row r, column i is dropped where its draw of (key, r, i)
/// is below `limit`, else multiplied by `scale`. limit 0 drops nothing.
struct DropKey {
  std::array<uint32_t, 2> key = {};
  uint32_t limit = 0;
  double scale = 1;
};
/// Drops a share `rate` in [0, 1), to within 2^-16.
DropKey drop_key(double rate, const Random& random, int64_t step);

/// x [n, width], float32 or float64.
torch::Tensor dropout(const torch::Tensor& x, const DropKey& drop);
torch::Tensor dropout_composed(const torch::Tensor& x, const DropKey& drop);

/// What is kept of rows by their numbers, int64 of any shape [..]: bool [.., width].
torch::Tensor kept_composed(const torch::Tensor& rows, int64_t width, const DropKey& drop);

}  // namespace tessera
