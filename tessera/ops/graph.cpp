#include "tessera/ops/graph.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <vector>

#include "tessera/ops/by_type.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/spmm.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

torch::Tensor inverse_roots(const torch::Tensor& offsets, double eps) {
  return (offsets.diff().to(torch::kFloat64) + eps).rsqrt();
}

/// scale * (base + S x) of a sparse matrix of n_rows, its entries row_root[r] col_root[c]; base may
/// be undefined. [n_rows, d]
torch::Tensor product(int64_t n_rows, const int64_t* offsets, const int32_t* columns,
                      const torch::Tensor& row_root, const torch::Tensor& col_root,
                      const torch::Tensor& x, const torch::Tensor& base, double scale) {
  const auto out = torch::empty({n_rows, x.size(1)}, x.options());
  by_type(x, [&](auto type) {
    using T = decltype(type);
    const kernels::Spmm spmm{
        offsets,   columns, row_root.const_data_ptr<double>(), col_root.const_data_ptr<double>(),
        x.size(1), scale};
    const T* from = x.const_data_ptr<T>();
    const T* add = base.defined() ? base.const_data_ptr<T>() : nullptr;
    T* to = out.mutable_data_ptr<T>();
    for_rows(offsets, n_rows, spmm.width,
             [&](int64_t begin, int64_t end) { kernels::spmm(spmm, from, add, to, begin, end); });
  });
  return out;
}

/// One direction of the graph: rows, the columns of their non-zeros, what degrees give both.
struct Side {
  const torch::Tensor &offsets, &columns, &row_root, &col_root;
  int64_t n_rows() const { return offsets.size(0) - 1; }
};
Side to_users_of(const BipartiteGraph::Parts& g) {
  return {g.user_offsets, g.user_items, g.user_root, g.item_root};
}
Side to_items_of(const BipartiteGraph::Parts& g) {
  return {g.item_offsets, g.item_users, g.item_root, g.user_root};
}
torch::Tensor product(const Side& side, const torch::Tensor& x, const torch::Tensor& base,
                      double scale) {
  return product(side.n_rows(), side.offsets.const_data_ptr<int64_t>(),
                 side.columns.const_data_ptr<int32_t>(), side.row_root, side.col_root, x, base,
                 scale);
}

struct Pair {
  torch::Tensor users, items;
};

// scale * (base + A_hat x); base may be undefined.
Pair apply(const BipartiteGraph::Parts& graph, const Pair& x, const Pair& base, double scale) {
  return {product(to_users_of(graph), x.items, base.users, scale),
          product(to_items_of(graph), x.users, base.items, scale)};
}

Pair mean_of_layers(const BipartiteGraph::Parts& graph, const Pair& x, int64_t n_layers) {
  Pair y = x;
  for (int64_t layer = 1; layer <= n_layers; ++layer) {
    y = apply(graph, y, x, layer == n_layers ? 1.0 / static_cast<double>(n_layers + 1) : 1.0);
  }
  return y;
}

// Both ops are symmetric linear maps: what forward does to X, backward does to its gradient.
// `n_layers` below 0 stands for one product.
Pair linear(const BipartiteGraph::Parts& graph, const Pair& x, int64_t n_layers) {
  const Pair dense{x.users.contiguous(), x.items.contiguous()};
  return n_layers < 0 ? apply(graph, dense, {}, 1) : mean_of_layers(graph, dense, n_layers);
}

struct Holder : torch::CustomClassHolder {
  explicit Holder(BipartiteGraph g) : graph(std::move(g)) {}
  BipartiteGraph graph;
};

class GraphOp : public torch::autograd::Function<GraphOp> {
 public:
  static variable_list forward(AutogradContext* context, const torch::Tensor& users,
                               const torch::Tensor& items, const BipartiteGraph& graph,
                               int64_t n_layers) {
    context->saved_data["graph"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(graph));
    context->saved_data["n_layers"] = n_layers;
    const Pair out = linear(graph.parts(), {users, items}, n_layers);
    // An output that is an input (no layer, contiguous) must be a tensor of its own.
    return {out.users.is_same(users) ? users.clone() : out.users,
            out.items.is_same(items) ? items.clone() : out.items};
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto capsule = context->saved_data["graph"].toCapsule();
    const auto& graph = static_cast<Holder*>(capsule.get())->graph;
    const Pair out = linear(graph.parts(), {gradients[0], gradients[1]},
                            context->saved_data["n_layers"].toInt());
    return {out.users, out.items, torch::Tensor(), torch::Tensor()};
  }
};

