#pragma once

#include <cstddef>
#include <cstdint>

/// The inner loops, on raw memory: one thread, no checks. Compiled for several instruction sets,
/// the best of which is chosen at run time; the functions around them share out the work.
namespace tessera::kernels {

/// Asks for a row that is soon read or written, to hide the way from main memory.
template <typename T>
inline void prefetch(const T* row, int64_t n) {
  constexpr std::size_t kLine = 64;
  for (std::size_t at = 0; at < static_cast<std::size_t>(n) * sizeof(T); at += kLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(row) + at);
  }
}

/// What Adam needs of one step, tabulated in double: lr / (1 - b1^t), 1 / sqrt(1 - b2^t), lr *
/// decay.
struct AdamStep {
  double size, inverse_root, shrink;
};
struct AdamConstants {
  double beta1, beta2, eps;
  double gradient_decay;  ///< 0 unless the decay is added to the gradient
  bool decoupled;
};

/// `n_steps` steps on n elements one after another; a null gradient is one of zeros.
void adam(float* p, float* m, float* v, const float* gradient, int64_t n,
          const AdamConstants& constants, const AdamStep* steps, int64_t n_steps);
void adam(double* p, double* m, double* v, const double* gradient, int64_t n,
          const AdamConstants& constants, const AdamStep* steps, int64_t n_steps);

/// Rows [begin, end) of out = scale * (base + S x), S [rows, cols] with entries
/// row_root[r] * col_root[c] at its non-zeros; base may be null. x, base, out [., width].
struct Spmm {
  const int64_t* offsets;
  const int32_t* columns;
  const double* row_root;
  const double* col_root;
  int64_t width;
  double scale;
};
void spmm(const Spmm& s, const float* x, const float* base, float* out, int64_t begin, int64_t end);
void spmm(const Spmm& s, const double* x, const double* base, double* out, int64_t begin,
          int64_t end);

/// Inner product of n values, summed in an order that depends on n alone.
float dot(const float* a, const float* b, int64_t n);
double dot(const double* a, const double* b, int64_t n);

/// A row of a dropout mask: 0 where a word of Philox 4x32-10 (base/random.h) is below `limit`, else
/// `kept`. The words are those of `counter`, counter + 1, .. in its lowest word.
struct Philox {
  uint32_t counter[4], key[2];
};
void dropout_row(float* to, int64_t width, const Philox& random, uint64_t limit, float kept);

/// to = x a + y b, n values each.
void combine(float x, const float* a, float y, const float* b, int64_t n, float* to);
void combine(double x, const double* a, double y, const double* b, int64_t n, double* to);

/// y <- y + bias and to = y + gain (y - mean) by + shift, by = 1 / sqrt(variance + eps), n values.
template <typename T>
struct RowNorm {
  T mean, by;
};
RowNorm<float> norm_row(float* y, const float* bias, const float* gain, const float* shift,
                        int64_t n, double eps, float* to);
RowNorm<double> norm_row(double* y, const double* bias, const double* gain, const double* shift,
                         int64_t n, double eps, double* to);
/// Its gradient: `to` [n] for y, given g for its result; adds those for bias, gain and shift to
/// `sums` [3, n], which may be null.
void norm_row_back(const float* y, RowNorm<float> norm, const float* g, const float* gain,
                   int64_t n, float* to, float* sums);
void norm_row_back(const double* y, RowNorm<double> norm, const double* g, const double* gain,
                   int64_t n, double* to, double* sums);

/// The first of the smallest of n values, none of them NaN; n >= 1.
int64_t smallest(const float* values, int64_t n);
int64_t smallest(const double* values, int64_t n);

/// Whether a NaN is among n values.
bool has_nan(const float* values, int64_t n);
/// Entries above and equal to `threshold`; NaN is neither.
struct Counts {
  int64_t above = 0, equal = 0;
};
Counts count(const float* values, int64_t n, float threshold);
/// Bit j of bits[w] says whether values[32 w + j] is above `threshold`; 32 n_words values.
void above(const float* values, int64_t n_words, float threshold, uint32_t* bits);
/// places[i] = how many of n values are greater than values[i].
void places(const int64_t* values, int64_t n, int64_t* places);
/// to[j] = the largest of values[j], values[n + j], .., `times` of them, NaN left out; -infinity
/// without any.
void fold_max(const float* values, int64_t n, int64_t times, float* to);

}  // namespace tessera::kernels
