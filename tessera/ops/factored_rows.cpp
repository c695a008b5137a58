#include "tessera/ops/factored_rows.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/unit_rows.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr double kShortest = 1e-12;
constexpr int64_t kGrain = 32;  // rows a thread takes at least
constexpr int64_t kStrip = 16;  // columns in registers

torch::Tensor row_of_entry(const SparseRows& s) {
  return rows_of_slots(s.offsets, s.columns.size(0));
}
torch::Tensor columns_of(const SparseRows& s) { return s.columns.to(torch::kInt64); }

template <typename T>
void add_scaled(T* __restrict to, const T* __restrict from, T weight, int64_t n) {
  int64_t c = 0;
  for (; c + kStrip <= n; c += kStrip) {
    for (int64_t j = 0; j < kStrip; ++j) to[c + j] += weight * from[c + j];
  }
  for (; c < n; ++c) to[c] += weight * from[c];
}

/// out[j] += sum over the entries of row j of value * w[column]. w [n, h], out [n_rows, h]
void add_gathered(const SparseRows& s, const torch::Tensor& w, torch::Tensor& out) {
  if (composed(w)) {
    out.index_add_(0, row_of_entry(s),
                   w.index_select(0, columns_of(s)) * s.values.to(w.scalar_type()).unsqueeze(1));
    return;
  }
  const int64_t n_rows = s.offsets.size(0) - 1, h = w.size(1);
  by_type(w, [&](auto type) {
    using T = decltype(type);
    const int64_t* offsets = s.offsets.const_data_ptr<int64_t>();
    const int32_t* columns = s.columns.const_data_ptr<int32_t>();
    const T* values = s.values.const_data_ptr<T>();
    const T* from = w.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    parallel_for(0, n_rows, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        for (int64_t e = offsets[j]; e < offsets[j + 1]; ++e) {
          add_scaled(to + j * h, from + columns[e] * h, values[e], h);
        }
      }
    });
  });
}

/// out[column] += value * x[j] over all entries. Threads share the columns of x out, so an entry of
/// `out` is summed in the order of the entries by one thread. x [n_rows, h], out [n, h]
void add_scattered(const SparseRows& s, const torch::Tensor& x, torch::Tensor& out) {
  if (composed(x)) {
    out.index_add_(0, columns_of(s),
                   x.index_select(0, row_of_entry(s)) * s.values.to(x.scalar_type()).unsqueeze(1));
    return;
  }
  const int64_t n_rows = s.offsets.size(0) - 1, h = x.size(1);
  by_type(x, [&](auto type) {
    using T = decltype(type);
    const int64_t* offsets = s.offsets.const_data_ptr<int64_t>();
    const int32_t* columns = s.columns.const_data_ptr<int32_t>();
    const T* values = s.values.const_data_ptr<T>();
    const T* from = x.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    parallel_for(0, (h + kStrip - 1) / kStrip, 2, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kStrip, n = std::min(h, end * kStrip) - first;
      for (int64_t j = 0; j < n_rows; ++j) {
        for (int64_t e = offsets[j]; e < offsets[j + 1]; ++e) {
          add_scaled(to + columns[e] * h + first, from + j * h + first, values[e], n);
        }
      }
    });
  });
}

/// Sum over a row's entries. float64 [n_rows]
torch::Tensor entry_sums(const SparseRows& s, const torch::Tensor& values) {
  const int64_t n_rows = s.offsets.size(0) - 1;
  const auto all = values.to(torch::kFloat64).contiguous();
  if (composed(all)) {
    return torch::zeros({n_rows}, all.options()).index_add_(0, row_of_entry(s), all);
  }
  const auto out = torch::zeros({n_rows}, torch::kFloat64);
  const int64_t* offsets = s.offsets.const_data_ptr<int64_t>();
  const double* from = all.const_data_ptr<double>();
  double* to = out.mutable_data_ptr<double>();
  for (int64_t j = 0; j < n_rows; ++j) {
    for (int64_t e = offsets[j]; e < offsets[j + 1]; ++e) to[j] += from[e];
  }
  return out;
}

torch::Tensor gram_of(const torch::Tensor& p) {
  const auto wide = p.detach().to(torch::kFloat64);
  return wide.t().mm(wide);
}

/// P^T x_j. [n_rows, d]
torch::Tensor projected(const FactoredRows& rows, const torch::Tensor& gram) {
  auto out = rows.q.to(torch::kFloat64).mm(gram).to(rows.q.scalar_type());
  if (rows.s.defined()) add_gathered(rows.s, rows.p, out);
  return out.mul_(rows.inverse.unsqueeze(1));
}

