#include "tessera/ops/sequence_losses.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tessera/ops/by_type.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/sequence_kernels.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

/// Entries of [rows, width] that a thread takes at least.
int64_t grain_of(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
}

/// to[at[k]] += factor * from[k]; each row of `to` by one thread, in the order of k.
template <typename T>
void scatter_add(const T* from, const int64_t* at, int64_t n, T factor, T* to, int64_t n_rows,
                 int64_t d) {
  parallel_for(0, n_rows, grain_of(d), [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < n; ++k) {
      if (at[k] >= begin && at[k] < end) {
        kernels::add_scaled(factor, from + k * d, to + at[k] * d, d);
      }
    }
  });
}

torch::Tensor scores_of(const torch::Tensor& h, const torch::Tensor& items,
                        const torch::Tensor& bias) {
  return bias.defined() ? torch::addmm(bias, h, items.t()) : torch::mm(h, items.t());
}

/// The softmax loss; `blocks` decides between one pass and recomputing.
class Softmax : public torch::autograd::Function<Softmax> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& h_in,
                               const torch::Tensor& items_in, const torch::Tensor& targets_in,
                               const torch::Tensor& bias_in, SoftmaxBlocks blocks,
                               bool with_gradient) {
    const auto h = h_in.contiguous(), items = items_in.contiguous();
    const auto targets = targets_in.contiguous();
    // apply() takes no undefined tensor: an empty one stands for no bias.
    const auto bias = bias_in.numel() > 0 ? bias_in.contiguous() : torch::Tensor();
    const int64_t n_items = items.size(0);
    const bool one_pass =
        std::min(blocks.positions, h.size(0)) * n_items * h.element_size() <= blocks.bytes;
    torch::Tensor out;
    by_type(h, [&](auto type) {
      using T = decltype(type);
      if (one_pass) {
        out = with_gradient
                  ? formed_with_value<T>(context, h, items, targets, bias, blocks)
                  : value_only<T>(h, items, targets, bias, blocks.positions, n_items).first;
      } else {
        auto [value, lse] =
            value_only<T>(h, items, targets, bias, blocks.wide_positions, blocks.items);
        out = value;
        if (with_gradient) {
          context->save_for_backward({h, items, targets, lse, bias});
          context->saved_data["positions"] = blocks.wide_positions;
          context->saved_data["items"] = blocks.items;
        }
      }
    });
    context->saved_data["one_pass"] = one_pass;
    return out;
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    const torch::Tensor none;
    if (context->saved_data["one_pass"].toBool()) {
      const bool one = upstream[0].item<double>() == 1;
      const auto times = [&](const torch::Tensor& g) {
        return !g.defined() || one ? g : g * upstream[0];
      };
      return {times(saved[0]), times(saved[1]), none, times(saved[2]), none, none};
    }
    const auto &h = saved[0], &items = saved[1];
    tensor_list out = {torch::zeros_like(h), torch::zeros_like(items), none, none, none, none};
    if (saved[4].defined()) out[3] = torch::zeros_like(saved[4]);
    by_type(h, [&](auto type) {
      using T = decltype(type);
      recomputed<T>(saved, context->saved_data["positions"].toInt(),
                    context->saved_data["items"].toInt(), upstream[0].template item<T>(), out);
    });
    return out;
  }

 private:
  template <typename T>
  static torch::Tensor target_scores(const torch::Tensor& h, const torch::Tensor& items,
                                     const torch::Tensor& targets, const torch::Tensor& bias) {
    const int64_t n = h.size(0), d = h.size(1);
    const auto out = torch::empty({n}, h.options());
    const T* hs = h.const_data_ptr<T>();
    const T* es = items.const_data_ptr<T>();
    const T* bs = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
    const int64_t* ys = targets.const_data_ptr<int64_t>();
    T* to = out.mutable_data_ptr<T>();
    parallel_for(0, n, grain_of(d), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        to[p] = kernels::dot(hs + p * d, es + ys[p] * d, d) + (bs ? bs[ys[p]] : T(0));
      }
    });
    return out;
  }

  /// The gradient of a block's scores is (exp(Z - lse) - [j = y]) / P. The exponentials stay
  /// unnormalised: their factors go to the thin sides of the two products.
  template <typename T>
  static torch::Tensor formed_with_value(AutogradContext* context, const torch::Tensor& h,
                                         const torch::Tensor& items, const torch::Tensor& targets,
                                         const torch::Tensor& bias, const SoftmaxBlocks& blocks) {
    const int64_t n = h.size(0), d = h.size(1), n_items = items.size(0);
    auto to_h = torch::empty_like(h), to_items = torch::zeros_like(items);
    auto to_bias = bias.defined() ? torch::zeros_like(bias) : torch::Tensor();
    const auto own = target_scores<T>(h, items, targets, bias);
    const T* own_score = own.template const_data_ptr<T>();
    const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, n));
    double total = 0;
    const int64_t most = std::min(blocks.positions, n);
    auto z = torch::empty({most, n_items}, h.options());
    auto factors = torch::empty({most, 1}, h.options());
    std::vector<double> losses(static_cast<size_t>(most));
    for (int64_t begin = 0; begin < n; begin += blocks.positions) {
      const int64_t rows = std::min(blocks.positions, n - begin);
      auto zb = z.narrow(0, 0, rows);
      const auto hb = h.narrow(0, begin, rows);
      if (bias.defined()) {
        torch::addmm_out(zb, bias, hb, items.t());
      } else {
        torch::mm_out(zb, hb, items.t());
      }
      T* zs = zb.template mutable_data_ptr<T>();
      T* factor = factors.template mutable_data_ptr<T>();
      parallel_for(0, rows, grain_of(n_items), [&](int64_t from, int64_t to) {
        for (int64_t p = from; p < to; ++p) {
          const auto e = kernels::exp_row(zs + p * n_items, n_items);
          losses[static_cast<size_t>(p)] = static_cast<double>(e.max) +
                                           std::log(static_cast<double>(e.sum)) -
                                           static_cast<double>(own_score[begin + p]);
          factor[p] = static_cast<T>(share / static_cast<double>(e.sum));
        }
      });
      for (int64_t p = 0; p < rows; ++p) total += losses[static_cast<size_t>(p)];
      const auto fb = factors.narrow(0, 0, rows);
      auto to_hb = to_h.narrow(0, begin, rows);
      torch::mm_out(to_hb, zb, items);
      to_hb.mul_(fb);
      to_items.addmm_(zb.t(), hb * fb);
      if (bias.defined()) to_bias.addmv_(zb.t(), fb.squeeze(1));
    }
    const T* hs = h.const_data_ptr<T>();
    const T* es = items.const_data_ptr<T>();
    const int64_t* ys = targets.const_data_ptr<int64_t>();
    T* dh = to_h.template mutable_data_ptr<T>();
    const T minus = static_cast<T>(-share);
    parallel_for(0, n, grain_of(d), [&](int64_t from, int64_t to) {
      for (int64_t p = from; p < to; ++p) {
        kernels::add_scaled(minus, es + ys[p] * d, dh + p * d, d);
      }
    });
    scatter_add(hs, ys, n, minus, to_items.template mutable_data_ptr<T>(), n_items, d);
    if (bias.defined()) {
      T* db = to_bias.template mutable_data_ptr<T>();
      for (int64_t p = 0; p < n; ++p) db[ys[p]] += minus;
    }
    context->save_for_backward({to_h, to_items, to_bias});
    return torch::full({}, total * share, h.options());
  }

  /// Value and log sum exp [P], over blocks of items: m and s move to the larger maximum.
  template <typename T>
  static std::pair<torch::Tensor, torch::Tensor> value_only(
      const torch::Tensor& h, const torch::Tensor& items, const torch::Tensor& targets,
      const torch::Tensor& bias, int64_t block_positions, int64_t block_items) {
    const int64_t n = h.size(0), n_items = items.size(0);
    const auto own = target_scores<T>(h, items, targets, bias);
    const auto lse = torch::empty({n}, h.options());
    const T* own_score = own.template const_data_ptr<T>();
    T* log_sum = lse.template mutable_data_ptr<T>();
    const int64_t most = std::min(block_positions, n), wide = std::min(block_items, n_items);
    auto z = torch::empty({most * wide}, h.options());
    std::vector<double> max(static_cast<size_t>(most)), sum(static_cast<size_t>(most));
    double total = 0;
    for (int64_t begin = 0; begin < n; begin += block_positions) {
      const int64_t rows = std::min(block_positions, n - begin);
      std::fill(max.begin(), max.end(), -std::numeric_limits<double>::infinity());
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t first = 0; first < n_items; first += wide) {
        const int64_t cols = std::min(wide, n_items - first);
        auto zb = z.narrow(0, 0, rows * cols).view({rows, cols});
        const auto part = items.narrow(0, first, cols);
        if (bias.defined()) {
          torch::addmm_out(zb, bias.narrow(0, first, cols), h.narrow(0, begin, rows), part.t());
        } else {
          torch::mm_out(zb, h.narrow(0, begin, rows), part.t());
        }
        T* zs = zb.template mutable_data_ptr<T>();
        parallel_for(0, rows, grain_of(cols), [&](int64_t from, int64_t to) {
          for (int64_t p = from; p < to; ++p) {
            const auto e = kernels::exp_row(zs + p * cols, cols);
            double &m = max[static_cast<size_t>(p)], &s = sum[static_cast<size_t>(p)];
            const double larger = std::max(m, static_cast<double>(e.max));
            s = s * std::exp(m - larger) + static_cast<double>(e.sum) * std::exp(e.max - larger);
            m = larger;
          }
        });
      }
      for (int64_t p = 0; p < rows; ++p) {
        const double value = max[static_cast<size_t>(p)] + std::log(sum[static_cast<size_t>(p)]);
        log_sum[begin + p] = static_cast<T>(value);
        total += value - static_cast<double>(own_score[begin + p]);
      }
    }
    return {torch::full({}, total / static_cast<double>(std::max<int64_t>(1, n)), h.options()),
            lse};
  }

  template <typename T>
  static void recomputed(const tensor_list& saved, int64_t block_positions, int64_t block_items,
                         T upstream, tensor_list& out) {
    const auto &h = saved[0], &items = saved[1], &targets = saved[2], &lse = saved[3];
    const auto& bias = saved[4];
    const int64_t n = h.size(0), n_items = items.size(0);
    const T scale = upstream / static_cast<T>(std::max<int64_t>(1, n));
    const int64_t* ys = targets.const_data_ptr<int64_t>();
    for (int64_t begin = 0; begin < n; begin += block_positions) {
      const int64_t rows = std::min(block_positions, n - begin);
      const auto hb = h.narrow(0, begin, rows);
      auto to_hb = out[0].narrow(0, begin, rows);
      for (int64_t first = 0; first < n_items; first += block_items) {
        const int64_t cols = std::min(block_items, n_items - first);
        const auto part = items.narrow(0, first, cols);
        auto g = scores_of(hb, part, bias.defined() ? bias.narrow(0, first, cols) : bias);
        g.sub_(lse.narrow(0, begin, rows).unsqueeze(1)).exp_();
        T* gs = g.template mutable_data_ptr<T>();
        for (int64_t p = 0; p < rows; ++p) {
          const int64_t y = ys[begin + p] - first;
          if (y >= 0 && y < cols) gs[p * cols + y] -= 1;
        }
        g.mul_(scale);
        to_hb.addmm_(g, part);
        out[1].narrow(0, first, cols).addmm_(g.t(), hb);
        if (bias.defined()) out[3].narrow(0, first, cols).add_(g.sum(0));
      }
    }
  }
};

