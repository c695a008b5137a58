#include "tessera/ops/parts.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "tessera/ops/block_product.h"
#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/part_kernels.h"

namespace tessera {
namespace {

using kernels::dot;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;
using torch::autograd::variable_list;
using Contrast = OrderOptions::Contrast;

constexpr double kNorm = 1e-12;
constexpr double kDeviation = 1e-6;
constexpr int64_t kGrain = 32;  // rows a thread takes at least

double log_sum_exp(double a, double b) {
  const double top = std::max(a, b);
  return top + std::log(std::exp(a - top) + std::exp(b - top));
}

/// Value and slopes of the loss in the three rows of cosines (float64 [3, B]; slopes alike).
double slopes_of_cosines(const double* p, int64_t n, const OrderOptions& options, double* slope) {
  const auto mean = 1.0 / static_cast<double>(n);
  double total = 0;
  std::fill(slope, slope + 3 * n, 0.0);
  if (options.contrast == Contrast::none) {
    for (int64_t i = 0; i < n; ++i) {
      total += 1 - p[i];
      slope[i] = -mean;
    }
    return total * mean;
  }
  const auto specific = [&](int64_t i) {
    return options.absolute ? std::abs(p[2 * n + i]) : p[2 * n + i];
  };
  double sum = 0;
  if (options.batch_sum) {
    for (int64_t i = 0; i < n; ++i) sum += specific(i);
  }
  double summed_slope = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double c = p[i] / options.tau, e = p[n + i] / options.tau;
    const double s = (options.batch_sum ? sum : specific(i)) / options.tau;
    const double two = log_sum_exp(e, s), three = log_sum_exp(c, two);
    total += (three - c) + (two - e);
    const double pc = std::exp(c - three), pe = std::exp(e - three), ps = std::exp(s - three);
    const double qe = std::exp(e - two), qs = std::exp(s - two);
    slope[i] = mean * (pc - 1) / options.tau;
    slope[n + i] = mean * (pe + qe - 1) / options.tau;
    slope[2 * n + i] = mean * (ps + qs) / options.tau;
    summed_slope += slope[2 * n + i];
  }
  for (int64_t i = 0; i < n; ++i) {
    double& each = slope[2 * n + i];
    if (options.batch_sum) each = summed_slope;
    if (options.absolute) each *= p[2 * n + i] > 0 ? 1.0 : p[2 * n + i] < 0 ? -1.0 : 0.0;
  }
  return total * mean;
}

/// Cosines p [3, n] and lengths [4, n] (of x and the three decodes) of item i.
template <typename T>
void measure(const T* x, const std::array<const T*, 3>& decodes, int64_t width, int64_t i,
             int64_t n, double* p, double* length) {
  length[i] = std::sqrt(static_cast<double>(dot(x, x, width)));
  for (int64_t k = 0; k < 3; ++k) {
    const T* y = decodes[static_cast<size_t>(k)];
    const double norm = std::sqrt(static_cast<double>(dot(y, y, width)));
    length[(k + 1) * n + i] = norm;
    p[k * n + i] = static_cast<double>(dot(x, y, width)) /
                   (std::max(length[i], kNorm) * std::max(norm, kNorm));
  }
}

/// What the gradient of item i in its k-th decode y is made of: by_x x - by_y y.
template <typename T>
struct Pull {
  T by_x = 0, by_y = 0;
};
template <typename T>
Pull<T> pull(const double* p, const double* length, const double* slope, int64_t i, int64_t k,
             int64_t n) {
  const double norm = length[(k + 1) * n + i], g = slope[k * n + i];
  return {static_cast<T>(g / (std::max(length[i], kNorm) * std::max(norm, kNorm))),
          static_cast<T>(norm > kNorm ? g * p[k * n + i] / (norm * norm) : 0.0)};
}

/// Cosines, their slopes and the gradient in one go; backward scales it.
class Order : public torch::autograd::Function<Order> {
 public:
  static variable_list forward(AutogradContext* context, const torch::Tensor& x_in,
                               const torch::Tensor& decoded_in, const OrderOptions& options) {
    const auto x = x_in.contiguous(), y = decoded_in.contiguous();
    const int64_t n = x.size(0), width = x.size(1);
    const auto cosines = torch::zeros({3, n}, torch::kFloat64);
    const auto lengths = torch::zeros({4, n}, torch::kFloat64);  // of x and the three decodes
    auto* p = cosines.mutable_data_ptr<double>();
    auto* length = lengths.mutable_data_ptr<double>();
    by_type(x, [&](auto type) {
      using T = decltype(type);
      const T* xs = x.const_data_ptr<T>();
      const T* ys = y.const_data_ptr<T>();
      parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T* yr = ys + i * width;
          measure<T>(xs + i * width, {yr, yr + n * width, yr + 2 * n * width}, width, i, n, p,
                     length);
        }
      });
    });
    std::vector<double> slope(static_cast<size_t>(3 * n));
    const double value = n > 0 ? slopes_of_cosines(p, n, options, slope.data()) : 0;
    if (decoded_in.requires_grad()) {
      const auto gradient = torch::empty_like(y);
      by_type(x, [&](auto type) {
        using T = decltype(type);
        const T* xs = x.const_data_ptr<T>();
        const T* ys = y.const_data_ptr<T>();
        T* to = gradient.mutable_data_ptr<T>();
        parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const T* xr = xs + i * width;
            for (int64_t k = 0; k < 3; ++k) {
              const int64_t at = k * n + i;
              const T* yr = ys + at * width;
              T* tr = to + at * width;
              const auto by = pull<T>(p, length, slope.data(), i, k, n);
              for (int64_t j = 0; j < width; ++j) tr[j] = by.by_x * xr[j] - by.by_y * yr[j];
            }
          }
        });
      });
      context->save_for_backward({gradient});
    }
    context->mark_non_differentiable({cosines});
    return {torch::full({}, value, x.options()), cosines};
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    return {torch::Tensor(), saved[0] * upstream[0], torch::Tensor()};
  }
};