/// scale * (base + S x) for the chosen rows; x of all columns, base [n, d].
torch::Tensor product_of_rows(const Side& side, const torch::Tensor& rows, const torch::Tensor& x,
                              const torch::Tensor& base, double scale) {
  const int64_t* from = side.offsets.const_data_ptr<int64_t>();
  const int32_t* column = side.columns.const_data_ptr<int32_t>();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> columns;
  for (int64_t k = 0; k < rows.numel(); ++k) {
    columns.insert(columns.end(), column + from[row[k]], column + from[row[k] + 1]);
    offsets.push_back(static_cast<int64_t>(columns.size()));
  }
  return product(rows.numel(), offsets.data(), columns.data(), side.row_root.index_select(0, rows),
                 side.col_root, x, base, scale);
}

/// S x for all rows, where the columns outside the list are zero; x [n, d] holds the list's.
torch::Tensor product_of_columns(const Side& side, const torch::Tensor& listed,
                                 const torch::Tensor& x) {
  const int64_t n_rows = side.n_rows();
  std::vector<int32_t> place(static_cast<size_t>(side.col_root.size(0)), -1);
  const int64_t* list = listed.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < listed.numel(); ++k) {
    place[static_cast<size_t>(list[k])] = static_cast<int32_t>(k);
  }
  const int64_t* from = side.offsets.const_data_ptr<int64_t>();
  const int32_t* column = side.columns.const_data_ptr<int32_t>();
  std::vector<int64_t> offsets(static_cast<size_t>(n_rows) + 1);
  for_rows(from, n_rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int64_t n = 0;
      for (int64_t e = from[r]; e < from[r + 1]; ++e) {
        n += place[static_cast<size_t>(column[e])] >= 0;
      }
      offsets[static_cast<size_t>(r) + 1] = n;
    }
  });
  for (size_t r = 1; r < offsets.size(); ++r) offsets[r] += offsets[r - 1];
  std::vector<int32_t> columns(static_cast<size_t>(offsets.back()));
  for_rows(from, n_rows, 1, [&](int64_t begin, int64_t end) {
    auto to = static_cast<size_t>(offsets[static_cast<size_t>(begin)]);
    for (int64_t e = from[begin]; e < from[end]; ++e) {
      const int32_t at = place[static_cast<size_t>(column[e])];
      if (at >= 0) columns[to++] = at;
    }
  });
  return product(n_rows, offsets.data(), columns.data(), side.row_root,
                 side.col_root.index_select(0, listed), x, {}, 1);
}

/// to[rows[k]] += x[k].
void add_to_rows(const torch::Tensor& to, const torch::Tensor& rows, const torch::Tensor& x) {
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const int64_t width = x.size(1);
  by_type(x, [&](auto type) {
    using T = decltype(type);
    const T* from = x.const_data_ptr<T>();
    T* out = to.mutable_data_ptr<T>();
    for (int64_t k = 0; k < rows.numel(); ++k) {
      T* own = out + row[k] * width;
      kernels::combine(T{1}, own, T{1}, from + k * width, width, own);
    }
  });
}