template <typename T>
T softplus(T x) {
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}

/// Loss of one position; scores become slopes. k negatives, those with id = target left out.
template <typename T>
double sampled_row(const SampledLoss& loss, T own, const int64_t* ids, int64_t target, T* scores,
                   int64_t k, T* own_slope) {
  const double inverse = loss.mean ? 1.0 / static_cast<double>(k + 1) : 1.0;
  double value = 0;
  if (loss.kind == SampledLoss::Kind::binary) {
    value = loss.target_weight * static_cast<double>(softplus(-own));
    *own_slope = static_cast<T>(-inverse * loss.target_weight) / (1 + std::exp(own));
    for (int64_t j = 0; j < k; ++j) {
      if (ids[j] == target) {
        scores[j] = 0;
        continue;
      }
      value += static_cast<double>(softplus(scores[j]));
      scores[j] = static_cast<T>(inverse) / (1 + std::exp(-scores[j]));
    }
    return value * inverse;
  }
  const T shift = static_cast<T>(loss.correction);
  T max = own;
  for (int64_t j = 0; j < k; ++j) {
    if (ids[j] != target) max = std::max(max, scores[j] - shift);
  }
  double sum = std::exp(static_cast<double>(own - max));
  for (int64_t j = 0; j < k; ++j) {
    scores[j] = ids[j] == target ? T(0) : std::exp(scores[j] - shift - max);
    sum += static_cast<double>(scores[j]);
  }
  for (int64_t j = 0; j < k; ++j) scores[j] = static_cast<T>(scores[j] * inverse / sum);
  *own_slope = static_cast<T>(inverse * (std::exp(static_cast<double>(own - max)) / sum - 1));
  return inverse * (std::log(sum) + static_cast<double>(max - own));
}