/// Order with the decoder inside. The decodes are overwritten by what the gradients of c and s
/// share with the decoder's: rows i of the slopes in the decodes of c and of c + s, rows B + i of
/// those of s and of c + s.
class AffineOrder : public torch::autograd::Function<AffineOrder> {
 public:
  static variable_list forward(AutogradContext* context, const torch::Tensor& x_in,
                               const torch::Tensor& c, const torch::Tensor& s,
                               const torch::Tensor& weight, const torch::Tensor& bias_in,
                               const OrderOptions& options) {
    const auto x = x_in.contiguous(), bias = bias_in.contiguous();
    const int64_t n = x.size(0), width = x.size(1), n_blocks = (n + kGrain - 1) / kGrain;
    const auto both = torch::cat({c, s});
    const auto y = both.matmul(weight).contiguous();
    const auto cosines = torch::zeros({3, n}, torch::kFloat64);
    const auto lengths = torch::zeros({4, n}, torch::kFloat64);
    auto* p = cosines.mutable_data_ptr<double>();
    auto* length = lengths.mutable_data_ptr<double>();
    const auto by_blocks = [&](const auto& each_row) {
      parallel_for(0, n_blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
          for (int64_t i = block * kGrain; i < std::min(n, (block + 1) * kGrain); ++i) {
            each_row(block, i);
          }
        }
      });
    };
    by_type(x, [&](auto type) {
      using T = decltype(type);
      const T *xs = x.const_data_ptr<T>(), *b = bias.const_data_ptr<T>();
      T* ys = y.mutable_data_ptr<T>();
      by_blocks([&](int64_t, int64_t i) {
        std::vector<T> whole(static_cast<size_t>(width));
        T *yc = ys + i * width, *ysp = ys + (n + i) * width;
        for (int64_t j = 0; j < width; ++j) {
          whole[static_cast<size_t>(j)] = yc[j] + ysp[j] + b[j];
          yc[j] += b[j];
          ysp[j] += b[j];
        }
        measure<T>(xs + i * width, {yc, whole.data(), ysp}, width, i, n, p, length);
      });
    });
    std::vector<double> slope(static_cast<size_t>(3 * n));
    const double value = n > 0 ? slopes_of_cosines(p, n, options, slope.data()) : 0;
    const auto of_bias = torch::zeros({n_blocks, width}, x.options());
    by_type(x, [&](auto type) {
      using T = decltype(type);
      const T *xs = x.const_data_ptr<T>(), *b = bias.const_data_ptr<T>();
      T *ys = y.mutable_data_ptr<T>(), *sums = of_bias.mutable_data_ptr<T>();
      by_blocks([&](int64_t block, int64_t i) {
        const T* xr = xs + i * width;
        T *yc = ys + i * width, *ysp = ys + (n + i) * width, *sum = sums + block * width;
        std::array<Pull<T>, 3> by;
        for (int64_t k = 0; k < 3; ++k) {
          by[static_cast<size_t>(k)] = pull<T>(p, length, slope.data(), i, k, n);
        }
        for (int64_t j = 0; j < width; ++j) {
          const T common = by[0].by_x * xr[j] - by[0].by_y * yc[j];
          const T whole = by[1].by_x * xr[j] - by[1].by_y * (yc[j] + ysp[j] - b[j]);
          const T specific = by[2].by_x * xr[j] - by[2].by_y * ysp[j];
          yc[j] = common + whole;
          ysp[j] = specific + whole;
          sum[j] += common + whole + specific;
        }
      });
    });
    context->save_for_backward({both, weight, y, of_bias});
    context->mark_non_differentiable({cosines});
    return {torch::full({}, value, x.options()), cosines};
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &both = saved[0], &weight = saved[1], &slopes = saved[2];
    const auto by = upstream[0];
    const auto d_both = slopes.matmul(weight.t()).mul_(by);
    const int64_t n = both.size(0) / 2;
    return {torch::Tensor(),          d_both.narrow(0, 0, n),
            d_both.narrow(0, n, n),   both.t().matmul(slopes).mul_(by),
            saved[3].sum(0).mul_(by), torch::Tensor()};
  }
};

