#include "tessera/ops/modal_attention.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <cmath>

namespace tessera {

torch::Tensor modal_attention(const std::vector<torch::Tensor>& e, const torch::Tensor& query,
                              const torch::Tensor& key, int64_t n_heads) {
  TORCH_CHECK(!e.empty() && e[0].dim() == 2 && e[0].size(1) % n_heads == 0,
              "modal_attention wants [n, d] with d a multiple of ", n_heads);
  if (e.size() == 1) return e[0];
  const int64_t n = e[0].size(0), width = e[0].size(1) / n_heads;
  const auto heads = [&](const torch::Tensor& x) { return x.view({n, n_heads, width}); };
  std::vector<torch::Tensor> queries, keys;
  for (const auto& x : e) {
    queries.push_back(heads(x.mm(query) / std::sqrt(static_cast<double>(width))));
    keys.push_back(heads(x.mm(key)));
  }
  // The mean over m of sum_m' w(m, m') e^m' is sum_m' (mean over m of w(m, m')) e^m'.
  torch::Tensor weights;  // [n, n_heads, M]
  for (const auto& q : queries) {
    std::vector<torch::Tensor> scores;
    for (const auto& k : keys) scores.push_back((q * k).sum(2));
    const auto w = torch::softmax(torch::stack(scores, 2), 2);
    weights = weights.defined() ? weights + w : w;
  }
  torch::Tensor out;
  for (size_t m = 0; m < e.size(); ++m) {
    const auto part = weights.select(2, static_cast<int64_t>(m)).unsqueeze(2) * heads(e[m]);
    out = out.defined() ? out + part : part;
  }
  return out.reshape({n, e[0].size(1)}) / static_cast<double>(e.size());
}

}  // namespace tessera
