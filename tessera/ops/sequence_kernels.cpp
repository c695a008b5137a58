#include "tessera/ops/sequence_kernels.h"

#include <bit>
#include <cmath>

#include "tessera/ops/instruction_set.h"
#include "tessera/ops/kernels.h"

namespace tessera::kernels {
namespace {

constexpr int64_t kLanes = 16;

/// exp by 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2] (the coefficients of Cephes' expf),
/// arguments held inside the normal floats. Straight-line, so that loops over it become vector
/// code.
[[gnu::always_inline]] inline float exp_of(float x) {
  x = x < -87.3F ? -87.3F : x;
  x = x > 88.0F ? 88.0F : x;
  const float shifted = x * 1.44269504088896341F + 12582912.0F;  // rounds to the nearest integer
  const float k = shifted - 12582912.0F;
  const float r = (x - k * 0.693359375F) - k * -2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  const int32_t power = (std::bit_cast<int32_t>(shifted) - 0x4B400000 + 127) << 23;
  return p * std::bit_cast<float>(power);
}
[[gnu::always_inline]] inline double exp_of(double x) { return std::exp(x); }

template <typename T>
[[gnu::always_inline]] inline T sigmoid_of(T x) {
  return T(1) / (T(1) + exp_of(-x));
}
template <typename T>
[[gnu::always_inline]] inline T tanh_of(T x) {
  return T(1) - T(2) / (T(1) + exp_of(T(2) * x));
}

template <typename T>
[[gnu::always_inline]] inline ExpSum<T> exp_row_any(T* z, int64_t n, T least) {
  T top[kLanes], sum[kLanes] = {};
  for (int64_t j = 0; j < kLanes; ++j) top[j] = least;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) top[j] = z[i + j] > top[j] ? z[i + j] : top[j];
  }
  for (; i < n; ++i) top[0] = z[i] > top[0] ? z[i] : top[0];
  for (int64_t j = 1; j < kLanes; ++j) top[0] = top[j] > top[0] ? top[j] : top[0];
  const T max = top[0];
  i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const T e = exp_of(z[i + j] - max);
      z[i + j] = e;
      sum[j] += e;
    }
  }
  T rest = 0;
  for (; i < n; ++i) {
    z[i] = exp_of(z[i] - max);
    rest += z[i];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  }
  return {max, sum[0] + rest};
}

template <typename T>
[[gnu::always_inline]] inline void gru_step_any(const GruStep<T>& s, int64_t h) {
  const T* __restrict in = s.in;
  T* __restrict gates = s.gates;
  T* __restrict after = s.h_after;
  if (s.h_before == nullptr) {
    for (int64_t i = 0; i < h; ++i) {
      const T z = sigmoid_of(in[h + i]), n = tanh_of(in[2 * h + i]);
      gates[i] = sigmoid_of(in[i]);
      gates[h + i] = z;
      gates[2 * h + i] = n;
      gates[3 * h + i] = 0;
      after[i] = (1 - z) * n;
    }
    return;
  }
  const T* __restrict hidden = s.hidden;
  const T* __restrict before = s.h_before;
  for (int64_t i = 0; i < h; ++i) {
    const T r = sigmoid_of(in[i] + hidden[i]), z = sigmoid_of(in[h + i] + hidden[h + i]);
    const T n = tanh_of(in[2 * h + i] + r * hidden[2 * h + i]);
    gates[i] = r;
    gates[h + i] = z;
    gates[2 * h + i] = n;
    gates[3 * h + i] = hidden[2 * h + i];
    after[i] = (1 - z) * n + z * before[i];
  }
}

template <typename T>
[[gnu::always_inline]] inline void gru_back_any(const GruBack<T>& s, int64_t h) {
  const T* __restrict gates = s.gates;
  const T* before = s.h_before;
  T* __restrict to_h = s.to_h;
  T* __restrict to_in = s.to_in;
  T* __restrict to_hidden = s.to_hidden;
  for (int64_t i = 0; i < h; ++i) {
    const T r = gates[i], z = gates[h + i], n = gates[2 * h + i], g = to_h[i];
    const T was = before == nullptr ? T(0) : before[i];
    const T to_n = g * (1 - z) * (1 - n * n);
    const T to_z = g * (was - n) * z * (1 - z);
    const T to_r = to_n * gates[3 * h + i] * r * (1 - r);
    to_in[i] = to_hidden[i] = to_r;
    to_in[h + i] = to_hidden[h + i] = to_z;
    to_in[2 * h + i] = to_n;
    to_hidden[2 * h + i] = to_n * r;
    to_h[i] = g * z;
  }
}

