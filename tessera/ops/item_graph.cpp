#include "tessera/ops/item_graph.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <set>
#include <utility>

#include "tessera/base/error.h"
#include "tessera/ops/spmm.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

NeighbourGraph transposed(const NeighbourGraph& graph) {
  const int64_t n = graph.offsets.size(0) - 1, n_edges = graph.items.size(0);
  const int64_t* from = graph.offsets.const_data_ptr<int64_t>();
  const int32_t* item = graph.items.const_data_ptr<int32_t>();
  const float* weight = graph.weights.const_data_ptr<float>();
  NeighbourGraph out{torch::zeros({n + 1}, torch::kInt64), torch::empty({n_edges}, torch::kInt32),
                     torch::empty({n_edges}, torch::kFloat32)};
  int64_t* offset = out.offsets.mutable_data_ptr<int64_t>();
  for (int64_t e = 0; e < n_edges; ++e) {
    TORCH_CHECK(item[e] >= 0 && item[e] < n, "item ", item[e], " of a graph with ", n);
    ++offset[item[e] + 1];
  }
  for (int64_t i = 0; i < n; ++i) offset[i + 1] += offset[i];
  std::vector<int64_t> next(offset, offset + n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t e = from[i]; e < from[i + 1]; ++e) {
      const int64_t at = next[static_cast<size_t>(item[e])]++;
      out.items.mutable_data_ptr<int32_t>()[at] = static_cast<int32_t>(i);
      out.weights.mutable_data_ptr<float>()[at] = weight[e];
    }
  }
  return out;
}

torch::Tensor product(const NeighbourGraph& graph, const torch::Tensor& x) {
  const torch::Tensor from = x.contiguous(), out = torch::empty_like(from);
  const kernels::WeightedSpmm<float> spmm{graph.offsets.const_data_ptr<int64_t>(),
                                          graph.items.const_data_ptr<int32_t>(),
                                          graph.weights.const_data_ptr<float>(), x.size(1), 1};
  const auto run = [&](auto type) {
    using T = decltype(type);
    const T* source = from.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    for_rows(spmm.offsets, x.size(0), spmm.width,
             [&](int64_t begin, int64_t end) { kernels::spmm(spmm, source, to, begin, end); });
  };
  if (x.scalar_type() == torch::kFloat32) {
    run(float{});
  } else {
    run(double{});
  }
  return out;
}

struct Holder : torch::CustomClassHolder {
  explicit Holder(ItemGraph g) : graph(std::move(g)) {}
  ItemGraph graph;
};

class ItemGraphOp : public torch::autograd::Function<ItemGraphOp> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const ItemGraph& graph) {
    context->saved_data["graph"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(graph));
    return product(graph.parts().rows, x);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto capsule = context->saved_data["graph"].toCapsule();
    const auto& graph = static_cast<Holder*>(capsule.get())->graph;
    return {product(graph.parts().columns, gradients[0]), torch::Tensor()};
  }
};

}  // namespace

ItemGraph::ItemGraph(const NeighbourGraph& graph) {
  auto parts = std::make_shared<Parts>();
  parts->rows = {graph.offsets.contiguous(), graph.items.contiguous(), graph.weights.contiguous()};
  parts->columns = transposed(parts->rows);
  parts_ = std::move(parts);
  edges_ = std::make_shared<OncePerDevice<Edges>>();
}

ItemGraph::Edges ItemGraph::edges(torch::Device device) const {
  return edges_->get(device, [&]() -> Edges {
    const NeighbourGraph& rows = parts_->rows;
    return {torch::repeat_interleave(rows.offsets.diff()).to(device),
            rows.items.to(torch::kInt64).to(device), rows.weights.to(device)};
  });
}

int64_t ItemGraph::n_items() const { return parts_->rows.offsets.size(0) - 1; }
int64_t ItemGraph::n_edges() const { return parts_->rows.items.size(0); }

NeighbourGraph weighted_sum(const std::vector<NeighbourGraph>& graphs,
                            const std::vector<double>& weights) {
  TORCH_CHECK(!graphs.empty() && graphs.size() == weights.size(),
              "a weighted sum needs a weight for each of its graphs");
  const int64_t n = graphs[0].offsets.size(0) - 1;
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items;
  std::vector<float> values;
  std::vector<std::pair<int32_t, double>> row;
  for (int64_t i = 0; i < n; ++i) {
    row.clear();
    for (size_t g = 0; g < graphs.size(); ++g) {
      TORCH_CHECK(graphs[g].offsets.size(0) == n + 1, "graphs of a sum must be of one size");
      const int64_t* from = graphs[g].offsets.const_data_ptr<int64_t>();
      for (int64_t e = from[i]; e < from[i + 1]; ++e) {
        row.emplace_back(graphs[g].items.const_data_ptr<int32_t>()[e],
                         weights[g] * graphs[g].weights.const_data_ptr<float>()[e]);
      }
    }
    std::stable_sort(row.begin(), row.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t j = 0; j < row.size();) {
      const int32_t item = row[j].first;
      double sum = 0;
      for (; j < row.size() && row[j].first == item; ++j) sum += row[j].second;
      items.push_back(item);
      values.push_back(static_cast<float>(sum));
    }
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return {torch::tensor(offsets, torch::kInt64), torch::tensor(items, torch::kInt32),
          torch::tensor(values, torch::kFloat32)};
}

std::vector<double> modality_weights(const std::vector<std::string>& modalities,
                                     const std::vector<double>& weights,
                                     const std::map<std::string, double>& usual,
                                     const std::string& owner) {
  if (weights.empty()) {
    std::vector<double> out(modalities.size(), 1 / static_cast<double>(modalities.size()));
    const std::set<std::string> names(modalities.begin(), modalities.end());
    const bool all = names.size() == modalities.size() && names.size() == usual.size();
    if (!all || !std::all_of(names.begin(), names.end(),
                             [&](const std::string& name) { return usual.contains(name); })) {
      return out;
    }
    for (size_t m = 0; m < out.size(); ++m) out[m] = usual.at(modalities[m]);
    return out;
  }
  if (weights.size() != modalities.size()) {
    throw usage_error("{}.modality_weights: wanted one for each of {} ({}), got {}", owner,
                      modalities.size(), fmt::join(modalities, ", "), weights.size());
  }
  return weights;
}

torch::Tensor propagate(const ItemGraph& graph, const torch::Tensor& x) {
  TORCH_CHECK(graph.defined(), "propagation needs a graph");
  TORCH_CHECK(x.dim() == 2 && x.size(0) == graph.n_items(), "propagation needs [", graph.n_items(),
              ", d], got ", x.sizes());
  TORCH_CHECK(x.scalar_type() == torch::kFloat32 || x.scalar_type() == torch::kFloat64,
              "propagation needs float32 or float64, got ", x.scalar_type());
  if (composed(x)) return propagate_composed(graph, x);
  return ItemGraphOp::apply(x, graph);
}

torch::Tensor propagate_composed(const ItemGraph& graph, const torch::Tensor& x) {
  const auto edges = graph.edges(x.device());
  const auto weight = edges.weights.to(x.scalar_type()).unsqueeze(1);
  return torch::zeros_like(x).index_add(0, edges.rows, weight * x.index_select(0, edges.columns));
}

}  // namespace tessera
