#pragma once

#include <array>
#include <cstdint>
#include <limits>

/// Inner loops of the sequence models, on raw memory: one thread, no checks. Compiled for several
/// instruction sets, the best of which is chosen at run time. The double forms are exact to the
/// last digits of std::exp, the float forms to about 2e-7.
namespace tessera::kernels {

/// z <- exp(z - max) and the sum of that, where max = max(z, least); n >= 1.
template <typename T>
struct ExpSum {
  T max, sum;
};
ExpSum<float> exp_row(float* z, int64_t n, float least = -std::numeric_limits<float>::infinity());
ExpSum<double> exp_row(double* z, int64_t n,
                       double least = -std::numeric_limits<double>::infinity());

/// to += a x over n values.
void add_scaled(float a, const float* x, float* to, int64_t n);
void add_scaled(double a, const double* x, double* to, int64_t n);

/// One step of a GRU cell of h units for one row (sequential section 4): `in` = W_i x and `hidden`
/// = W_h h, both stacked r, z, n; gates keeps r, z, n and the n part of `hidden` [4h]. h_before may
/// be null for zeros, and so may `hidden` then.
template <typename T>
struct GruStep {
  const T *in, *hidden, *h_before;
  T *gates, *h_after;
};
void gru_step(const GruStep<float>& s, int64_t h);
void gru_step(const GruStep<double>& s, int64_t h);

/// Its gradient: `to_h` [h] holds d/dh_after and becomes the part of d/dh_before that does not pass
/// through `hidden`; to_in and to_hidden [3h].
template <typename T>
struct GruBack {
  const T *gates, *h_before;
  T *to_h, *to_in, *to_hidden;
};
void gru_back(const GruBack<float>& s, int64_t h);
void gru_back(const GruBack<double>& s, int64_t h);

/// Dropout of one row of `n` values: kept[i] = 1 where draw i of `row` (16 bits of Philox with
/// `key`) is at least `limit`, else 0.
void keep_row(std::array<uint32_t, 2> key, uint64_t row, uint32_t limit, uint8_t* kept, int64_t n);

/// to = scale * x where kept, else 0. `to` may be x.
void masked(const float* x, const uint8_t* kept, float scale, float* to, int64_t n);
void masked(const double* x, const uint8_t* kept, double scale, double* to, int64_t n);

/// The nearest of the k points in columns [n, k] by squared distance, ties to the smaller index;
/// scratch [k]. Differences are squared, not expanded: points may lie 1e-3 apart far from 0.
int64_t nearest(const float* x, int64_t n, const float* columns, int64_t k, float* scratch);

}  // namespace tessera::kernels
