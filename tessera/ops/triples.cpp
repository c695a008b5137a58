#include "tessera/ops/triples.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <optional>
#include <vector>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/losses.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/spmm.h"

namespace tessera {
namespace {

using kernels::dot;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrain = 64;  // pairs a thread takes at least

/// Rows of `keys` [n] among n_rows, each with its places in rising order.
struct Groups {
  std::vector<int64_t> offsets, places;
  Groups(const std::vector<int64_t>& keys, int64_t n_rows)
      : offsets(static_cast<size_t>(n_rows) + 1), places(keys.size()) {
    for (const int64_t key : keys) ++offsets[static_cast<size_t>(key) + 1];
    for (size_t r = 1; r < offsets.size(); ++r) offsets[r] += offsets[r - 1];
    auto next = offsets;
    for (size_t k = 0; k < keys.size(); ++k) {
      places[static_cast<size_t>(next[static_cast<size_t>(keys[k])]++)] = static_cast<int64_t>(k);
    }
  }
};

/// A sparse matrix [n_rows, .] of entries (keys[k], columns[k], weights[k]); repeated ones add up.
template <typename T>
class Scatter {
 public:
  Scatter(const std::vector<int64_t>& keys, int64_t n_rows, const std::vector<int64_t>& columns,
          const std::vector<T>& weights)
      : groups_(keys, n_rows), columns_(keys.size()), weights_(keys.size()) {
    for (size_t e = 0; e < keys.size(); ++e) {
      const auto k = static_cast<size_t>(groups_.places[e]);
      columns_[e] = static_cast<int32_t>(columns[k]);
      weights_[e] = weights[k];
    }
  }
  /// [n_rows, d], of rows [., d]
  torch::Tensor times(const torch::Tensor& rows) const {
    const auto n_rows = static_cast<int64_t>(groups_.offsets.size()) - 1, d = rows.size(1);
    const auto out = torch::empty({n_rows, d}, rows.options());
    const kernels::WeightedSpmm<T> spmm{groups_.offsets.data(), columns_.data(), weights_.data(), d,
                                        1.0};
    const T* from = rows.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    for_rows(spmm.offsets, n_rows, d,
             [&](int64_t begin, int64_t end) { kernels::spmm(spmm, from, to, begin, end); });
    return out;
  }