class LayerMeanRows : public torch::autograd::Function<LayerMeanRows> {
 public:
  static variable_list forward(AutogradContext* context, const torch::Tensor& users_in,
                               const torch::Tensor& items_in, const BipartiteGraph& graph,
                               int64_t n_layers, const torch::Tensor& user_rows,
                               const torch::Tensor& item_rows) {
    context->saved_data["graph"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(graph));
    context->saved_data["n_layers"] = n_layers;
    context->save_for_backward({user_rows, item_rows});
    const Pair x{users_in.contiguous(), items_in.contiguous()};
    Pair y = x;
    for (int64_t layer = 1; layer < n_layers; ++layer) y = tessera::apply(graph.parts(), y, x, 1);
    const double scale = 1.0 / static_cast<double>(n_layers + 1);
    return {product_of_rows(to_users_of(graph.parts()), user_rows, y.items,
                            x.users.index_select(0, user_rows), scale),
            product_of_rows(to_items_of(graph.parts()), item_rows, y.users,
                            x.items.index_select(0, item_rows), scale)};
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto capsule = context->saved_data["graph"].toCapsule();
    const auto& graph = static_cast<Holder*>(capsule.get())->graph.parts();
    const auto saved = context->get_saved_variables();
    const auto g_users = gradients[0].contiguous(), g_items = gradients[1].contiguous();
    const int64_t n_layers = context->saved_data["n_layers"].toInt();
    const auto add = [&](Pair& to) {
      add_to_rows(to.users, saved[0], g_users);
      add_to_rows(to.items, saved[1], g_items);
    };
    Pair z{product_of_columns(to_users_of(graph), saved[1], g_items),
           product_of_columns(to_items_of(graph), saved[0], g_users)};
    add(z);
    for (int64_t layer = 2; layer <= n_layers; ++layer) {
      z = tessera::apply(graph, z, {}, 1);
      add(z);
    }
    // Scaled at the end, as layer_mean is: its gradient bit for bit.
    const double scale = 1.0 / static_cast<double>(n_layers + 1);
    z.users.mul_(scale);
    z.items.mul_(scale);
    return {z.users, z.items, torch::Tensor(), torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }
};

void check_rows(const torch::Tensor& rows, int64_t n) {
  TORCH_CHECK(rows.dim() == 1 && rows.scalar_type() == torch::kInt64, "rows must be int64 [n]");
  std::vector<bool> seen(static_cast<size_t>(n));
  for (const int64_t row :
       at::ArrayRef<int64_t>(rows.const_data_ptr<int64_t>(), static_cast<size_t>(rows.numel()))) {
    TORCH_CHECK(row >= 0 && row < n && !seen[static_cast<size_t>(row)], "row ", row,
                " is named twice or not one of ", n);
    seen[static_cast<size_t>(row)] = true;
  }
}

/// to[to_row] += weight x[from_row] over the edges. [n_rows, d]
torch::Tensor summed_edges(const torch::Tensor& x, const torch::Tensor& from_row,
                           const torch::Tensor& to_row, int64_t n_rows,
                           const torch::Tensor& weight) {
  const auto each = x.index_select(0, from_row) * weight.to(x.scalar_type()).unsqueeze(1);
  return torch::zeros({n_rows, x.size(1)}, x.options()).index_add(0, to_row, each);
}

// One direction. `transposed` is what backward applies: rows and columns change places, and with
// them whose degree counts.
torch::Tensor one_way(const BipartiteGraph::Parts& graph, const torch::Tensor& x, bool to_users,
                      EdgeWeight weight, bool transposed) {
  const Side side = to_users != transposed ? to_users_of(graph) : to_items_of(graph);
  const bool both = weight == EdgeWeight::both;
  return product({side.offsets, side.columns, both || !transposed ? side.row_root : graph.ones,
                  both || transposed ? side.col_root : graph.ones},
                 x.contiguous(), {}, 1);
}

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

torch::Tensor checked_one_way(const BipartiteGraph& graph, const torch::Tensor& x, bool to_users,
                              EdgeWeight weight) {
  TORCH_CHECK(graph.defined(), "propagation needs a graph");
  const int64_t n = to_users ? graph.n_items() : graph.n_users();
  TORCH_CHECK(x.dim() == 2 && x.size(0) == n, "propagation needs [", n, ", d], got ", x.sizes());
  TORCH_CHECK(x.scalar_type() == torch::kFloat32 || x.scalar_type() == torch::kFloat64,
              "propagation needs float32 or float64, got ", x.scalar_type());
  if (composed(x)) {
    return to_users ? to_users_composed(graph, x, weight) : to_items_composed(graph, x, weight);
  }
  return OneWay::apply(x, graph, to_users, weight);
}

void check(const BipartiteGraph& graph, const torch::Tensor& users, const torch::Tensor& items) {
  TORCH_CHECK(graph.defined(), "propagation needs a graph");
  TORCH_CHECK(users.dim() == 2 && items.dim() == 2 && users.size(0) == graph.n_users() &&
                  items.size(0) == graph.n_items() && users.size(1) == items.size(1),
              "propagation needs [", graph.n_users(), ", d] and [", graph.n_items(), ", d], got ",
              users.sizes(), " and ", items.sizes());
  const auto type = users.scalar_type();
  TORCH_CHECK((type == torch::kFloat32 || type == torch::kFloat64) && items.scalar_type() == type,
              "propagation needs float32 or float64, got ", type, " and ", items.scalar_type());
}

}  // namespace

