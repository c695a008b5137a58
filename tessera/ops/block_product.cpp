#include "tessera/ops/block_product.h"

#include <algorithm>

#include "tessera/ops/instruction_set.h"

namespace tessera::kernels {
namespace {

constexpr int64_t kDepth = 128;  // rows of b that stay in the first cache

/// One tile of `kRows` rows and kBlockColumns columns, its sums in kVectors registers a row; go_on:
/// they begin with what `out` holds.
template <typename T, int64_t kBytes, int64_t kRows>
[[gnu::always_inline]] inline void tile(const BlockProduct<T>& p, const T* a, const T* b,
                                        int64_t depth, T* out, bool go_on) {
  using Vector [[gnu::vector_size(kBytes), gnu::aligned(alignof(T)), gnu::may_alias]] = T;
  constexpr int64_t kVectors = 64 / kBytes, kLanes = kBytes / static_cast<int64_t>(sizeof(T));
  Vector sum[kRows][kVectors] = {};
  if (go_on) {
#pragma GCC unroll 12
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) {
        sum[r][v] = *reinterpret_cast<const Vector*>(out + r * p.out_row + v * kLanes);
      }
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector row[kVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      row[v] = *reinterpret_cast<const Vector*>(b + k * p.b_depth + v * kLanes);
    }
#pragma GCC unroll 12
    for (int64_t r = 0; r < kRows; ++r) {
      const T x = a[r * p.a_row + k * p.a_depth];
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) sum[r][v] += x * row[v];
    }
  }
#pragma GCC unroll 12
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      auto* to = reinterpret_cast<Vector*>(out + r * p.out_row + v * kLanes);
      *to = p.add ? *to + sum[r][v] : sum[r][v];
    }
  }
}

template <typename T, int64_t kBytes, int64_t kRows>
[[gnu::always_inline]] inline void product_any(const BlockProduct<T>& p) {
  for (int64_t k = 0; k < p.depth; k += kDepth) {
    const int64_t depth = std::min(kDepth, p.depth - k);
    const bool go_on = k > 0 && !p.add;
    for (int64_t c = 0; c < p.cols; c += kBlockColumns<T>) {
      const T* a = p.a + k * p.a_depth;
      const T* b = p.b + k * p.b_depth + c;
      int64_t r = 0;
      for (; r + kRows <= p.rows; r += kRows) {
        tile<T, kBytes, kRows>(p, a + r * p.a_row, b, depth, p.out + r * p.out_row + c, go_on);
      }
      for (; r < p.rows; ++r) {
        tile<T, kBytes, 1>(p, a + r * p.a_row, b, depth, p.out + r * p.out_row + c, go_on);
      }
    }
  }
}

// Rows of a tile: as many as the registers hold.
#ifdef TESSERA_AVX512
template <typename T>
TESSERA_AVX512 void product_avx512(const BlockProduct<T>& p) {
  product_any<T, 64, 12>(p);
}
#endif
#ifdef TESSERA_AVX2
template <typename T>
TESSERA_AVX2 void product_avx2(const BlockProduct<T>& p) {
  product_any<T, 32, 6>(p);
}
#endif

template <typename T>
void product_best(const BlockProduct<T>& p) {
#ifdef TESSERA_AVX512
  if (has_avx512()) return product_avx512(p);
#endif
#ifdef TESSERA_AVX2
  if (has_avx2()) return product_avx2(p);
#endif
  product_any<T, 16, 3>(p);
}

}  // namespace

void block_product(const BlockProduct<float>& p) { product_best(p); }
void block_product(const BlockProduct<double>& p) { product_best(p); }

}  // namespace tessera::kernels