 private:
  Groups groups_;
  std::vector<int32_t> columns_;
  std::vector<T> weights_;
};

class IndexedBpr : public torch::autograd::Function<IndexedBpr> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& users_in,
                               const torch::Tensor& items_in, const torch::Tensor& offsets_in,
                               const torch::Tensor& user_at, const torch::Tensor& positive_at,
                               const torch::Tensor& negative_at) {
    const auto users = users_in.contiguous(), items = items_in.contiguous();
    const auto offsets = offsets_in.contiguous();
    const int64_t n = user_at.numel(), d = users.size(1);
    const int64_t k = n > 0 ? negative_at.numel() / n : 1;
    // d loss / d score of a pair's positive and of its negatives.
    const auto slopes = torch::empty({n, 1 + k}, users.options());
    const auto values = torch::zeros({n}, torch::kFloat64);
    by_type(users, [&](auto type) {
      using T = decltype(type);
      const T* us = users.const_data_ptr<T>();
      const T* is = items.const_data_ptr<T>();
      const T* offset = offsets.numel() > 0 ? offsets.const_data_ptr<T>() : nullptr;
      const int64_t* u = user_at.const_data_ptr<int64_t>();
      const int64_t* p = positive_at.const_data_ptr<int64_t>();
      const int64_t* q = negative_at.const_data_ptr<int64_t>();
      T* slope = slopes.mutable_data_ptr<T>();
      double* value = values.mutable_data_ptr<double>();
      const T scale = static_cast<T>(1.0 / static_cast<double>(n * k));
      parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          const auto score = [&](int64_t item) {
            return dot(us + u[b] * d, is + item * d, d) + (offset ? offset[item] : T{0});
          };
          const T positive = score(p[b]);
          T total = 0;
          for (int64_t j = 0; j < k; ++j) {
            const T margin = positive - score(q[b * k + j]);
            value[b] += static_cast<double>(softplus(-margin));
            const T pull = scale / (1 + std::exp(margin));
            slope[b * (1 + k) + 1 + j] = pull;
            total += pull;
          }
          slope[b * (1 + k)] = -total;
        }
      });
    });
    context->save_for_backward({users, items, offsets, user_at, positive_at, negative_at, slopes});
    return (values.sum() / static_cast<double>(std::max<int64_t>(1, n * k)))
        .to(users.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &users = saved[0], &items = saved[1], &offsets = saved[2], &slopes = saved[6];
    const int64_t n = slopes.size(0), k = slopes.size(1) - 1;
    const int64_t* u = saved[3].const_data_ptr<int64_t>();
    const int64_t* p = saved[4].const_data_ptr<int64_t>();
    const int64_t* q = saved[5].const_data_ptr<int64_t>();
    std::vector<int64_t> user(static_cast<size_t>(slopes.numel())), item(user.size());
    for (int64_t b = 0; b < n; ++b) {
      for (int64_t j = 0; j <= k; ++j) {
        const auto e = static_cast<size_t>(b * (k + 1) + j);
        user[e] = u[b];
        item[e] = j == 0 ? p[b] : q[b * k + j - 1];
      }
    }
    variable_list out(6);
    by_type(users, [&](auto type) {
      using T = decltype(type);
      const T by = upstream[0].item<T>();
      const T* slope = slopes.const_data_ptr<T>();
      std::vector<T> weights(user.size());
      for (size_t e = 0; e < weights.size(); ++e) weights[e] = by * slope[e];
      std::optional<Scatter<T>> to_users, to_items;  // made side by side
      parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
        if (begin == 0) to_users.emplace(user, users.size(0), item, weights);
        if (end == 2) to_items.emplace(item, items.size(0), user, weights);
      });
      out[0] = to_users->times(items);
      out[1] = to_items->times(users);
      if (offsets.numel() > 0) {
        out[2] = torch::zeros_like(offsets);
        T* to = out[2].mutable_data_ptr<T>();
        for (size_t e = 0; e < weights.size(); ++e) to[item[e]] += weights[e];
      }
    });
    return out;
  }

 private:
  template <typename T>
  static T softplus(T x) {
    return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
  }
};

/// sum_r n_r |row r|^2 with n_r how often the lists name r; gradient 2 n_r row.
class RowDots : public torch::autograd::Function<RowDots> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& a_in,
                               const torch::Tensor& b_in, const torch::Tensor& a_at,
                               const torch::Tensor& b_at) {
    const auto a = a_in.contiguous(), b = b_in.contiguous();
    const int64_t n = a_at.numel(), d = a.size(1);
    const auto out = torch::empty({n}, a.options());
    by_type(a, [&](auto type) {
      using T = decltype(type);
      const T *as = a.const_data_ptr<T>(), *bs = b.const_data_ptr<T>();
      const int64_t *i = a_at.const_data_ptr<int64_t>(), *j = b_at.const_data_ptr<int64_t>();
      T* to = out.mutable_data_ptr<T>();
      parallel_for(0, n, 8 * kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) to[r] = dot(as + i[r] * d, bs + j[r] * d, d);
      });
    });
    context->save_for_backward({a, b, a_at, b_at});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &a = saved[0], &b = saved[1];
    const auto g = upstream[0].contiguous();
    const auto listed = [](const torch::Tensor& index) {
      const auto* from = index.const_data_ptr<int64_t>();
      return std::vector<int64_t>(from, from + index.numel());
    };
    const auto i = listed(saved[2]), j = listed(saved[3]);
    torch::Tensor da, db;
    by_type(g, [&](auto type) {
      using T = decltype(type);
      const std::vector<T> weights(g.const_data_ptr<T>(), g.const_data_ptr<T>() + g.numel());
      if (context->needs_input_grad(0)) da = Scatter<T>(i, a.size(0), j, weights).times(b);
      if (context->needs_input_grad(1)) db = Scatter<T>(j, b.size(0), i, weights).times(a);
    });
    return {da, db, torch::Tensor(), torch::Tensor()};
  }
};

class CountedSquares : public torch::autograd::Function<CountedSquares> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& table_in,
                               const torch::Tensor& counts) {
    const auto table = table_in.contiguous();
    context->save_for_backward({table, counts});
    return sum_of_squares(table, counts).to(table.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto weights = saved[1].to(saved[0].scalar_type()).mul_(2 * upstream[0]);
    return {saved[0] * weights.unsqueeze(1), torch::Tensor()};
  }
};

