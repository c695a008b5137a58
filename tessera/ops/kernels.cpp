#include "tessera/ops/kernels.h"

#include <cmath>
#include <limits>

#include "tessera/ops/instruction_set.h"
#include "tessera/ops/spmm.h"

namespace tessera::kernels {
namespace {

// The only place where Adam's arithmetic stands: dense and lazy steps are equal bit for bit.
template <typename T, bool kGradientDecay, bool kDecoupled>
[[gnu::always_inline]] inline void adam_steps(T* __restrict p, T* __restrict m, T* __restrict v,
                                              const T* __restrict gradient, int64_t n,
                                              const AdamConstants& constants, const AdamStep* steps,
                                              int64_t n_steps) {
  constexpr int64_t kChunk = 256;
  const T beta1 = static_cast<T>(constants.beta1), beta2 = static_cast<T>(constants.beta2);
  const T rest1 = static_cast<T>(1 - constants.beta1), rest2 = static_cast<T>(1 - constants.beta2);
  const T eps = static_cast<T>(constants.eps), decay = static_cast<T>(constants.gradient_decay);
  static constexpr T zeros[kChunk] = {};
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t size = n - begin < kChunk ? n - begin : kChunk;
    const T* __restrict grad = gradient ? gradient + begin : zeros;
    T* __restrict pc = p + begin;
    T* __restrict mc = m + begin;
    T* __restrict vc = v + begin;
    for (int64_t s = 0; s < n_steps; ++s) {
      const T step_size = static_cast<T>(steps[s].size);
      const T by = static_cast<T>(steps[s].inverse_root);
      const T shrink = static_cast<T>(steps[s].shrink);
      for (int64_t i = 0; i < size; ++i) {
        T value = pc[i], g = grad[i];
        if (kGradientDecay) g = g + decay * value;
        if (kDecoupled) value = value - shrink * value;
        const T first = beta1 * mc[i] + rest1 * g;
        const T second = beta2 * vc[i] + rest2 * g * g;
        mc[i] = first;
        vc[i] = second;
        pc[i] = value - step_size * first / (std::sqrt(second) * by + eps);
      }
    }
  }
}

template <typename T>
[[gnu::always_inline]] inline void adam_any(T* p, T* m, T* v, const T* gradient, int64_t n,
                                            const AdamConstants& constants, const AdamStep* steps,
                                            int64_t n_steps) {
  if (constants.decoupled) {
    adam_steps<T, false, true>(p, m, v, gradient, n, constants, steps, n_steps);
  } else if (constants.gradient_decay != 0) {
    adam_steps<T, true, false>(p, m, v, gradient, n, constants, steps, n_steps);
  } else {
    adam_steps<T, false, false>(p, m, v, gradient, n, constants, steps, n_steps);
  }
}

// What the non-zeros of one row weigh.
template <typename T>
struct RootWeights {
  T row_root;
  const double* col_root;
  const int32_t* columns;
  RootWeights(const Spmm& s, int64_t row)
      : row_root(static_cast<T>(s.row_root[row])), col_root(s.col_root), columns(s.columns) {}
  [[gnu::always_inline]] T at(int64_t e) const {
    return row_root * static_cast<T>(col_root[columns[e]]);
  }
};
template <typename T, typename Weight>
struct GivenWeights {
  const Weight* weights;
  GivenWeights(const WeightedSpmm<Weight>& s, int64_t) : weights(s.weights) {}
  [[gnu::always_inline]] T at(int64_t e) const { return static_cast<T>(weights[e]); }
};

// `kParts` vectors of `kBytes` bytes of one output row, kept in registers over the row's non-zeros;
// a plain array of that many sums is spilled.
template <typename T, int kBytes, int kParts, typename Weights, typename Matrix>
[[gnu::always_inline]] inline void spmm_strip(const Matrix& s, const T* __restrict x, const T* base,
                                              T* out, int64_t row, int64_t column, int64_t stop) {
  constexpr int64_t kAhead =
      16;  // non-zeros; no stream of the processor's guesses where they point
  using Lanes [[gnu::vector_size(kBytes)]] = T;
  using Loose [[gnu::vector_size(kBytes), gnu::aligned(alignof(T)), gnu::may_alias]] = T;
  constexpr int64_t kLanes = kBytes / sizeof(T);
  Lanes sum[kParts] = {};
  const Weights weights(s, row);
  for (int64_t e = s.offsets[row]; e < s.offsets[row + 1]; ++e) {
    const T weight = weights.at(e);
    const T* from = x + s.columns[e] * s.width + column;
    const T* later = x + s.columns[e + kAhead < stop ? e + kAhead : e] * s.width + column;
#pragma GCC unroll 8
    for (int line = 0; line < kBytes * kParts; line += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(later) + line);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) {
      sum[j] += weight * *reinterpret_cast<const Loose*>(from + j * kLanes);
    }
  }
  const T scale = static_cast<T>(s.scale);
  T* to = out + row * s.width + column;
  const T* add = base ? base + row * s.width + column : nullptr;
#pragma GCC unroll 8
  for (int j = 0; j < kParts; ++j) {
    if (add) sum[j] += *reinterpret_cast<const Loose*>(add + j * kLanes);
    *reinterpret_cast<Loose*>(to + j * kLanes) = scale * sum[j];
  }
}

