#pragma once

#include <cstdint>

namespace tessera::kernels {

/// Columns of `out` come in multiples of this: 64 bytes.
template <typename T>
constexpr int64_t kBlockColumns = 64 / static_cast<int64_t>(sizeof(T));
/// Rows come fastest in multiples of this.
constexpr int64_t kBlockRows = 12;

/// out[r, c] = sum over k < depth, in rising order, of a[r, k] b[k, c], or added to what `out`
/// holds, 128 of them at a time; on the calling thread, for blocks that stay in a core's own cache.
/// a may lie either way round; rows of b and out are contiguous. An entry is the same number
/// wherever it lies in the block.
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

/// One row of d values as a column of a panel [d, kBlockColumns], for b.
template <typename T>
void pack_column(const T* row, int64_t d, T* to) {
  for (int64_t k = 0; k < d; ++k) to[k * kBlockColumns<T>] = row[k];
}

}  // namespace tessera::kernels
