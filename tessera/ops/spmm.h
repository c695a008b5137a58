#pragma once

#include <cstdint>
#include <functional>

// What the sparse products share.
namespace tessera {

/// Calls body(begin, end) for parts of the rows of a compressed matrix (`offsets` [n_rows + 1])
/// that hold about equally many non-zeros, on torch's threads; `width` is the cost of one of them.
void for_rows(const int64_t* offsets, int64_t n_rows, int64_t width,
              const std::function<void(int64_t, int64_t)>& body);

namespace kernels {

/// Rows [begin, end) of out = scale * S x, S with a weight of its own at each non-zero. x [.,
/// width]
template <typename Weight>
struct WeightedSpmm {
  const int64_t* offsets;
  const int32_t* columns;
  const Weight* weights;
  int64_t width;
  double scale;
};
void spmm(const WeightedSpmm<float>& s, const float* x, float* out, int64_t begin, int64_t end);
void spmm(const WeightedSpmm<float>& s, const double* x, double* out, int64_t begin, int64_t end);
void spmm(const WeightedSpmm<double>& s, const double* x, double* out, int64_t begin, int64_t end);

}  // namespace kernels
}  // namespace tessera