template <typename T, int kBytes, typename Weights, typename Matrix>
[[gnu::always_inline]] inline void spmm_any(const Matrix& s, const T* x, const T* base, T* out,
                                            int64_t begin, int64_t end) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  constexpr int kWide = kBytes == 64 ? 4 : 8, kNarrow = kBytes == 64 ? 1 : 2;  // vectors of a strip
  const int64_t stop = s.offsets[end];
  for (int64_t row = begin; row < end; ++row) {
    int64_t c = 0;
    for (; c + kWide * kLanes <= s.width; c += kWide * kLanes) {
      spmm_strip<T, kBytes, kWide, Weights>(s, x, base, out, row, c, stop);
    }
    for (; c + kNarrow * kLanes <= s.width; c += kNarrow * kLanes) {
      spmm_strip<T, kBytes, kNarrow, Weights>(s, x, base, out, row, c, stop);
    }
    for (; c < s.width; ++c) spmm_strip<T, sizeof(T), 1, Weights>(s, x, base, out, row, c, stop);
  }
}

/// The n values of `term` summed in sixteen lanes, in an order that depends on n alone.
template <typename T, typename Term>
[[gnu::always_inline]] inline T sum_any(int64_t n, const Term& term) {
  constexpr int64_t kLanes = 16;
  T lane[kLanes] = {}, rest = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lane[j] += term(i + j);
  }
  for (; i < n; ++i) rest += term(i);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lane[j] += lane[j + half];
  }
  return lane[0] + rest;
}

template <typename T>
[[gnu::always_inline]] inline RowNorm<T> norm_row_any(T* __restrict y, const T* __restrict bias,
                                                      const T* __restrict gain,
                                                      const T* __restrict shift, int64_t n,
                                                      double eps, T* __restrict to) {
  const T mean = sum_any<T>(n, [&](int64_t i) { return y[i] += bias[i]; }) / static_cast<T>(n);
  const T squares = sum_any<T>(n, [&](int64_t i) { return (y[i] - mean) * (y[i] - mean); });
  const T by = 1 / std::sqrt(squares / static_cast<T>(n) + static_cast<T>(eps));
  for (int64_t i = 0; i < n; ++i) to[i] = y[i] + (y[i] - mean) * by * gain[i] + shift[i];
  return {mean, by};
}

template <typename T>
[[gnu::always_inline]] inline void norm_row_back_any(const T* __restrict y, RowNorm<T> norm,
                                                     const T* __restrict g,
                                                     const T* __restrict gain, int64_t n,
                                                     T* __restrict to, T* __restrict sums) {
  const T mean = norm.mean, by = norm.by;
  const T a = sum_any<T>(n, [&](int64_t i) { return g[i] * gain[i]; }) / static_cast<T>(n);
  const T b = sum_any<T>(n, [&](int64_t i) { return g[i] * gain[i] * ((y[i] - mean) * by); }) /
              static_cast<T>(n);
  for (int64_t i = 0; i < n; ++i) {
    to[i] = g[i] + by * (g[i] * gain[i] - a - (y[i] - mean) * by * b);
  }
  if (sums == nullptr) return;
  for (int64_t i = 0; i < n; ++i) sums[i] += to[i];
  for (int64_t i = 0; i < n; ++i) sums[n + i] += g[i] * ((y[i] - mean) * by);
  for (int64_t i = 0; i < n; ++i) sums[2 * n + i] += g[i];
}