FactoredRows scaled_rows(const torch::Tensor& p, const torch::Tensor& q, const SparseRows& s,
                         const torch::Tensor& gram) {
  const auto wide = q.detach().to(torch::kFloat64);
  auto squares = (wide.mm(gram) * wide).sum(1);
  if (s.defined()) {
    const auto values = s.values.to(torch::kFloat64);
    squares += entry_sums(s, values * (2 * entry_products(p, q, s).to(torch::kFloat64) + values));
  }
  const auto norm = squares.clamp_min(0).sqrt();
  return {p, q, s, norm.reciprocal().masked_fill(norm < kShortest, 0).to(p.scalar_type())};
}

/// X W from projection = P^T W.
torch::Tensor product_of(const FactoredRows& rows, const torch::Tensor& projection,
                         const torch::Tensor& w) {
  auto out = rows.q.mm(projection);
  if (rows.s.defined()) add_gathered(rows.s, w, out);
  return out.mul_(rows.inverse.unsqueeze(1));
}

class FactoredProduct : public torch::autograd::Function<FactoredProduct> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& p_in,
                               const torch::Tensor& q_in, const torch::Tensor& w_in,
                               const SparseRows& masked) {
    const auto p = p_in.contiguous(), q = q_in.contiguous(), w = w_in.contiguous();
    const auto gram = gram_of(p);
    const SparseRows s = masked.defined() ? masking(p, q, masked) : SparseRows{};
    const FactoredRows rows = scaled_rows(p, q, s, gram);
    const auto projection = p.t().mm(w);  // [d, h]
    const auto product = product_of(rows, projection, w);
    context->save_for_backward(
        {p, q, w, gram, s.offsets, s.columns, s.values, rows.inverse, product, projection});
    return product;
  }

  // With g = W delta (never formed), kappa = x . g: dy = (g - kappa x) / n, 0 at masked places;
  // dq = P^T dy, dP = sum of dy q^T.
  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &p = saved[0], &w = saved[2], &gram = saved[3], &product = saved[8];
    const auto& projection = saved[9];
    FactoredRows rows{p, saved[1], {saved[4], saved[5], saved[6]}, saved[7]};
    const auto& q = rows.q;
    const auto delta = upstream[0].contiguous();
    const auto inverse = rows.inverse.unsqueeze(1);
    const auto kappa = (product * delta).sum(1, true);
    auto dq = delta.mm(projection.t());
    dq.sub_(kappa * projected(rows, gram)).mul_(inverse);
    const auto shares = kappa * inverse.square();  // kappa / n^2
    auto dp = w.mm((delta * inverse).t().mm(q));
    dp.addmm_(p, q.t().mm(q * shares), 1, -1);
    if (rows.s.defined()) {
      const auto at = row_of_entry(rows.s);
      const auto t = entry_products(w, delta * inverse, rows.s);
      // -s_i kappa / n^2 q of x, and -t q of the places that are held at 0.
      SparseRows lost = rows.s;
      lost.values = -(rows.s.values * shares.squeeze(1).index_select(0, at) + t);
      add_scattered(lost, q, dp);
      lost.values = -t;
      add_gathered(lost, p, dq);
    }
    return {dp, dq, torch::Tensor(), torch::Tensor()};
  }
};

}  // namespace

FactoredRows factored_rows(const torch::Tensor& p, const torch::Tensor& q, const SparseRows& s) {
  TORCH_CHECK(p.dim() == 2 && q.dim() == 2 && p.size(1) == q.size(1),
              "factored rows want P [n, d] and q [n_rows, d], got ", p.sizes(), " ", q.sizes());
  const torch::NoGradGuard no_grad;
  const auto p_rows = p.detach().contiguous();
  return scaled_rows(p_rows, q.detach().contiguous(), s, gram_of(p_rows));
}

torch::Tensor dense_rows(const FactoredRows& rows) {
  auto y = rows.q.mm(rows.p.t());
  if (rows.s.defined()) {
    y.index_put_({row_of_entry(rows.s), columns_of(rows.s)}, rows.s.values, true);
  }
  return y.mul_(rows.inverse.unsqueeze(1));
}

torch::Tensor rows_product(const std::vector<FactoredRows>& lists, const torch::Tensor& w_in) {
  const torch::NoGradGuard no_grad;
  const auto w = w_in.contiguous();
  std::vector<torch::Tensor> tables, products;
  for (const auto& rows : lists) tables.push_back(rows.p);
  const auto projections = torch::cat(tables, 1).t().mm(w);
  int64_t at = 0;
  for (const auto& rows : lists) {
    const int64_t d = rows.p.size(1);
    products.push_back(product_of(rows, projections.narrow(0, at, d), w));
    at += d;
  }
  return torch::cat(products);
}