BipartiteGraph::BipartiteGraph(const torch::Tensor& offsets, const torch::Tensor& items,
                               int64_t n_items, double eps) {
  TORCH_CHECK(offsets.scalar_type() == torch::kInt64 && offsets.dim() == 1 && offsets.size(0) >= 1,
              "a graph's offsets must be int64 [n_users + 1]");
  TORCH_CHECK(items.scalar_type() == torch::kInt32 && items.dim() == 1 && n_items >= 0,
              "a graph's items must be int32 [n_edges]");
  auto parts = std::make_shared<Parts>();
  parts->user_offsets = offsets.contiguous();
  parts->user_items = items.contiguous();
  const int64_t n_users = offsets.size(0) - 1, n_edges = items.size(0);
  const int64_t* from = parts->user_offsets.const_data_ptr<int64_t>();
  const int32_t* item = parts->user_items.const_data_ptr<int32_t>();
  TORCH_CHECK(from[0] == 0 && from[n_users] == n_edges, "a graph's offsets must span its edges");
  parts->item_offsets = torch::zeros({n_items + 1}, torch::kInt64);
  int64_t* to = parts->item_offsets.mutable_data_ptr<int64_t>();
  for (int64_t u = 0; u < n_users; ++u) {
    TORCH_CHECK(from[u] <= from[u + 1] && from[u + 1] <= n_edges, "a graph's offsets must rise");
    for (int64_t e = from[u]; e < from[u + 1]; ++e) {
      TORCH_CHECK(item[e] >= 0 && item[e] < n_items, "item ", item[e], " of a graph with ",
                  n_items);
      TORCH_CHECK(e == from[u] || item[e - 1] < item[e],
                  "a user's items must be sorted and distinct");
      ++to[item[e] + 1];
    }
  }
  for (int64_t i = 0; i < n_items; ++i) to[i + 1] += to[i];
  parts->item_users = torch::empty({n_edges}, torch::kInt32);
  int32_t* user = parts->item_users.mutable_data_ptr<int32_t>();
  std::vector<int64_t> next(to, to + n_items);
  for (int64_t u = 0; u < n_users; ++u) {
    for (int64_t e = from[u]; e < from[u + 1]; ++e) {
      user[next[static_cast<size_t>(item[e])]++] = static_cast<int32_t>(u);
    }
  }
  parts->user_root = inverse_roots(parts->user_offsets, eps);
  parts->item_root = inverse_roots(parts->item_offsets, eps);
  parts->ones = torch::ones({std::max(n_users, n_items)}, torch::kFloat64);
  parts_ = std::move(parts);
  edges_ = std::make_shared<OncePerDevice<Edges>>();
}

BipartiteGraph::Edges BipartiteGraph::edges(torch::Device device) const {
  return edges_->get(device, [&]() -> Edges {
    const auto users = torch::repeat_interleave(parts_->user_offsets.diff());
    const auto items = parts_->user_items.to(torch::kInt64);
    return {users.to(device), items.to(device), parts_->user_root.index_select(0, users).to(device),
            parts_->item_root.index_select(0, items).to(device)};
  });
}

int64_t BipartiteGraph::n_users() const { return parts_->user_root.size(0); }
int64_t BipartiteGraph::n_items() const { return parts_->item_root.size(0); }
int64_t BipartiteGraph::n_edges() const { return parts_->user_items.size(0); }

torch::Tensor BipartiteGraph::dense() const {
  const torch::Tensor users = torch::repeat_interleave(parts_->user_offsets.diff());
  const torch::Tensor items = parts_->user_items.to(torch::kInt64);
  torch::Tensor matrix = torch::zeros({n_users(), n_items()}, torch::kFloat64);
  matrix.index_put_({users, items}, parts_->user_root.index_select(0, users) *
                                        parts_->item_root.index_select(0, items));
  return matrix;
}

std::pair<torch::Tensor, torch::Tensor> propagate(const BipartiteGraph& graph,
                                                  const torch::Tensor& users,
                                                  const torch::Tensor& items) {
  check(graph, users, items);
  if (composed(users)) return propagate_composed(graph, users, items);
  const variable_list out = GraphOp::apply(users, items, graph, -1);
  return {out[0], out[1]};
}

