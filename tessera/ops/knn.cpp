#include "tessera/ops/knn.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace tessera {
namespace {

struct Directions {
  torch::Tensor rows;  // float32, of length 1 or 0
  torch::Tensor zero;  // bool, rows without direction
};

/// Unlike unit_rows of ops/unit_rows.h, of rows of any finite length above 0.
Directions directions_of(const torch::Tensor& rows, const char* what) {
  TORCH_CHECK(rows.dim() == 2 && rows.is_floating_point(), what, " must be float [n, d], got ",
              rows.sizes());
  const torch::Tensor values = rows.detach().to(torch::kFloat32);
  // Divided by the largest entry first: squares neither overflow nor vanish.
  const torch::Tensor largest =
      values.size(1) > 0 ? values.abs().amax(1, true) : values.new_zeros({values.size(0), 1});
  const torch::Tensor zero = largest.squeeze(1) == 0;
  const torch::Tensor scaled = values / largest.masked_fill(largest == 0, 1);
  const torch::Tensor norms = scaled.norm(2, 1, true);
  return {scaled / norms.masked_fill(norms == 0, 1), zero};
}

}  // namespace

TopK nearest_rows(const torch::Tensor& queries, const torch::Tensor& rows, int64_t k,
                  const torch::Tensor& exclude) {
  const torch::NoGradGuard no_grad;
  const Directions to = directions_of(rows, "rows");
  const Directions from = queries.is_same(rows) ? to : directions_of(queries, "queries");
  RankMask mask;
  mask.excluded = to.zero;
  if (exclude.defined()) {
    TORCH_CHECK(exclude.scalar_type() == torch::kInt64 && exclude.dim() == 1 &&
                    exclude.size(0) == queries.size(0),
                "rows to leave out must be int64 [", queries.size(0), "]");
    const torch::Tensor present = exclude >= 0;
    mask.items = exclude.masked_select(present).to(torch::kInt32);
    mask.offsets = torch::cat({torch::zeros({1}, torch::kInt64), present.cumsum(0)});
  }
  TopK top = top_k_product(from.rows, to.rows, mask, k);
  top.items.masked_fill_(from.zero.unsqueeze(1), -1);
  top.scores.masked_fill_(from.zero.unsqueeze(1), -std::numeric_limits<float>::infinity());
  return top;
}

NeighbourGraph knn_graph(const torch::Tensor& features, int64_t k, bool weighted,
                         bool include_self) {
  const int64_t n = features.size(0), kept = std::min(k, n);
  const TopK top =
      nearest_rows(features, features, kept, include_self ? torch::Tensor() : torch::arange(n));
  const int32_t* item = top.items.const_data_ptr<int32_t>();
  const float* score = top.scores.const_data_ptr<float>();
  const torch::Tensor present = top.items >= 0;
  NeighbourGraph graph;
  graph.offsets = torch::cat({torch::zeros({1}, torch::kInt64), present.sum(1).cumsum(0)});
  const int64_t n_edges = graph.offsets[n].item<int64_t>();
  graph.items = torch::empty({n_edges}, torch::kInt32);
  graph.weights = torch::ones({n_edges}, torch::kFloat32);
  int32_t* to = graph.items.mutable_data_ptr<int32_t>();
  float* weight = graph.weights.mutable_data_ptr<float>();
  std::vector<std::pair<int32_t, float>> row;
  for (int64_t i = 0, at = 0; i < n; ++i) {
    row.clear();
    for (int64_t j = i * kept; j < (i + 1) * kept && item[j] >= 0; ++j) {
      row.emplace_back(item[j], score[j]);
    }
    std::sort(row.begin(), row.end());
    for (const auto& [column, cosine] : row) {
      to[at] = column;
      if (weighted) weight[at] = cosine;
      ++at;
    }
  }
  return graph;
}

NeighbourGraph normalised(const NeighbourGraph& graph) {
  const int64_t n = graph.offsets.size(0) - 1;
  const int64_t* from = graph.offsets.const_data_ptr<int64_t>();
  const int32_t* item = graph.items.const_data_ptr<int32_t>();
  NeighbourGraph out{graph.offsets, graph.items, graph.weights.clone()};
  float* weight = out.weights.mutable_data_ptr<float>();
  std::vector<double> root(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t e = from[i]; e < from[i + 1]; ++e) sum += weight[e];
    root[static_cast<size_t>(i)] = sum > 0 ? 1 / std::sqrt(sum) : 0;
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t e = from[i]; e < from[i + 1]; ++e) {
      weight[e] = static_cast<float>(weight[e] * root[static_cast<size_t>(i)] *
                                     root[static_cast<size_t>(item[e])]);
    }
  }
  return out;
}

}  // namespace tessera