torch::Tensor cosines_composed(const torch::Tensor& x, const torch::Tensor& decoded) {
  const auto norm = [](const torch::Tensor& v) {
    return torch::linalg_vector_norm(v, 2, {-1}).clamp_min(kNorm);
  };
  return (decoded * x).sum(-1) / (norm(x) * norm(decoded));
}

torch::Tensor mse_rank(const torch::Tensor& x, const torch::Tensor& decoded) {
  const auto m = (decoded - x).square().mean({1, 2});
  return torch::softplus(m[0] - m[1]) + torch::softplus(m[1] - m[2]);
}

void check_attention(const torch::Tensor& users, const torch::Tensor& ids,
                     const torch::Tensor& parts, const torch::Tensor& open) {
  TORCH_CHECK(users.dim() == 2 && ids.dim() == 2 && parts.dim() == 3 &&
                  ids.size(1) == users.size(1) && parts.size(2) == users.size(1) &&
                  parts.size(0) == ids.size(0),
              "part attention wants users [U, d], ids [I, d] and parts [I, K, d], got ",
              users.sizes(), " ", ids.sizes(), " ", parts.sizes());
  TORCH_CHECK(!open.defined() || (open.scalar_type() == torch::kBool && open.dim() == 2 &&
                                  open.size(0) == parts.size(0) && open.size(1) == parts.size(1)),
              "part attention wants open as bool [I, K]");
}