std::pair<torch::Tensor, torch::Tensor> layer_mean(const BipartiteGraph& graph,
                                                   const torch::Tensor& users,
                                                   const torch::Tensor& items, int64_t n_layers) {
  check(graph, users, items);
  TORCH_CHECK(n_layers >= 0, "propagation needs at least 0 layers, got ", n_layers);
  if (composed(users)) return layer_mean_composed(graph, users, items, n_layers);
  const variable_list out = GraphOp::apply(users, items, graph, n_layers);
  return {out[0], out[1]};
}

std::pair<torch::Tensor, torch::Tensor> layer_mean_rows(
    const BipartiteGraph& graph, const torch::Tensor& users, const torch::Tensor& items,
    int64_t n_layers, const torch::Tensor& user_rows, const torch::Tensor& item_rows) {
  check(graph, users, items);
  TORCH_CHECK(n_layers >= 0, "propagation needs at least 0 layers, got ", n_layers);
  if (composed(users)) {
    return layer_mean_rows_composed(graph, users, items, n_layers, user_rows, item_rows);
  }
  check_rows(user_rows, graph.n_users());
  check_rows(item_rows, graph.n_items());
  if (n_layers == 0) return {gather_rows(users, user_rows), gather_rows(items, item_rows)};
  const variable_list out = LayerMeanRows::apply(users, items, graph, n_layers,
                                                 user_rows.contiguous(), item_rows.contiguous());
  return {out[0], out[1]};
}

torch::Tensor to_users(const BipartiteGraph& graph, const torch::Tensor& items, EdgeWeight weight) {
  return checked_one_way(graph, items, true, weight);
}

torch::Tensor to_items(const BipartiteGraph& graph, const torch::Tensor& users, EdgeWeight weight) {
  return checked_one_way(graph, users, false, weight);
}

BipartiteGraph neighbour_graph(const torch::Tensor& items, int64_t n_items) {
  TORCH_CHECK(items.dim() == 2 && items.scalar_type() == torch::kInt32,
              "neighbours must be int32 [n_users, k]");
  const auto sorted = std::get<0>(items.sort(1));
  const auto present = sorted >= 0;
  return BipartiteGraph(torch::cat({torch::zeros({1}, torch::kInt64), present.sum(1).cumsum(0)}),
                        sorted.masked_select(present), n_items, 0);
}

std::pair<torch::Tensor, torch::Tensor> propagate_composed(const BipartiteGraph& graph,
                                                           const torch::Tensor& users,
                                                           const torch::Tensor& items) {
  return {to_users_composed(graph, items), to_items_composed(graph, users)};
}

torch::Tensor to_users_composed(const BipartiteGraph& graph, const torch::Tensor& items,
                                EdgeWeight weight) {
  const auto edges = graph.edges(items.device());
  const bool both = weight == EdgeWeight::both;
  return summed_edges(items, edges.items, edges.users, graph.n_users(),
                      both ? edges.user_root * edges.item_root : edges.user_root);
}

torch::Tensor to_items_composed(const BipartiteGraph& graph, const torch::Tensor& users,
                                EdgeWeight weight) {
  const auto edges = graph.edges(users.device());
  const bool both = weight == EdgeWeight::both;
  return summed_edges(users, edges.users, edges.items, graph.n_items(),
                      both ? edges.user_root * edges.item_root : edges.item_root);
}

std::pair<torch::Tensor, torch::Tensor> layer_mean_composed(const BipartiteGraph& graph,
                                                            const torch::Tensor& users,
                                                            const torch::Tensor& items,
                                                            int64_t n_layers) {
  torch::Tensor user_sum = users, item_sum = items, user = users, item = items;
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    std::tie(user, item) = propagate_composed(graph, user, item);
    user_sum = user_sum + user;
    item_sum = item_sum + item;
  }
  const double count = static_cast<double>(n_layers + 1);
  return {user_sum / count, item_sum / count};
}

std::pair<torch::Tensor, torch::Tensor> layer_mean_rows_composed(
    const BipartiteGraph& graph, const torch::Tensor& users, const torch::Tensor& items,
    int64_t n_layers, const torch::Tensor& user_rows, const torch::Tensor& item_rows) {
  const auto [u, i] = layer_mean_composed(graph, users, items, n_layers);
  return {u.index_select(0, user_rows), i.index_select(0, item_rows)};
}

}  // namespace tessera
