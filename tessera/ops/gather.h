#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace tessera {

/// The distinct ones among indices below n, rising, and where each index stands among them: marks
/// in a bitmap, cheaper than sorting what is far from few. mark() all, then list() once, then
/// inverse() of what was marked; indices are contiguous and not checked.
class DistinctRows {
 public:
  explicit DistinctRows(int64_t n);
  void mark(const torch::Tensor& index);                    ///< int64
  torch::Tensor list();                                     ///< int64 [number of distinct ones]
  torch::Tensor inverse(const torch::Tensor& index) const;  ///< int64, of marked ones

 private:
  std::vector<uint64_t> marks_;
  std::unique_ptr<int64_t[]> place_;  // of the marked ones
};

/// Rows of `table` [N, d] by `index` int64 [n], repeats allowed; float32 or float64. [n, d]
/// Backward sums a row's gradients in the order of `index`, each row by one thread: equal for any
/// number of threads. An index in main memory is moved to a table that lies elsewhere.
torch::Tensor gather_rows(const torch::Tensor& table, const torch::Tensor& index);

}  // namespace tessera