/// w and abar of one pair from its a; returns abar.
template <typename T>
T softmax_of(const T* a, const bool* open, int64_t n_parts, T* w) {
  T top = -std::numeric_limits<T>::infinity();
  for (int64_t k = 0; k < n_parts; ++k) {
    if (!open || open[k]) top = std::max(top, a[k]);
  }
  T sum = 0, mean = 0;
  for (int64_t k = 0; k < n_parts; ++k) {
    w[k] = !open || open[k] ? std::exp(a[k] - top) : T{0};
    sum += w[k];
  }
  for (int64_t k = 0; k < n_parts; ++k) {
    if (sum > 0) w[k] /= sum;
    mean += w[k] * a[k];
  }
  return mean;
}

/// The pairs of each row, in order: pairs[starts[r]] .. of a row r.
struct PairsOfRows {
  std::vector<int64_t> starts, pairs;
  PairsOfRows(const int64_t* row_of, int64_t n_pairs, int64_t n_rows)
      : starts(static_cast<size_t>(n_rows) + 1), pairs(static_cast<size_t>(n_pairs)) {
    for (int64_t p = 0; p < n_pairs; ++p) ++starts[static_cast<size_t>(row_of[p]) + 1];
    for (size_t r = 1; r < starts.size(); ++r) starts[r] += starts[r - 1];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t p = 0; p < n_pairs; ++p) {
      pairs[static_cast<size_t>(next[static_cast<size_t>(row_of[p])]++)] = p;
    }
  }
};

/// Forward keeps the slope of y in each p.r_k, [P, K]; backward gathers the pairs of each row.
class Attention : public torch::autograd::Function<Attention> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& users_in,
                               const torch::Tensor& ids_in, const torch::Tensor& parts_in,
                               const torch::Tensor& open_in, const torch::Tensor& user_of_in,
                               const torch::Tensor& item_of_in) {
    const auto users = users_in.contiguous(), ids = ids_in.contiguous();
    const auto parts = parts_in.contiguous();
    const auto open = open_in.dim() == 2 ? open_in.contiguous() : torch::Tensor();
    const auto user_of = user_of_in.contiguous(), item_of = item_of_in.contiguous();
    const int64_t n = user_of.numel(), n_parts = parts.size(1), d = parts.size(2);
    const auto y = torch::empty({n}, users.options());
    const auto slopes = torch::empty({n, n_parts}, users.options());
    by_type(users, [&](auto type) {
      using T = decltype(type);
      const T* ps = users.const_data_ptr<T>();
      const T* es = ids.const_data_ptr<T>();
      const T* rs = parts.const_data_ptr<T>();
      const bool* gates = open.defined() ? open.const_data_ptr<bool>() : nullptr;
      const int64_t* user = user_of.const_data_ptr<int64_t>();
      const int64_t* item = item_of.const_data_ptr<int64_t>();
      T* to = y.mutable_data_ptr<T>();
      T* slope = slopes.mutable_data_ptr<T>();
      parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
        std::vector<T> a(static_cast<size_t>(n_parts));
        for (int64_t pair = begin; pair < end; ++pair) {
          const T* p = ps + user[pair] * d;
          const T* r = rs + item[pair] * n_parts * d;
          T* w = slope + pair * n_parts;
          for (int64_t k = 0; k < n_parts; ++k) a[static_cast<size_t>(k)] = dot(p, r + k * d, d);
          const T mean =
              softmax_of(a.data(), gates ? gates + item[pair] * n_parts : nullptr, n_parts, w);
          to[pair] = dot(p, es + item[pair] * d, d) + mean;
          for (int64_t k = 0; k < n_parts; ++k) w[k] *= 1 + a[static_cast<size_t>(k)] - mean;
        }
      });
    });
    context->save_for_backward({users, ids, parts, user_of, item_of, slopes});
    return y;
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &users = saved[0], &ids = saved[1], &parts = saved[2];
    const int64_t n = saved[3].numel(), n_parts = parts.size(1), d = parts.size(2);
    const auto delta = upstream[0].contiguous();
    const auto d_users = torch::zeros_like(users), d_ids = torch::zeros_like(ids);
    const auto d_parts = torch::zeros_like(parts);
    by_type(users, [&](auto type) {
      using T = decltype(type);
      const T* ps = users.const_data_ptr<T>();
      const T* es = ids.const_data_ptr<T>();
      const T* rs = parts.const_data_ptr<T>();
      const T* slope = saved[5].const_data_ptr<T>();
      const T* dy = delta.const_data_ptr<T>();
      const int64_t* user = saved[3].const_data_ptr<int64_t>();
      const int64_t* item = saved[4].const_data_ptr<int64_t>();
      T* dp = d_users.mutable_data_ptr<T>();
      T* de = d_ids.mutable_data_ptr<T>();
      T* dr = d_parts.mutable_data_ptr<T>();
      const PairsOfRows of_user(user, n, users.size(0)), of_item(item, n, ids.size(0));
      const auto rows = [&](const PairsOfRows& of, int64_t n_rows, const auto& each) {
        parallel_for(0, n_rows, kGrain, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            for (int64_t at = of.starts[static_cast<size_t>(row)];
                 at < of.starts[static_cast<size_t>(row) + 1]; ++at) {
              each(row, of.pairs[static_cast<size_t>(at)]);
            }
          }
        });
      };
      rows(of_user, users.size(0), [&](int64_t row, int64_t pair) {
        T* to = dp + row * d;
        const T* e = es + item[pair] * d;
        for (int64_t i = 0; i < d; ++i) to[i] += dy[pair] * e[i];
        for (int64_t k = 0; k < n_parts; ++k) {
          const T by = dy[pair] * slope[pair * n_parts + k];
          const T* r = rs + (item[pair] * n_parts + k) * d;
          for (int64_t i = 0; i < d; ++i) to[i] += by * r[i];
        }
      });
      rows(of_item, ids.size(0), [&](int64_t row, int64_t pair) {
        const T* p = ps + user[pair] * d;
        T* to = de + row * d;
        for (int64_t i = 0; i < d; ++i) to[i] += dy[pair] * p[i];
        for (int64_t k = 0; k < n_parts; ++k) {
          const T by = dy[pair] * slope[pair * n_parts + k];
          T* part = dr + (row * n_parts + k) * d;
          for (int64_t i = 0; i < d; ++i) part[i] += by * p[i];
        }
      });
    });
    return {d_users, d_ids, d_parts, torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }
};

