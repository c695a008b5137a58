#include "tessera/ops/edge_scores.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/spmm.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Shape {
  int64_t n_tastes, width;
  double scale;
};

template <typename T>
void sums(const BipartiteGraph::Parts& edges, const T* y, const T* p, const Shape& shape,
          const int64_t* items, int64_t n, T* out) {
  const int64_t* offsets = edges.item_offsets.const_data_ptr<int64_t>();
  const int32_t* users = edges.item_users.const_data_ptr<int32_t>();
  const int64_t w = shape.width, row_width = shape.n_tastes * w;
  const auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t item = items ? items[r] : r;
      double sum = 0;
      for (int64_t e = offsets[item]; e < offsets[item + 1]; ++e) {
        const T* taste = p + users[e] * row_width;
        for (int64_t k = 0; k < shape.n_tastes; ++k) {
          sum +=
              sigmoid(static_cast<double>(kernels::dot(y + r * w, taste + k * w, w)) / shape.scale);
        }
      }
      out[r] = static_cast<T>(sum / static_cast<double>(shape.n_tastes));
    }
  };
  if (items) {
    parallel_for(0, n, 16, rows);
  } else {
    for_rows(offsets, n, row_width, rows);
  }
}

// One side's gradient: rows of `own` against rows of `other`, the upstream taken from the item.
// out_r^a += g s (1 - s) / (K scale) other_c^b, where a or b runs over the tastes.
template <typename T, bool kItems>
void gradient(const BipartiteGraph::Parts& edges, const T* own, const T* other, const T* upstream,
              const Shape& shape, int64_t n, T* out) {
  const int64_t* offsets =
      (kItems ? edges.item_offsets : edges.user_offsets).template const_data_ptr<int64_t>();
  const int32_t* columns =
      (kItems ? edges.item_users : edges.user_items).template const_data_ptr<int32_t>();
  const int64_t w = shape.width, wide = shape.n_tastes * w;
  const int64_t own_width = kItems ? w : wide, other_width = kItems ? wide : w;
  const double share = 1 / (static_cast<double>(shape.n_tastes) * shape.scale);
  for_rows(offsets, n, wide, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* to = out + r * own_width;
      std::fill(to, to + own_width, T{0});
      for (int64_t e = offsets[r]; e < offsets[r + 1]; ++e) {
        const int64_t c = columns[e];
        const T g = upstream[kItems ? r : c];
        if (g == 0) continue;
        for (int64_t k = 0; k < shape.n_tastes; ++k) {
          const T* a = own + r * own_width + (kItems ? 0 : k * w);
          const T* b = other + c * other_width + (kItems ? k * w : 0);
          T* at = to + (kItems ? 0 : k * w);
          const double s = sigmoid(static_cast<double>(kernels::dot(a, b, w)) / shape.scale);
          const T slope = static_cast<T>(static_cast<double>(g) * s * (1 - s) * share);
          for (int64_t i = 0; i < w; ++i) at[i] += slope * b[i];
        }
      }
    }
  });
}

struct Holder : torch::CustomClassHolder {
  explicit Holder(BipartiteGraph g) : graph(std::move(g)) {}
  BipartiteGraph graph;
};

class EdgeSums : public torch::autograd::Function<EdgeSums> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& y_in,
                               const torch::Tensor& p_in, const BipartiteGraph& graph,
                               int64_t n_tastes, double scale) {
    const auto y = y_in.contiguous(), p = p_in.contiguous();
    context->save_for_backward({y, p});
    context->saved_data["graph"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(graph));
    context->saved_data["n_tastes"] = n_tastes;
    context->saved_data["scale"] = scale;
    const auto out = torch::empty({y.size(0)}, y.options());
    by_type(y, [&](auto type) {
      using T = decltype(type);
      sums<T>(graph.parts(), y.const_data_ptr<T>(), p.const_data_ptr<T>(),
              {n_tastes, y.size(1), scale}, nullptr, y.size(0), out.mutable_data_ptr<T>());
    });
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto capsule = context->saved_data["graph"].toCapsule();
    const auto& parts = static_cast<Holder*>(capsule.get())->graph.parts();
    const auto &y = saved[0], &p = saved[1];
    const auto g = upstream[0].contiguous();
    const auto dy = torch::empty_like(y), dp = torch::empty_like(p);
    const Shape shape{context->saved_data["n_tastes"].toInt(), y.size(1),
                      context->saved_data["scale"].toDouble()};
    by_type(y, [&](auto type) {
      using T = decltype(type);
      gradient<T, true>(parts, y.const_data_ptr<T>(), p.const_data_ptr<T>(), g.const_data_ptr<T>(),
                        shape, y.size(0), dy.mutable_data_ptr<T>());
      gradient<T, false>(parts, p.const_data_ptr<T>(), y.const_data_ptr<T>(), g.const_data_ptr<T>(),
                         shape, p.size(0), dp.mutable_data_ptr<T>());
    });
    return {dy, dp, torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }
};