class Sampled : public torch::autograd::Function<Sampled> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& h_in,
                               const torch::Tensor& items_in, const torch::Tensor& targets_in,
                               const torch::Tensor& negatives_in, const torch::Tensor& group_in,
                               SampledLoss loss) {
    const auto h = h_in.contiguous(), items = items_in.contiguous();
    const auto targets = targets_in.contiguous(), negatives = negatives_in.contiguous();
    const auto group_of = group_in.contiguous();
    auto to_h = torch::zeros_like(h), to_items = torch::zeros_like(items);
    double total = 0;
    by_type(h, [&](auto type) {
      using T = decltype(type);
      total = run<T>(h, items, targets, negatives, group_of, loss, to_h, to_items);
    });
    context->save_for_backward({to_h, to_items});
    return torch::full({}, total, h.options());
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    const torch::Tensor none;
    return {saved[0] * upstream[0], saved[1] * upstream[0], none, none, none, none};
  }

 private:
  template <typename T>
  static double run(const torch::Tensor& h, const torch::Tensor& items,
                    const torch::Tensor& targets, const torch::Tensor& negatives,
                    const torch::Tensor& group_of, const SampledLoss& loss, torch::Tensor& to_h,
                    torch::Tensor& to_items) {
    const int64_t n = h.size(0), d = h.size(1), k = negatives.size(1);
    const T* hs = h.const_data_ptr<T>();
    const T* es = items.const_data_ptr<T>();
    const int64_t* ys = targets.const_data_ptr<int64_t>();
    const int64_t* ids = negatives.const_data_ptr<int64_t>();
    const int64_t* group = group_of.const_data_ptr<int64_t>();
    T* dh = to_h.mutable_data_ptr<T>();
    T* de = to_items.mutable_data_ptr<T>();
    const T share = static_cast<T>(1.0 / static_cast<double>(std::max<int64_t>(1, n)));
    std::vector<double> losses(static_cast<size_t>(n));
    std::vector<T> own_slopes(static_cast<size_t>(n));
    constexpr int64_t kBlock = 1024;
    // Positions that share negatives go through products, the others through inner products.
    for (int64_t begin = 0; begin < n;) {
      int64_t end = begin + 1;
      while (end < n && group[end] == group[begin] && end - begin < kBlock) ++end;
      int64_t alone = begin;
      if (end - begin == 1) {
        while (end < n && end - alone < kBlock && group[end] != group[end - 1] &&
               (end + 1 == n || group[end + 1] != group[end])) {
          ++end;
        }
      }
      const int64_t rows = end - begin;
      auto slopes = torch::empty({rows, k}, h.options());
      T* s = slopes.mutable_data_ptr<T>();
      const bool shared = rows > 1 && group[begin] == group[begin + 1];
      torch::Tensor negative_rows;
      if (shared) {
        negative_rows = items.index_select(0, negatives[group[begin]]);
        torch::mm_out(slopes, h.narrow(0, begin, rows), negative_rows.t());
      }
      parallel_for(0, rows, grain_of(k * (shared ? 1 : d)), [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) {
          const int64_t p = begin + r;
          const int64_t* own = ids + group[p] * k;
          T* row = s + r * k;
          if (!shared) {
            for (int64_t j = 0; j < k; ++j) row[j] = kernels::dot(hs + p * d, es + own[j] * d, d);
          }
          const T score = kernels::dot(hs + p * d, es + ys[p] * d, d);
          const auto at = static_cast<size_t>(p);
          losses[at] = sampled_row(loss, score, own, ys[p], row, k, &own_slopes[at]);
          kernels::add_scaled(own_slopes[at] * share, es + ys[p] * d, dh + p * d, d);
          if (shared) continue;
          for (int64_t j = 0; j < k; ++j) {
            kernels::add_scaled(row[j] * share, es + own[j] * d, dh + p * d, d);
          }
        }
      });
      if (shared) {
        to_h.narrow(0, begin, rows).addmm_(slopes, negative_rows, 1, share);
        const auto to_rows = torch::mm(slopes.t(), h.narrow(0, begin, rows)).contiguous();
        scatter_add(to_rows.template const_data_ptr<T>(), ids + group[begin] * k, k, share, de,
                    items.size(0), d);
      } else {
        parallel_for(0, items.size(0), grain_of(d), [&](int64_t from, int64_t to) {
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t p = begin + r;
            const int64_t* own = ids + group[p] * k;
            for (int64_t j = 0; j < k; ++j) {
              if (own[j] >= from && own[j] < to) {
                kernels::add_scaled(s[r * k + j] * share, hs + p * d, de + own[j] * d, d);
              }
            }
          }
        });
      }
      begin = end;
    }
    parallel_for(0, items.size(0), grain_of(d), [&](int64_t from, int64_t to) {
      for (int64_t p = 0; p < n; ++p) {
        if (ys[p] >= from && ys[p] < to) {
          kernels::add_scaled(own_slopes[static_cast<size_t>(p)] * share, hs + p * d,
                              de + ys[p] * d, d);
        }
      }
    });
    double total = 0;
    for (const double value : losses) total += value;
    return total / static_cast<double>(std::max<int64_t>(1, n));
  }
};