/// a [P, K] of the pairs.
torch::Tensor products(const torch::Tensor& users, const torch::Tensor& parts,
                       const torch::Tensor& user_of, const torch::Tensor& item_of) {
  return (parts.index_select(0, item_of) * users.index_select(0, user_of).unsqueeze(1)).sum(2);
}

torch::Tensor softmax_composed(const torch::Tensor& a, const torch::Tensor& open,
                               const torch::Tensor& item_of) {
  if (!open.defined()) return torch::softmax(a, 1);
  const auto gate = open.index_select(0, item_of);
  const auto w = torch::softmax(a.masked_fill(gate.logical_not(), -1e30), 1);
  return w.masked_fill(gate.logical_not(), 0);
}

}  // namespace

OrderLoss order_loss(const torch::Tensor& x, const torch::Tensor& decoded,
                     const OrderOptions& options) {
  TORCH_CHECK(x.dim() == 2 && decoded.dim() == 3 && decoded.size(0) == 3 &&
                  decoded.size(1) == x.size(0) && decoded.size(2) == x.size(1),
              "order_loss wants x [B, D] and decoded [3, B, D], got ", x.sizes(), " ",
              decoded.sizes());
  if (composed(x)) {
    return {order_loss_composed(x, decoded, options),
            cosines_composed(x, decoded).detach().to(torch::kFloat64)};
  }
  const auto out = Order::apply(x, decoded, options);
  if (options.contrast == Contrast::mse_rank && x.size(0) > 0) {
    return {mse_rank(x, decoded), out[1]};
  }
  return {out[0], out[1]};
}