void add_rows_transposed(const std::vector<FactoredRows>& lists, const torch::Tensor& delta,
                         torch::Tensor& out) {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> tables, coefficients;
  int64_t at = 0;
  for (const auto& rows : lists) {
    const int64_t n_rows = rows.q.size(0);
    const auto scaled = delta.narrow(0, at, n_rows) * rows.inverse.unsqueeze(1);
    tables.push_back(rows.p);
    coefficients.push_back(rows.q.t().mm(scaled));
    if (rows.s.defined()) add_scattered(rows.s, scaled, out);
    at += n_rows;
  }
  out.addmm_(torch::cat(tables, 1), torch::cat(coefficients));
}

torch::Tensor factored_product(const torch::Tensor& p, const torch::Tensor& q,
                               const SparseRows& masked, const torch::Tensor& w) {
  if (composed(p)) return factored_product_composed(p, q, masked, w.detach());
  return FactoredProduct::apply(p, q, w.detach(), masked);
}

torch::Tensor factored_product_composed(const torch::Tensor& p, const torch::Tensor& q,
                                        const SparseRows& masked, const torch::Tensor& w) {
  auto y = q.mm(p.t());
  if (masked.defined()) {
    y = y.index_put({row_of_entry(masked), columns_of(masked)}, torch::zeros({}, y.options()));
  }
  const auto squares = y.square().sum(1, true);
  const auto shortest = squares < kShortest * kShortest;
  return (y * squares.masked_fill(shortest, 1).rsqrt().masked_fill(shortest, 0)).mm(w);
}

torch::Tensor entry_products(const torch::Tensor& p_in, const torch::Tensor& q_in,
                             const SparseRows& places) {
  const torch::NoGradGuard no_grad;
  if (composed(p_in)) return entry_products_composed(p_in, q_in, places);
  const auto p = p_in.contiguous(), q = q_in.contiguous();
  const int64_t n_rows = places.offsets.size(0) - 1, d = p.size(1);
  const auto out = torch::empty({places.columns.size(0)}, p.options());
  by_type(p, [&](auto type) {
    using T = decltype(type);
    const int64_t* offsets = places.offsets.const_data_ptr<int64_t>();
    const int32_t* columns = places.columns.const_data_ptr<int32_t>();
    const T* ps = p.const_data_ptr<T>();
    const T* qs = q.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    parallel_for(0, n_rows, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        for (int64_t e = offsets[j]; e < offsets[j + 1]; ++e) {
          to[e] = kernels::dot(ps + columns[e] * d, qs + j * d, d);
        }
      }
    });
  });
  return out;
}

torch::Tensor entry_products_composed(const torch::Tensor& p, const torch::Tensor& q,
                                      const SparseRows& places) {
  return (p.index_select(0, columns_of(places)) * q.index_select(0, row_of_entry(places))).sum(1);
}

torch::Tensor entry_softmax_composed(const SparseRows& rows, double tau) {
  const auto all = rows.values.to(torch::kFloat64) / tau;
  const auto row = row_of_entry(rows);
  const auto none = torch::zeros({rows.offsets.size(0) - 1}, all.options());
  const auto largest = none.scatter_reduce(0, row, all, "amax", /*include_self=*/false);
  const auto e = (all - largest.index_select(0, row)).exp();
  const auto sums = none.index_add(0, row, e);
  return (e / sums.index_select(0, row)).to(rows.values.scalar_type());
}

torch::Tensor entry_softmax(const SparseRows& rows, double tau) {
  if (composed(rows.values)) return entry_softmax_composed(rows, tau);
  const auto all = rows.values.to(torch::kFloat64).contiguous();
  auto out = torch::empty_like(all);
  const int64_t* offsets = rows.offsets.const_data_ptr<int64_t>();
  const double* from = all.const_data_ptr<double>();
  double* to = out.mutable_data_ptr<double>();
  for (int64_t j = 0; j + 1 < rows.offsets.size(0); ++j) {
    const int64_t begin = offsets[j], end = offsets[j + 1];
    if (begin == end) continue;
    const double largest = *std::max_element(from + begin, from + end);
    double sum = 0;
    for (int64_t e = begin; e < end; ++e) sum += to[e] = std::exp((from[e] - largest) / tau);
    for (int64_t e = begin; e < end; ++e) to[e] /= sum;
  }
  return out.to(rows.values.scalar_type());
}

SparseRows masking(const torch::Tensor& p, const torch::Tensor& q, const SparseRows& places) {
  return {places.offsets, places.columns, entry_products(p, q, places).neg_()};
}

torch::Tensor observed_rows(const torch::Tensor& a, const torch::Tensor& g,
                            const torch::Tensor& scores, double tau, bool noise_only) {
  const auto logits = noise_only ? a + g * (1e-5 / tau) : (a + g * 1e-5) / tau;
  const auto soft = torch::softmax(logits, 1).to(scores.scalar_type());
  return unit_rows(soft + 100 * unit_rows(scores.masked_fill(a > 0, 0)));
}

}  // namespace tessera