void check_index(const torch::Tensor& index, int64_t n_rows) {
  TORCH_CHECK(index.scalar_type() == torch::kInt64, "rows are named by int64");
  if (!index.is_cpu()) return;  // what reads it there checks it
  const auto flat = index.contiguous();
  const int64_t* at = flat.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < flat.numel(); ++k) {
    TORCH_CHECK(at[k] >= 0 && at[k] < n_rows, "row ", at[k], " of a table of ", n_rows);
  }
}

}  // namespace

torch::Tensor bpr_loss(const torch::Tensor& users, const torch::Tensor& items, const Triples& at,
                       const torch::Tensor& offsets) {
  TORCH_CHECK(users.dim() == 2 && items.dim() == 2 && users.size(1) == items.size(1),
              "bpr_loss wants users [U, d] and items [I, d]");
  check_index(at.users, users.size(0));
  check_index(at.positives, items.size(0));
  check_index(at.negatives, items.size(0));
  if (composed(users)) return bpr_loss_composed(users, items, at, offsets);
  return IndexedBpr::apply(
      users, items, offsets.defined() ? offsets : torch::empty({0}, items.options()),
      at.users.contiguous(), at.positives.contiguous(), at.negatives.contiguous());
}

torch::Tensor bpr_loss_composed(const torch::Tensor& users, const torch::Tensor& items,
                                const Triples& at, const torch::Tensor& offsets) {
  const auto negative = at.negatives.flatten();
  auto margins = bpr_margins(users.index_select(0, at.users), items.index_select(0, at.positives),
                             items.index_select(0, negative));
  if (offsets.defined()) {
    margins = margins + offsets.index_select(0, at.positives).unsqueeze(1) -
              offsets.index_select(0, negative).view_as(margins);
  }
  return -torch::log_sigmoid(margins).sum() /
         static_cast<double>(std::max<int64_t>(1, margins.numel()));
}

torch::Tensor row_dots_composed(const torch::Tensor& a, const torch::Tensor& b,
                                const torch::Tensor& a_at, const torch::Tensor& b_at) {
  return (a.index_select(0, a_at) * b.index_select(0, b_at)).sum(1);
}

torch::Tensor l2_rows_composed(const torch::Tensor& table, const std::vector<torch::Tensor>& rows,
                               int64_t batch_size) {
  std::vector<torch::Tensor> picked;
  for (const auto& list : rows) picked.push_back(table.index_select(0, list.flatten()));
  return l2_rows(picked, batch_size);
}

torch::Tensor row_dots(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& a_at,
                       const torch::Tensor& b_at) {
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(1) && a_at.dim() == 1 &&
                  a_at.sizes() == b_at.sizes() && a.scalar_type() == b.scalar_type(),
              "row_dots wants [A, d], [B, d] and two lists of as many rows, got ", a.sizes(), " ",
              b.sizes(), " ", a_at.sizes(), " ", b_at.sizes());
  if (composed(a)) return row_dots_composed(a, b, a_at, b_at);
  return RowDots::apply(a, b, a_at.contiguous(), b_at.contiguous());
}

torch::Tensor l2_rows(const torch::Tensor& table, const std::vector<torch::Tensor>& rows,
                      int64_t batch_size) {
  if (composed(table)) return l2_rows_composed(table, rows, batch_size);
  const auto counts = torch::zeros({table.size(0)}, torch::kInt64);
  int64_t* count = counts.mutable_data_ptr<int64_t>();
  for (const auto& list : rows) {
    check_index(list, table.size(0));
    const auto flat = list.contiguous();
    const int64_t* at = flat.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < flat.numel(); ++k) ++count[at[k]];
  }
  return CountedSquares::apply(table, counts) / (2.0 * static_cast<double>(batch_size));
}

torch::Tensor norm_rows(const torch::Tensor& users, const torch::Tensor& items, const Triples& at,
                        int64_t batch_size) {
  return norm_rows({gather_rows(users, at.users), gather_rows(items, at.positives),
                    gather_rows(items, at.negatives.flatten())},
                   batch_size);
}

}  // namespace tessera