void check(const torch::Tensor& h, const torch::Tensor& items, const torch::Tensor& targets) {
  TORCH_CHECK(h.dim() == 2 && items.dim() == 2 && h.size(1) == items.size(1) &&
                  targets.dim() == 1 && targets.size(0) == h.size(0) &&
                  targets.scalar_type() == torch::kInt64,
              "a loss over items wants h [P, d], items [N, d] and targets int64 [P], got ",
              h.sizes(), " ", items.sizes(), " ", targets.sizes());
}

}  // namespace

torch::Tensor softmax_loss(const torch::Tensor& h, const torch::Tensor& items,
                           const torch::Tensor& targets, const torch::Tensor& bias,
                           const SoftmaxBlocks& blocks) {
  check(h, items, targets);
  const bool with_gradient =
      torch::GradMode::is_enabled() &&
      (h.requires_grad() || items.requires_grad() || (bias.defined() && bias.requires_grad()));
  return Softmax::apply(h, items, targets, bias.defined() ? bias : torch::empty({0}, h.options()),
                        blocks, with_gradient);
}

torch::Tensor softmax_loss_composed(const torch::Tensor& h, const torch::Tensor& items,
                                    const torch::Tensor& targets, const torch::Tensor& bias) {
  const auto scores = scores_of(h, items, bias);
  return (torch::logsumexp(scores, 1) - scores.gather(1, targets.unsqueeze(1)).squeeze(1)).mean();
}

