#include "tessera/ops/triple_kernels.h"

#include "tessera/ops/instruction_set.h"

namespace tessera::kernels {
namespace {

constexpr int64_t kLanes = 16;

// Sums in lanes, which become vector code.
template <typename T>
[[gnu::always_inline]] inline Triple<T> triple_any(const T* __restrict u, const T* __restrict p,
                                                   const T* __restrict n, int64_t d) {
  T margin[kLanes] = {}, squares[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const T a = u[i + j], b = p[i + j], c = n[i + j];
      margin[j] += a * (b - c);
      squares[j] += a * a + b * b + c * c;
    }
  }
  for (; i < d; ++i) {
    margin[0] += u[i] * (p[i] - n[i]);
    squares[0] += u[i] * u[i] + p[i] * p[i] + n[i] * n[i];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) {
      margin[j] += margin[j + half];
      squares[j] += squares[j + half];
    }
  }
  return {margin[0], squares[0]};
}

template <typename T>
[[gnu::always_inline]] inline void move_any(T* __restrict u, T* __restrict p, T* __restrict n,
                                            int64_t d, T pull, T keep) {
  for (int64_t i = 0; i < d; ++i) {
    const T a = u[i], b = p[i], c = n[i];
    u[i] = keep * a + pull * (b - c);
    p[i] = keep * b + pull * a;
    n[i] = keep * c - pull * a;
  }
}

}  // namespace

TESSERA_CLONES
Triple<float> triple(const float* u, const float* p, const float* n, int64_t d) {
  return triple_any(u, p, n, d);
}
Triple<double> triple(const double* u, const double* p, const double* n, int64_t d) {
  return triple_any(u, p, n, d);
}
TESSERA_CLONES
void move_triple(float* u, float* p, float* n, int64_t d, float pull, float keep) {
  move_any(u, p, n, d, pull, keep);
}
void move_triple(double* u, double* p, double* n, int64_t d, double pull, double keep) {
  move_any(u, p, n, d, pull, keep);
}

}  // namespace tessera::kernels