template <typename T>
[[gnu::always_inline]] inline int64_t smallest_any(const T* values, int64_t n) {
  constexpr int64_t kLanes = 16;
  T lane[kLanes], least = values[0];
  for (int64_t j = 0; j < kLanes; ++j) lane[j] = least;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      lane[j] = values[i + j] < lane[j] ? values[i + j] : lane[j];
    }
  }
  for (; i < n; ++i) least = values[i] < least ? values[i] : least;
  for (int64_t j = 0; j < kLanes; ++j) least = lane[j] < least ? lane[j] : least;
  i = 0;
  while (i + 1 < n && values[i] != least) ++i;
  return i;
}

}  // namespace

TESSERA_CLONES
void adam(float* p, float* m, float* v, const float* gradient, int64_t n,
          const AdamConstants& constants, const AdamStep* steps, int64_t n_steps) {
  adam_any(p, m, v, gradient, n, constants, steps, n_steps);
}

TESSERA_CLONES
void adam(double* p, double* m, double* v, const double* gradient, int64_t n,
          const AdamConstants& constants, const AdamStep* steps, int64_t n_steps) {
  adam_any(p, m, v, gradient, n, constants, steps, n_steps);
}

// These are chosen by hand: the width of the lanes depends on the instruction set.
namespace {
#ifdef TESSERA_AVX512
template <typename T, typename Weights, typename Matrix>
TESSERA_AVX512 void spmm_avx512(const Matrix& s, const T* x, const T* base, T* out, int64_t begin,
                                int64_t end) {
  spmm_any<T, 64, Weights>(s, x, base, out, begin, end);
}
#endif
#ifdef TESSERA_AVX2
template <typename T, typename Weights, typename Matrix>
TESSERA_AVX2 void spmm_avx2(const Matrix& s, const T* x, const T* base, T* out, int64_t begin,
                            int64_t end) {
  spmm_any<T, 32, Weights>(s, x, base, out, begin, end);
}
#endif
template <typename T, typename Weights, typename Matrix>
void spmm_best(const Matrix& s, const T* x, const T* base, T* out, int64_t begin, int64_t end) {
#ifdef TESSERA_AVX512
  if (has_avx512()) return spmm_avx512<T, Weights>(s, x, base, out, begin, end);
#endif
#ifdef TESSERA_AVX2
  if (has_avx2()) return spmm_avx2<T, Weights>(s, x, base, out, begin, end);
#endif
  spmm_any<T, 16, Weights>(s, x, base, out, begin, end);
}
}  // namespace

void spmm(const Spmm& s, const float* x, const float* base, float* out, int64_t begin,
          int64_t end) {
  spmm_best<float, RootWeights<float>>(s, x, base, out, begin, end);
}
void spmm(const Spmm& s, const double* x, const double* base, double* out, int64_t begin,
          int64_t end) {
  spmm_best<double, RootWeights<double>>(s, x, base, out, begin, end);
}
void spmm(const WeightedSpmm<float>& s, const float* x, float* out, int64_t begin, int64_t end) {
  spmm_best<float, GivenWeights<float, float>>(s, x, nullptr, out, begin, end);
}
void spmm(const WeightedSpmm<float>& s, const double* x, double* out, int64_t begin, int64_t end) {
  spmm_best<double, GivenWeights<double, float>>(s, x, nullptr, out, begin, end);
}
void spmm(const WeightedSpmm<double>& s, const double* x, double* out, int64_t begin, int64_t end) {
  spmm_best<double, GivenWeights<double, double>>(s, x, nullptr, out, begin, end);
}

TESSERA_CLONES
float dot(const float* a, const float* b, int64_t n) {
  return sum_any<float>(n, [=](int64_t i) { return a[i] * b[i]; });
}

TESSERA_CLONES
double dot(const double* a, const double* b, int64_t n) {
  return sum_any<double>(n, [=](int64_t i) { return a[i] * b[i]; });
}

TESSERA_CLONES
RowNorm<float> norm_row(float* y, const float* bias, const float* gain, const float* shift,
                        int64_t n, double eps, float* to) {
  return norm_row_any(y, bias, gain, shift, n, eps, to);
}

TESSERA_CLONES
RowNorm<double> norm_row(double* y, const double* bias, const double* gain, const double* shift,
                         int64_t n, double eps, double* to) {
  return norm_row_any(y, bias, gain, shift, n, eps, to);
}