OrderLoss order_loss_affine(const torch::Tensor& x, const torch::Tensor& c, const torch::Tensor& s,
                            const torch::Tensor& weight, const torch::Tensor& bias,
                            const OrderOptions& options) {
  TORCH_CHECK(c.sizes() == s.sizes() && c.dim() == 2 && c.size(0) == x.size(0) &&
                  weight.size(0) == c.size(1) && weight.size(1) == x.size(1) &&
                  bias.numel() == x.size(1) && options.contrast != Contrast::mse_rank,
              "order_loss_affine wants x [B, D], c and s [B, d], weight [d, D] and bias [D], got ",
              x.sizes(), " ", c.sizes(), " ", s.sizes(), " ", weight.sizes());
  if (composed(x)) {
    return order_loss(x, torch::stack({c, c + s, s}).matmul(weight) + bias, options);
  }
  const auto out = AffineOrder::apply(x, c, s, weight, bias, options);
  return {out[0], out[1]};
}

OrderTerms order_terms_composed(const torch::Tensor& p, const OrderOptions& options) {
  auto specific = options.absolute ? p[2].abs() : p[2];
  if (options.batch_sum) specific = specific.sum().expand_as(p[0]);
  const auto all = torch::stack({p[0], p[1], specific}) / options.tau;
  return {torch::logsumexp(all, 0) - all[0], torch::logsumexp(all.slice(0, 1), 0) - all[1]};
}

torch::Tensor order_loss_composed(const torch::Tensor& x_in, const torch::Tensor& decoded,
                                  const OrderOptions& options) {
  const auto x = x_in.detach();
  if (x.size(0) == 0) return decoded.sum();
  if (options.contrast == Contrast::mse_rank) return mse_rank(x, decoded);
  const auto p = cosines_composed(x, decoded);
  if (options.contrast == Contrast::none) return (1 - p[0]).mean();
  const auto [l1, l2] = order_terms_composed(p, options);
  return (l1 + l2).mean();
}

torch::Tensor overlap(const torch::Tensor& c, const torch::Tensor& s) {
  TORCH_CHECK(c.dim() == 2 && c.sizes() == s.sizes(), "overlap wants two [n, d], got ", c.sizes(),
              " ", s.sizes());
  const auto n = static_cast<double>(std::max<int64_t>(1, c.size(0)));
  const auto standard = [n](const torch::Tensor& x) {
    const auto centred = x - x.mean(0, true);
    const auto variance = centred.square().sum(0, true) / n;
    const auto open = variance >= kDeviation * kDeviation;
    // A column below the limit is 0 and gets no gradient through its deviation.
    const auto deviation = torch::where(open, variance, torch::ones_like(variance)).sqrt();
    return torch::where(open, centred / deviation, torch::zeros_like(centred));
  };
  const auto r = standard(c).t().matmul(standard(s)) / n;
  return r.square().sum() / static_cast<double>(c.size(1));
}

torch::Tensor part_attention(const torch::Tensor& users, const torch::Tensor& ids,
                             const torch::Tensor& parts, const torch::Tensor& open,
                             const torch::Tensor& user_of, const torch::Tensor& item_of) {
  check_attention(users, ids, parts, open);
  if (composed(users)) {
    return part_attention_composed(users, ids, parts, open, user_of, item_of);
  }
  // An undefined tensor cannot be an argument there: no dimension stands for "all open".
  return Attention::apply(
      users, ids, parts, open.defined() ? open : torch::empty({0}, torch::kBool), user_of, item_of);
}

torch::Tensor part_attention_composed(const torch::Tensor& users, const torch::Tensor& ids,
                                      const torch::Tensor& parts, const torch::Tensor& open,
                                      const torch::Tensor& user_of, const torch::Tensor& item_of) {
  check_attention(users, ids, parts, open);
  const auto a = products(users, parts, user_of, item_of);
  const auto w = softmax_composed(a, open, item_of);
  const auto base = (users.index_select(0, user_of) * ids.index_select(0, item_of)).sum(1);
  return base + (w * a).sum(1);
}

