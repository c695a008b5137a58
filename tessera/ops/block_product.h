#pragma once

#include <cstdint>

namespace tessera::kernels {

/// Columns of `out` come in multiples of this: 64 bytes.
template <typename T>
constexpr int64_t kBlockColumns = 64 / static_cast<int64_t>(sizeof(T));

/// out[r, c] (+)= sum over k < depth of a[r, k] b[k, c], on the calling thread, for blocks that
/// stay in a core's own cache. a may lie either way round; rows of b and out are contiguous. An
/// entry's bits depend on its own row and column and on `depth` alone.
template <typename T>
struct BlockProduct {
  const T* a;
  int64_t a_row, a_depth;  ///< strides of r and k
  const T* b;
  int64_t b_depth;  ///< stride of k
  int64_t depth;
  T* out;
  int64_t out_row;     ///< stride of r
  int64_t rows, cols;  ///< cols a multiple of kBlockColumns
  bool add;            ///< to what `out` holds
};
void block_product(const BlockProduct<float>& p);
void block_product(const BlockProduct<double>& p);

}  // namespace tessera::kernels