torch::Tensor sampled_loss(const torch::Tensor& h, const torch::Tensor& items,
                           const torch::Tensor& targets, const torch::Tensor& negatives,
                           const torch::Tensor& group_of, const SampledLoss& loss) {
  check(h, items, targets);
  TORCH_CHECK(negatives.dim() == 2 && group_of.dim() == 1 && group_of.size(0) == h.size(0),
              "sampled_loss wants negatives [groups, k] and a group for each position");
  return Sampled::apply(h, items, targets, negatives, group_of, loss);
}

torch::Tensor sampled_loss_composed(const torch::Tensor& h, const torch::Tensor& items,
                                    const torch::Tensor& targets, const torch::Tensor& negatives,
                                    const torch::Tensor& group_of, const SampledLoss& loss) {
  const int64_t n = h.size(0), d = h.size(1), k = negatives.size(1);
  const auto own = (h * items.index_select(0, targets)).sum(1);
  const auto ids = negatives.index_select(0, group_of);
  const auto rows = items.index_select(0, ids.reshape({-1})).reshape({n, k, d});
  const auto gone = ids == targets.unsqueeze(1);
  const auto scores = (rows * h.unsqueeze(1)).sum(2);
  const double divisor = loss.mean ? static_cast<double>(k + 1) : 1;
  if (loss.kind == SampledLoss::Kind::binary) {
    const auto others = torch::softplus(scores).masked_fill(gone, 0).sum(1);
    return ((loss.target_weight * torch::softplus(-own) + others) / divisor).mean();
  }
  const auto shifted =
      (scores - loss.correction).masked_fill(gone, -std::numeric_limits<double>::infinity());
  const auto all = torch::cat({own.unsqueeze(1), shifted}, 1);
  return ((torch::logsumexp(all, 1) - own) / divisor).mean();
}

double gbce_weight(int64_t n_negatives, int64_t n_items, double t) {
  const double alpha =
      static_cast<double>(n_negatives) / static_cast<double>(std::max<int64_t>(1, n_items - 1));
  return 1 - t * (1 - alpha);
}

}  // namespace tessera
