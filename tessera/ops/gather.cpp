#include "tessera/ops/gather.h"

#include <torch/autograd.h>

#include <cstring>

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

torch::Tensor gather_rows(const torch::Tensor& table, const torch::Tensor& index) {
  TORCH_CHECK(table.dim() == 2 && index.dim() == 1, "gather_rows wants [N, d] and [n]");
  return Gather::apply(table, index);
}

}  // namespace tessera