torch::Tensor part_weights(const torch::Tensor& users, const torch::Tensor& parts,
                           const torch::Tensor& open) {
  const auto a = users.matmul(parts.permute({1, 2, 0}));
  if (!open.defined()) return torch::softmax(a, 0);
  const auto closed = open.logical_not().t().unsqueeze(1);
  return torch::softmax(a.masked_fill(closed, -1e30), 0).masked_fill(closed, 0);
}

torch::Tensor part_scores_composed(const torch::Tensor& users_in, const torch::Tensor& ids_in,
                                   const torch::Tensor& parts_in, const torch::Tensor& open) {
  const auto users = users_in.to(torch::kFloat), ids = ids_in.to(torch::kFloat);
  const auto parts = parts_in.to(torch::kFloat);
  const auto a = users.matmul(parts.permute({1, 2, 0}));
  return users.mm(ids.t()) + (part_weights(users, parts, open) * a).sum(0);
}

torch::Tensor part_scores(const torch::Tensor& users_in, const torch::Tensor& ids_in,
                          const torch::Tensor& parts_in, const torch::Tensor& open_in) {
  check_attention(users_in, ids_in, parts_in, open_in);
  const torch::NoGradGuard no_grad;
  if (composed(users_in)) return part_scores_composed(users_in, ids_in, parts_in, open_in);
  constexpr int64_t kRows = kernels::kBlockRows, kLanes = kernels::kPartLanes;
  static_assert(kLanes == kernels::kBlockColumns<float>);
  const auto users = users_in.to(torch::kFloat).contiguous();
  const auto ids = ids_in.to(torch::kFloat).contiguous();
  const auto parts = parts_in.to(torch::kFloat).contiguous();
  const auto open = open_in.defined() ? open_in.contiguous() : open_in;
  const int64_t n_users = users.size(0), n_items = ids.size(0);
  const int64_t n_parts = parts.size(1), d = users.size(1);
  const auto out = torch::empty({n_users, n_items}, torch::kFloat);
  const float* ps = users.const_data_ptr<float>();
  const float* es = ids.const_data_ptr<float>();
  const float* rs = parts.const_data_ptr<float>();
  const bool* gates = open.defined() ? open.const_data_ptr<bool>() : nullptr;
  float* to = out.mutable_data_ptr<float>();
  const int64_t n_tiles = (n_items + kLanes - 1) / kLanes;
  parallel_for(0, n_tiles, 1, [&](int64_t begin, int64_t end) {
    const auto size = [](int64_t n) { return static_cast<size_t>(n); };
    std::vector<float> packed(size((n_parts + 1) * d * kLanes));
    std::vector<float> tile(size((n_parts + 1) * kRows * kLanes)), open_lanes;
    if (gates) open_lanes.resize(size(n_parts * kLanes));
    std::array<float, kLanes> y{};
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kLanes, n = std::min(kLanes, n_items - first);
      kernels::pack_part_tile(es, rs, gates, n_items, n_parts, d, first, packed.data(),
                              gates ? open_lanes.data() : nullptr);
      for (int64_t u = 0; u < n_users; u += kRows) {
        const int64_t rows = std::min(kRows, n_users - u);
        for (int64_t k = 0; k <= n_parts; ++k) {
          kernels::block_product(kernels::BlockProduct<float>{
              ps + u * d, d, 1, packed.data() + k * d * kLanes, kLanes, d,
              tile.data() + k * kRows * kLanes, kLanes, rows, kLanes, false});
        }
        for (int64_t row = 0; row < rows; ++row) {
          kernels::part_softmax(tile.data() + row * kLanes, kRows * kLanes,
                                gates ? open_lanes.data() : nullptr, n_parts, y.data());
          std::copy(y.begin(), y.begin() + n, to + (u + row) * n_items + first);
        }
      }
    }
  });
  return out;
}

}  // namespace tessera