TESSERA_CLONES
void norm_row_back(const float* y, RowNorm<float> norm, const float* g, const float* gain,
                   int64_t n, float* to, float* sums) {
  norm_row_back_any(y, norm, g, gain, n, to, sums);
}

TESSERA_CLONES
void norm_row_back(const double* y, RowNorm<double> norm, const double* g, const double* gain,
                   int64_t n, double* to, double* sums) {
  norm_row_back_any(y, norm, g, gain, n, to, sums);
}

TESSERA_CLONES
int64_t smallest(const float* values, int64_t n) { return smallest_any(values, n); }

TESSERA_CLONES
int64_t smallest(const double* values, int64_t n) { return smallest_any(values, n); }

TESSERA_CLONES
void dropout_row(float* to, int64_t width, const Philox& random, uint64_t limit, float kept) {
  constexpr int kBlocks = 16;  // side by side, four words each
  for (int64_t begin = 0; begin < width; begin += 4 * kBlocks) {
    uint32_t c[4][kBlocks];
    for (uint32_t b = 0; b < kBlocks; ++b) {
      c[0][b] = random.counter[0] + static_cast<uint32_t>(begin / 4) + b;
      c[1][b] = random.counter[1];
      c[2][b] = random.counter[2];
      c[3][b] = random.counter[3];
    }
    uint32_t k0 = random.key[0], k1 = random.key[1];
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
#pragma GCC unroll 1  // unrolled it is not made of vectors
      for (int b = 0; b < kBlocks; ++b) {
        const uint64_t p0 = uint64_t{0xD2511F53} * c[0][b], p1 = uint64_t{0xCD9E8D57} * c[2][b];
        c[0][b] = static_cast<uint32_t>(p1 >> 32) ^ c[1][b] ^ k0;
        c[2][b] = static_cast<uint32_t>(p0 >> 32) ^ c[3][b] ^ k1;
        c[1][b] = static_cast<uint32_t>(p1);
        c[3][b] = static_cast<uint32_t>(p0);
      }
    }
    float row[4 * kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
      for (int j = 0; j < 4; ++j) row[4 * b + j] = c[j][b] < limit ? 0.0f : kept;
    }
    const int64_t size = width - begin < 4 * kBlocks ? width - begin : 4 * kBlocks;
    for (int64_t i = 0; i < size; ++i) to[begin + i] = row[i];
  }
}

TESSERA_CLONES
void combine(float x, const float* a, float y, const float* b, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = x * a[i] + y * b[i];
}

TESSERA_CLONES
void combine(double x, const double* a, double y, const double* b, int64_t n, double* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = x * a[i] + y * b[i];
}

TESSERA_CLONES
bool has_nan(const float* values, int64_t n) {
  int found = 0;
  for (int64_t i = 0; i < n; ++i) found |= values[i] != values[i];
  return found != 0;
}

TESSERA_CLONES
Counts count(const float* values, int64_t n, float threshold) {
  Counts counts;
  constexpr int64_t kChunk = 1 << 20;  // the inner counters are 32 bits wide
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = n - begin < kChunk ? n : begin + kChunk;
    int above = 0, equal = 0;
    for (int64_t i = begin; i < end; ++i) {
      above += values[i] > threshold;
      equal += values[i] == threshold;
    }
    counts.above += above;
    counts.equal += equal;
  }
  return counts;
}

TESSERA_CLONES
void above(const float* __restrict values, int64_t n_words, float threshold,
           uint32_t* __restrict bits) {
  for (int64_t w = 0; w < n_words; ++w, values += 32) {
    uint32_t word = 0;
    for (uint32_t j = 0; j < 32; ++j) word |= values[j] > threshold ? uint32_t{1} << j : 0;
    bits[w] = word;
  }
}

TESSERA_CLONES
void places(const int64_t* __restrict values, int64_t n, int64_t* __restrict places) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t own = values[i];
    int64_t greater = 0;
    for (int64_t j = 0; j < n; ++j) greater += values[j] > own ? 1 : 0;
    places[i] = greater;
  }
}

TESSERA_CLONES
void fold_max(const float* __restrict values, int64_t n, int64_t times, float* __restrict to) {
  for (int64_t j = 0; j < n; ++j) to[j] = -std::numeric_limits<float>::infinity();
  for (int64_t t = 0; t < times; ++t, values += n) {
    for (int64_t j = 0; j < n; ++j) to[j] = values[j] > to[j] ? values[j] : to[j];
  }
}

}  // namespace tessera::kernels
