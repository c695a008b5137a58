#include "tessera/ops/one_way.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>

#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows shared out by non-zeros (and rows, where most are empty).
template <typename T>
void product(const kernels::Spmm& spmm, int64_t n_rows, const T* x, T* out) {
  const auto work = [&](int64_t row) { return spmm.offsets[row] + row; };
  const auto row_at = [&](int64_t amount) {  // the first row that begins at or after `amount`
    int64_t low = 0, high = n_rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (work(middle) < amount) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const int64_t grain = std::max<int64_t>(1, 131072 / std::max<int64_t>(1, spmm.width));
  parallel_for(0, work(n_rows), grain, [&](int64_t begin, int64_t end) {
    kernels::spmm(spmm, x, static_cast<const T*>(nullptr), out, row_at(begin), row_at(end));
  });
}

// `transposed` is what backward applies: rows and columns change places, and with them whose degree
// counts.
torch::Tensor one_way(const BipartiteGraph::Parts& graph, const torch::Tensor& x, bool to_users,
                      EdgeWeight weight, bool transposed) {
  const bool by_user = to_users != transposed;  // whose rows come out
  const auto& offsets = by_user ? graph.user_offsets : graph.item_offsets;
  const auto& columns = by_user ? graph.user_items : graph.item_users;
  auto rows = by_user ? graph.user_root : graph.item_root;
  auto cols = by_user ? graph.item_root : graph.user_root;
  if (weight == EdgeWeight::receiver) {
    auto& other = transposed ? rows : cols;
    other = torch::ones_like(other);
  }
  const torch::Tensor dense = x.contiguous();
  const torch::Tensor out = torch::empty({rows.size(0), x.size(1)}, x.options());
  const kernels::Spmm spmm{offsets.const_data_ptr<int64_t>(),
                           columns.const_data_ptr<int32_t>(),
                           rows.const_data_ptr<double>(),
                           cols.const_data_ptr<double>(),
                           x.size(1),
                           1.0};
  if (x.scalar_type() == torch::kFloat32) {
    product(spmm, rows.size(0), dense.const_data_ptr<float>(), out.mutable_data_ptr<float>());
  } else {
    product(spmm, rows.size(0), dense.const_data_ptr<double>(), out.mutable_data_ptr<double>());
  }
  return out;
}

struct Holder : torch::CustomClassHolder {
  explicit Holder(BipartiteGraph g) : graph(std::move(g)) {}
  BipartiteGraph graph;
};

class OneWay : public torch::autograd::Function<OneWay> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const BipartiteGraph& graph, bool to_users, EdgeWeight weight) {
    context->saved_data["graph"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(graph));
    context->saved_data["to_users"] = to_users;
    context->saved_data["weight"] = static_cast<int64_t>(weight);
    return one_way(graph.parts(), x, to_users, weight, false);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto capsule = context->saved_data["graph"].toCapsule();
    const auto& graph = static_cast<Holder*>(capsule.get())->graph;
    const auto weight = static_cast<EdgeWeight>(context->saved_data["weight"].toInt());
    return {one_way(graph.parts(), gradients[0], context->saved_data["to_users"].toBool(), weight,
                    true),
            torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }
};

torch::Tensor checked(const BipartiteGraph& graph, const torch::Tensor& x, bool to_users,
                      EdgeWeight weight) {
  TORCH_CHECK(graph.defined(), "propagation needs a graph");
  const int64_t n = to_users ? graph.n_items() : graph.n_users();
  TORCH_CHECK(x.dim() == 2 && x.size(0) == n, "propagation needs [", n, ", d], got ", x.sizes());
  TORCH_CHECK(x.scalar_type() == torch::kFloat32 || x.scalar_type() == torch::kFloat64,
              "propagation needs float32 or float64, got ", x.scalar_type());
  return OneWay::apply(x, graph, to_users, weight);
}

}  // namespace

torch::Tensor to_users(const BipartiteGraph& graph, const torch::Tensor& items, EdgeWeight weight) {
  return checked(graph, items, true, weight);
}

torch::Tensor to_items(const BipartiteGraph& graph, const torch::Tensor& users, EdgeWeight weight) {
  return checked(graph, users, false, weight);
}

BipartiteGraph neighbour_graph(const torch::Tensor& items, int64_t n_items) {
  TORCH_CHECK(items.dim() == 2 && items.scalar_type() == torch::kInt32,
              "neighbours must be int32 [n_users, k]");
  const auto sorted = std::get<0>(items.sort(1));
  const auto present = sorted >= 0;
  return BipartiteGraph(torch::cat({torch::zeros({1}, torch::kInt64), present.sum(1).cumsum(0)}),
                        sorted.masked_select(present), n_items, 0);
}

}  // namespace tessera
