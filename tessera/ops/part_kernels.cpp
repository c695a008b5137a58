#include "tessera/ops/part_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tessera/ops/block_product.h"
#include "tessera/ops/instruction_set.h"

namespace tessera::kernels {
namespace {

/// exp(x) for x <= 0: 2^n times a polynomial in the rest (Cephes expf's coefficients).
[[gnu::always_inline]] inline float exp_below(float x) {
  x = x < -87.0F ? -87.0F : x;
  const float n = static_cast<float>(static_cast<int32_t>(x * 1.44269504088896341F - 0.5F));
  const float r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power = 0;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

constexpr float kNone = -3e38F;

/// The highest open a_k of every item, kNone where none is open.
[[gnu::always_inline]] inline void highest(const float* a, int64_t stride, const float* open,
                                           int64_t n_parts, float* top) {
  for (int64_t j = 0; j < kPartLanes; ++j) top[j] = kNone;
  for (int64_t k = 0; k < n_parts; ++k) {
    const float* row = a + (k + 1) * stride;
    const float* gate = open ? open + k * kPartLanes : nullptr;
    for (int64_t j = 0; j < kPartLanes; ++j) {
      const float value = gate && gate[j] == 0 ? kNone : row[j];
      top[j] = value > top[j] ? value : top[j];
    }
  }
}

}  // namespace

TESSERA_CLONES
void part_softmax(const float* a, int64_t stride, const float* open, int64_t n_parts, float* y) {
  float top[kPartLanes], sum[kPartLanes] = {}, weighted[kPartLanes] = {};
  highest(a, stride, open, n_parts, top);
  for (int64_t k = 0; k < n_parts; ++k) {
    const float* row = a + (k + 1) * stride;
    const float* gate = open ? open + k * kPartLanes : nullptr;
    for (int64_t j = 0; j < kPartLanes; ++j) {
      const float below = row[j] - top[j];
      const float each = (gate ? gate[j] : 1.0F) * exp_below(below < 0 ? below : 0);
      sum[j] += each;
      weighted[j] += each * row[j];
    }
  }
  for (int64_t j = 0; j < kPartLanes; ++j) {
    y[j] = a[j] + (sum[j] > 0 ? weighted[j] / sum[j] : 0.0F);
  }
}

TESSERA_CLONES
bool part_below(const float* a, int64_t stride, const float* open, int64_t n_parts, float limit) {
  // part_softmax() errs by (n_parts + 2) units at most, this sum by a few; size also carries NaN.
  const float slack = static_cast<float>(n_parts + 8) * 0x1p-23F;
  float top[kPartLanes], size[kPartLanes] = {};
  highest(a, stride, open, n_parts, top);
  for (int64_t k = 0; k <= n_parts; ++k) {
    for (int64_t j = 0; j < kPartLanes; ++j) size[j] += std::fabs(a[k * stride + j]);
  }
  int32_t reach = 0;
  for (int64_t j = 0; j < kPartLanes; ++j) {
    const float most = a[j] + (top[j] > kNone ? top[j] : 0.0F) + slack * size[j];
    reach |= most <= limit ? 0 : 1;
  }
  return reach == 0;
}

void pack_part_tile(const float* ids, const float* parts, const bool* open, int64_t n_items,
                    int64_t n_parts, int64_t d, int64_t first, float* panel, float* gates) {
  const int64_t n = std::min(kPartLanes, n_items - first);
  std::fill(panel, panel + (n_parts + 1) * d * kPartLanes, 0.0F);
  if (gates != nullptr) std::fill(gates, gates + n_parts * kPartLanes, 0.0F);
  for (int64_t j = 0; j < n; ++j) {
    pack_column(ids + (first + j) * d, d, panel + j);
    for (int64_t k = 0; k < n_parts; ++k) {
      const float* r = parts + ((first + j) * n_parts + k) * d;
      pack_column(r, d, panel + (k + 1) * d * kPartLanes + j);
      if (gates != nullptr) {
        gates[k * kPartLanes + j] = open[(first + j) * n_parts + k] ? 1.0F : 0.0F;
      }
    }
  }
}

}  // namespace tessera::kernels