template <typename T>
[[gnu::always_inline]] inline void masked_any(const T* x, const uint8_t* kept, T scale, T* to,
                                              int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = x[i] * (scale * static_cast<T>(kept[i]));
}

}  // namespace

TESSERA_CLONES
ExpSum<float> exp_row(float* z, int64_t n, float least) { return exp_row_any(z, n, least); }
ExpSum<double> exp_row(double* z, int64_t n, double least) { return exp_row_any(z, n, least); }

TESSERA_CLONES
void add_scaled(float a, const float* __restrict x, float* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += a * x[i];
}
void add_scaled(double a, const double* __restrict x, double* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += a * x[i];
}

TESSERA_CLONES
void gru_step(const GruStep<float>& s, int64_t h) { gru_step_any(s, h); }
void gru_step(const GruStep<double>& s, int64_t h) { gru_step_any(s, h); }
TESSERA_CLONES
void gru_back(const GruBack<float>& s, int64_t h) { gru_back_any(s, h); }
void gru_back(const GruBack<double>& s, int64_t h) { gru_back_any(s, h); }

TESSERA_CLONES
void keep_row(std::array<uint32_t, 2> key, uint64_t row, uint32_t limit, uint8_t* kept, int64_t n) {
  // Philox 4x32-10 of eight neighbouring counters at once: 64 draws of 16 bits.
  constexpr int64_t kBlocks = 8;
  for (int64_t begin = 0; begin < n; begin += 8 * kBlocks) {
    uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
    for (int64_t j = 0; j < kBlocks; ++j) {
      c0[j] = static_cast<uint32_t>(begin / 8 + j);
      c1[j] = static_cast<uint32_t>(row);
      c2[j] = static_cast<uint32_t>(row >> 32);
      c3[j] = 0;
    }
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; ++round) {
      for (int64_t j = 0; j < kBlocks; ++j) {
        const uint64_t p0 = uint64_t{0xD2511F53} * c0[j], p1 = uint64_t{0xCD9E8D57} * c2[j];
        c0[j] = static_cast<uint32_t>(p1 >> 32) ^ c1[j] ^ k0;
        c1[j] = static_cast<uint32_t>(p1);
        c2[j] = static_cast<uint32_t>(p0 >> 32) ^ c3[j] ^ k1;
        c3[j] = static_cast<uint32_t>(p0);
      }
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    uint8_t draws[8 * kBlocks];
    for (int64_t j = 0; j < kBlocks; ++j) {
      draws[0 * kBlocks + j] = (c0[j] & 0xFFFF) >= limit;
      draws[1 * kBlocks + j] = (c0[j] >> 16) >= limit;
      draws[2 * kBlocks + j] = (c1[j] & 0xFFFF) >= limit;
      draws[3 * kBlocks + j] = (c1[j] >> 16) >= limit;
      draws[4 * kBlocks + j] = (c2[j] & 0xFFFF) >= limit;
      draws[5 * kBlocks + j] = (c2[j] >> 16) >= limit;
      draws[6 * kBlocks + j] = (c3[j] & 0xFFFF) >= limit;
      draws[7 * kBlocks + j] = (c3[j] >> 16) >= limit;
    }
    const int64_t size = n - begin < 8 * kBlocks ? n - begin : 8 * kBlocks;
    for (int64_t i = 0; i < size; ++i) kept[begin + i] = draws[i];
  }
}

TESSERA_CLONES
void masked(const float* x, const uint8_t* kept, float scale, float* to, int64_t n) {
  masked_any(x, kept, scale, to, n);
}
void masked(const double* x, const uint8_t* kept, double scale, double* to, int64_t n) {
  masked_any(x, kept, scale, to, n);
}

TESSERA_CLONES
int64_t nearest(const float* x, int64_t n, const float* __restrict columns, int64_t k,
                float* __restrict scratch) {
  for (int64_t j = 0; j < k; ++j) scratch[j] = 0;
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t j = 0; j < k; ++j) {
      const float difference = x[s] - columns[s * k + j];
      scratch[j] += difference * difference;
    }
  }
  return smallest(scratch, k);
}

}  // namespace tessera::kernels