void check(const BipartiteGraph& edges, const torch::Tensor& y, const torch::Tensor& p,
           int64_t n_tastes) {
  TORCH_CHECK(edges.defined() && n_tastes >= 1 && y.dim() == 2 && p.dim() == 2 &&
                  p.size(0) == edges.n_users() && p.size(1) == n_tastes * y.size(1) &&
                  y.scalar_type() == p.scalar_type() &&
                  (y.scalar_type() == torch::kFloat32 || y.scalar_type() == torch::kFloat64),
              "edge_sums wants y [n, w] and p [n_users, K w] of one float type, got ", y.sizes(),
              " and ", p.sizes(), " with K = ", n_tastes);
}

/// The same for edges given one by one.
torch::Tensor sums_of_edges(const torch::Tensor& item, const torch::Tensor& user,
                            const torch::Tensor& y, const torch::Tensor& p, int64_t n_tastes,
                            double scale) {
  const auto left = y.index_select(0, item).unsqueeze(1);
  const auto right = p.index_select(0, user).reshape({-1, n_tastes, y.size(1)});
  const auto s = torch::sigmoid((left * right).sum(2) / scale).mean(1);
  return torch::zeros({y.size(0)}, y.options()).index_add(0, item, s);
}

}  // namespace

torch::Tensor edge_sums(const BipartiteGraph& edges, const torch::Tensor& y, const torch::Tensor& p,
                        int64_t n_tastes, double scale, const torch::Tensor& items) {
  check(edges, y, p, n_tastes);
  if (!items.defined()) {
    TORCH_CHECK(y.size(0) == edges.n_items(), "edge_sums wants a row of y for each item");
    return composed(y) ? edge_sums_composed(edges, y, p, n_tastes, scale)
                       : EdgeSums::apply(y, p, edges, n_tastes, scale);
  }
  TORCH_CHECK(
      items.scalar_type() == torch::kInt64 && items.dim() == 1 && items.size(0) == y.size(0),
      "edge_sums wants items as int64 [", y.size(0), "]");
  if (composed(y)) return edge_sums_composed(edges, y, p, n_tastes, scale, items);
  const auto from = y.detach().contiguous(), tastes = p.detach().contiguous();
  const auto index = items.contiguous(), out = torch::empty({y.size(0)}, from.options());
  by_type(from, [&](auto type) {
    using T = decltype(type);
    sums<T>(edges.parts(), from.const_data_ptr<T>(), tastes.const_data_ptr<T>(),
            {n_tastes, y.size(1), scale}, index.const_data_ptr<int64_t>(), y.size(0),
            out.mutable_data_ptr<T>());
  });
  return out;
}

torch::Tensor edge_sums_composed(const BipartiteGraph& edges, const torch::Tensor& y,
                                 const torch::Tensor& p, int64_t n_tastes, double scale,
                                 const torch::Tensor& items) {
  check(edges, y, p, n_tastes);
  if (items.defined()) {
    // The chosen items as a graph of their own.
    const torch::NoGradGuard no_grad;
    const auto list = items.to(torch::kCPU).contiguous();
    const auto& parts = edges.parts();
    const int64_t* from = parts.item_offsets.const_data_ptr<int64_t>();
    const int32_t* user_of = parts.item_users.const_data_ptr<int32_t>();
    std::vector<int64_t> rows, users;
    for (int64_t r = 0; r < list.numel(); ++r) {
      const int64_t at = list.const_data_ptr<int64_t>()[r];
      for (int64_t e = from[at]; e < from[at + 1]; ++e) {
        rows.push_back(r);
        users.push_back(user_of[e]);
      }
    }
    return sums_of_edges(torch::tensor(rows, torch::kInt64).to(y.device()),
                         torch::tensor(users, torch::kInt64).to(y.device()), y, p, n_tastes, scale);
  }
  const auto ends = edges.edges(y.device());
  return sums_of_edges(ends.items, ends.users, y, p, n_tastes, scale);
}

}  // namespace tessera
