#include "tessera/ops/gather.h"

#include <torch/autograd.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "tessera/ops/device.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr int64_t kGrain = 256;  // rows a thread takes at least

template <typename T>
torch::Tensor scatter(const torch::Tensor& gradient, const torch::Tensor& index, int64_t n_rows) {
  const int64_t n = index.numel(), d = gradient.size(1);
  const auto out = torch::empty({n_rows, d}, gradient.options());
  const T* from = gradient.const_data_ptr<T>();
  const int64_t* at = index.const_data_ptr<int64_t>();
  T* to = out.mutable_data_ptr<T>();
  parallel_for(0, n_rows, kGrain, [&](int64_t begin, int64_t end) {
    std::memset(to + begin * d, 0, sizeof(T) * static_cast<size_t>((end - begin) * d));
    for (int64_t k = 0; k < n; ++k) {
      if (at[k] < begin || at[k] >= end) continue;
      T* row = to + at[k] * d;
      const T* add = from + k * d;
      for (int64_t i = 0; i < d; ++i) row[i] += add[i];
    }
  });
  return out;
}

class Gather : public torch::autograd::Function<Gather> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& table,
                               const torch::Tensor& index_in) {
    const auto index = index_in.contiguous();
    context->save_for_backward({index});
    context->saved_data["rows"] = table.size(0);
    return table.index_select(0, index);
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto index = context->get_saved_variables()[0];
    const int64_t n_rows = context->saved_data["rows"].toInt();
    const auto gradient = upstream[0].contiguous();
    return {gradient.scalar_type() == torch::kFloat32 ? scatter<float>(gradient, index, n_rows)
                                                      : scatter<double>(gradient, index, n_rows),
            torch::Tensor()};
  }
};

}  // namespace

DistinctRows::DistinctRows(int64_t n)
    : marks_(static_cast<size_t>(n + 63) / 64), place_(new int64_t[static_cast<size_t>(n)]) {}

void DistinctRows::mark(const torch::Tensor& index) {
  const auto* from = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i) marks_[from[i] / 64] |= uint64_t{1} << (from[i] % 64);
}

torch::Tensor DistinctRows::list() {
  std::vector<int64_t> values;
  for (size_t w = 0; w < marks_.size(); ++w) {
    for (uint64_t left = marks_[w]; left != 0; left &= left - 1) {
      const auto value = static_cast<int64_t>(w) * 64 + std::countr_zero(left);
      place_[static_cast<size_t>(value)] = static_cast<int64_t>(values.size());
      values.push_back(value);
    }
  }
  const auto out = torch::empty({static_cast<int64_t>(values.size())}, torch::kInt64);
  std::copy(values.begin(), values.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

torch::Tensor DistinctRows::inverse(const torch::Tensor& index) const {
  const auto out = torch::empty_like(index);
  auto* to = out.mutable_data_ptr<int64_t>();
  const auto* from = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i) to[i] = place_[static_cast<size_t>(from[i])];
  return out;
}

torch::Tensor gather_rows(const torch::Tensor& table, const torch::Tensor& index) {
  TORCH_CHECK(table.dim() == 2 && index.dim() == 1, "gather_rows wants [N, d] and [n]");
  if (composed(table)) return table.index_select(0, index.to(table.device()));
  return Gather::apply(table, index);
}

}  // namespace tessera
