#include "tessera/ops/modal_attention.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

using kernels::dot;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrain = 128;  // rows a thread takes at least

template <typename T>
T scale_of(int64_t width) {
  return static_cast<T>(1 / std::sqrt(static_cast<double>(width)));
}

/// One head of one row: the weights w [M, M], a softmax over the second index, and their mean over
/// the first [M].
template <typename T>
void attend(const std::vector<const T*>& q, const std::vector<const T*>& k, int64_t at,
            int64_t width, T* w, T* mean) {
  const size_t n = q.size();
  const T by = scale_of<T>(width);
  std::fill(mean, mean + n, T{0});
  for (size_t m = 0; m < n; ++m) {
    T* row = w + m * n;
    for (size_t o = 0; o < n; ++o) row[o] = by * dot(q[m] + at, k[o] + at, width);
    const T max = *std::max_element(row, row + n);
    T sum = 0;
    for (size_t o = 0; o < n; ++o) sum += row[o] = std::exp(row[o] - max);
    for (size_t o = 0; o < n; ++o) mean[o] += (row[o] /= sum) / static_cast<T>(n);
  }
}

template <typename T>
std::vector<const T*> data_of(at::TensorList x, size_t begin, size_t n) {
  std::vector<const T*> out;
  for (size_t m = 0; m < n; ++m) out.push_back(x[begin + m].template const_data_ptr<T>());
  return out;
}

template <typename T>
std::vector<T*> written(const variable_list& x, size_t begin, size_t n) {
  std::vector<T*> out;
  for (size_t m = 0; m < n; ++m) out.push_back(x[begin + m].template mutable_data_ptr<T>());
  return out;
}

/// Inputs: M values, M queries, M keys, each [rows, d] and contiguous.
class Attention : public torch::autograd::Function<Attention> {
 public:
  static torch::Tensor forward(AutogradContext* context, const at::TensorList& inputs,
                               int64_t n_heads) {
    const size_t n = inputs.size() / 3;
    const int64_t d = inputs[0].size(1), width = d / n_heads;
    const auto out = torch::zeros_like(inputs[0]);
    by_type(out, [&](auto type) {
      using T = decltype(type);
      const auto e = data_of<T>(inputs, 0, n), q = data_of<T>(inputs, n, n),
                 k = data_of<T>(inputs, 2 * n, n);
      T* to = out.mutable_data_ptr<T>();
      parallel_for(0, out.size(0), kGrain, [&](int64_t begin, int64_t end) {
        std::vector<T> w(n * n), mean(n);
        for (int64_t at = begin * d; at < end * d; at += width) {
          attend(q, k, at, width, w.data(), mean.data());
          for (size_t o = 0; o < n; ++o) {
            for (int64_t c = 0; c < width; ++c) to[at + c] += mean[o] * e[o][at + c];
          }
        }
      });
    });
    context->save_for_backward(inputs.vec());
    context->saved_data["heads"] = n_heads;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto inputs = context->get_saved_variables();
    const size_t n = inputs.size() / 3;
    const int64_t d = inputs[0].size(1), width = d / context->saved_data["heads"].toInt();
    const auto g = upstream[0].contiguous();
    variable_list out;
    for (const auto& x : inputs) out.push_back(torch::zeros_like(x));
    by_type(g, [&](auto type) {
      using T = decltype(type);
      const auto e = data_of<T>(inputs, 0, n), q = data_of<T>(inputs, n, n),
                 k = data_of<T>(inputs, 2 * n, n);
      const auto to_e = written<T>(out, 0, n), to_q = written<T>(out, n, n),
                 to_k = written<T>(out, 2 * n, n);
      const T* from = g.const_data_ptr<T>();
      const T by = scale_of<T>(width);
      parallel_for(0, g.size(0), kGrain, [&](int64_t begin, int64_t end) {
        std::vector<T> w(n * n), mean(n), along(n);
        for (int64_t at = begin * d; at < end * d; at += width) {
          attend(q, k, at, width, w.data(), mean.data());
          for (size_t o = 0; o < n; ++o) {
            along[o] = dot(from + at, e[o] + at, width) / static_cast<T>(n);
            for (int64_t c = 0; c < width; ++c) to_e[o][at + c] = mean[o] * from[at + c];
          }
          for (size_t m = 0; m < n; ++m) {
            const T* row = w.data() + m * n;
            T expected = 0;
            for (size_t o = 0; o < n; ++o) expected += row[o] * along[o];
            for (size_t o = 0; o < n; ++o) {
              const T s = by * row[o] * (along[o] - expected);
              for (int64_t c = 0; c < width; ++c) {
                to_q[m][at + c] += s * k[o][at + c];
                to_k[o][at + c] += s * q[m][at + c];
              }
            }
          }
        }
      });
    });
    out.emplace_back();  // n_heads
    return out;
  }
};

}  // namespace

torch::Tensor modal_attention(const std::vector<torch::Tensor>& e, const torch::Tensor& query,
                              const torch::Tensor& key, int64_t n_heads) {
  TORCH_CHECK(!e.empty() && e[0].dim() == 2 && e[0].size(1) % n_heads == 0,
              "modal_attention wants [n, d] with d a multiple of ", n_heads);
  if (e.size() == 1) return e[0];
  if (composed(e[0])) return modal_attention_composed(e, query, key, n_heads);
  std::vector<torch::Tensor> inputs;
  for (const auto& x : e) inputs.push_back(x.contiguous());
  for (const auto& x : e) inputs.push_back(x.mm(query));
  for (const auto& x : e) inputs.push_back(x.mm(key));
  return Attention::apply(at::TensorList(inputs), n_heads);
}

torch::Tensor modal_attention_composed(const std::vector<torch::Tensor>& e,
                                       const torch::Tensor& query, const torch::Tensor& key,
                                       int64_t n_heads) {
  const int64_t n = e[0].size(0), width = e[0].size(1) / n_heads;
  const auto n_modalities = static_cast<int64_t>(e.size());
  const auto x = torch::stack(e, 1);  // [n, M, d]
  const auto heads = [&](const torch::Tensor& t) {
    return t.view({n, n_modalities, n_heads, width}).transpose(1, 2);  // [n, n_heads, M, width]
  };
  const auto scores = heads(x.matmul(query)).matmul(heads(x.matmul(key)).transpose(2, 3));
  const auto w = torch::softmax(scores / std::sqrt(static_cast<double>(width)), 3);
  return w.matmul(heads(x)).mean(2).reshape({n, e[0].size(1)});
}

}  // namespace tessera
