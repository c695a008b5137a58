#include "tessera/ops/sequence_losses.h"

#include <ATen/Parallel.h>
#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tessera/ops/block_product.h"
#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
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

/// The softmax loss by tiles of positions x items, each small enough for a core's own cache. Rows
/// of tiles first: scores, their exponentials under the running maximum, and the part of the
/// gradient of h. Then columns of tiles: the gradient of the items, once the rows' sums are known.
/// A tile's exponentials wait for that where `blocks.bytes` allow it, else its scores are made
/// again.
template <typename T>
class SoftmaxTiles {
 public:
  SoftmaxTiles(const torch::Tensor& h, const torch::Tensor& items, const torch::Tensor& targets,
               const torch::Tensor& bias, const SoftmaxBlocks& blocks, bool with_gradient)
      : n_(h.size(0)),
        n_items_(items.size(0)),
        d_(h.size(1)),
        wide_(rounded_up(d_)),
        rows_(std::max<int64_t>(1, std::min(blocks.positions, n_))),
        cols_(std::min(blocks.items, n_items_)),
        stride_(rounded_up(cols_) + kColumns),  // no power of two: rows must not share a cache set
        n_tiles_((n_items_ + cols_ - 1) / cols_),
        with_gradient_(with_gradient),
        h_(widened(h)),
        items_(widened(items)),
        bias_(bias),
        targets_(targets.const_data_ptr<int64_t>()),
        panels_(static_cast<size_t>(n_tiles_ * rounded_up(cols_) * d_)) {
    const int64_t row_bytes = rows_ * n_tiles_ * stride_ * static_cast<int64_t>(sizeof(T));
    kept_ = with_gradient && row_bytes <= blocks.bytes;
    group_ = kept_ ? rows_ * std::clamp<int64_t>(blocks.bytes / row_bytes, 1, at::get_num_threads())
                   : std::max(rows_, n_);
    lse_.resize(static_cast<size_t>(n_));
    pack();
    if (!with_gradient) return;
    to_h = torch::zeros_like(h_);
    to_items = torch::zeros_like(items_);
    if (bias.defined()) to_bias = torch::zeros_like(bias);
    if (!kept_) return;
    held_ = torch::empty({std::min(group_, n_) * n_tiles_ * stride_}, h.options());
    shift_.resize(static_cast<size_t>(std::min(group_, n_) * n_tiles_));
  }

  /// The mean loss; fills to_h, to_items and to_bias.
  double run() {
    for (int64_t begin = 0; begin < n_; begin += group_) {
      const int64_t end = std::min(n_, begin + group_);
      parallel_for(0, (end - begin + rows_ - 1) / rows_, 1, [&](int64_t from, int64_t to) {
        auto scratch = scratch_tile();
        for (int64_t b = from; b < to; ++b) {
          const int64_t first = begin + b * rows_;
          row_of_tiles(first, std::min(rows_, end - first), first - begin, scratch.data());
        }
      });
      if (!with_gradient_) continue;
      parallel_for(0, n_tiles_, 1, [&](int64_t from, int64_t to) {
        auto scratch = scratch_tile();
        std::vector<T> thin(static_cast<size_t>(rows_ * wide_));
        for (int64_t tile = from; tile < to; ++tile) {
          for (int64_t first = begin; first < end; first += rows_) {
            add_to_items(tile, first, std::min(rows_, end - first), first - begin, scratch.data(),
                         thin.data());
          }
        }
      });
    }
    const double loss = finish();
    if (with_gradient_ && wide_ != d_) {
      to_h = to_h.narrow(1, 0, d_).contiguous();
      to_items = to_items.narrow(1, 0, d_).contiguous();
    }
    return loss;
  }

  torch::Tensor to_h, to_items, to_bias;

 private:
  static constexpr int64_t kColumns = kernels::kBlockColumns<T>;
  static int64_t rounded_up(int64_t n) { return (n + kColumns - 1) / kColumns * kColumns; }
  torch::Tensor widened(const torch::Tensor& x) const {
    return wide_ == d_ ? x : torch::constant_pad_nd(x, {0, wide_ - d_});
  }
  int64_t cols_of(int64_t tile) const { return std::min(cols_, n_items_ - tile * cols_); }
  std::vector<T> scratch_tile() const {
    return std::vector<T>(static_cast<size_t>(kept_ ? 0 : rows_ * stride_));
  }
  const T* bias_of(int64_t tile) const {
    return bias_.defined() ? bias_.const_data_ptr<T>() + tile * cols_ : nullptr;
  }
  /// The memory of one tile, [rows, cols of the tile] with rows `stride_` apart.
  T* tile_at(T* scratch, int64_t tile, int64_t rows, int64_t in_group) {
    return kept_ ? held_.mutable_data_ptr<T>() + (in_group * n_tiles_ + rows * tile) * stride_
                 : scratch;
  }

  /// Every kColumns items of a tile as one panel [d, kColumns].
  void pack() {
    const T* from = items_.const_data_ptr<T>();
    parallel_for(0, n_tiles_, grain_of(cols_ * d_), [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        for (int64_t j = 0; j < cols_of(tile); ++j) {
          kernels::pack_column(from + (tile * cols_ + j) * wide_, d_,
                               panel(tile, j / kColumns) + j % kColumns);
        }
      }
    });
  }
  T* panel(int64_t tile, int64_t p) {
    return panels_.data() + (tile * rounded_up(cols_) + p * kColumns) * d_;
  }

  void scores(int64_t tile, int64_t first, int64_t rows, T* z) {
    const int64_t cols = cols_of(tile);
    for (int64_t p = 0; p * kColumns < cols; ++p) {
      kernels::block_product(
          kernels::BlockProduct<T>{h_.const_data_ptr<T>() + first * wide_, wide_, 1, panel(tile, p),
                                   kColumns, d_, z + p * kColumns, stride_, rows, kColumns, false});
    }
    if (const T* bias = bias_of(tile)) {
      for (int64_t p = 0; p < rows; ++p) kernels::add_scaled(T(1), bias, z + p * stride_, cols);
    }
  }

  void row_of_tiles(int64_t first, int64_t rows, int64_t in_group, T* scratch) {
    T* to = with_gradient_ ? to_h.mutable_data_ptr<T>() + first * wide_ : nullptr;
    std::vector<T> peak(static_cast<size_t>(rows), -std::numeric_limits<T>::infinity());
    std::vector<double> sum(static_cast<size_t>(rows), 0);
    for (int64_t tile = 0; tile < n_tiles_; ++tile) {
      const int64_t cols = cols_of(tile);
      T* z = tile_at(scratch, tile, rows, in_group);
      scores(tile, first, rows, z);
      for (int64_t p = 0; p < rows; ++p) {
        T& top = peak[static_cast<size_t>(p)];
        double& total = sum[static_cast<size_t>(p)];
        const auto e = kernels::exp_row(z + p * stride_, cols, top);
        if (e.max > top) {
          const T fall = std::exp(top - e.max);
          total *= static_cast<double>(fall);
          for (int64_t i = 0; to && i < d_; ++i) to[p * wide_ + i] *= fall;
          top = e.max;
        }
        total += static_cast<double>(e.sum);
        if (kept_) shift_[static_cast<size_t>((in_group + p) * n_tiles_ + tile)] = e.max;
      }
      if (to == nullptr) continue;
      kernels::block_product(
          kernels::BlockProduct<T>{z, stride_, 1, items_.const_data_ptr<T>() + tile * cols_ * wide_,
                                   wide_, cols, to, wide_, rows, wide_, true});
    }
    for (int64_t p = 0; p < rows; ++p) {
      const double total = sum[static_cast<size_t>(p)];
      lse_[static_cast<size_t>(first + p)] =
          static_cast<double>(peak[static_cast<size_t>(p)]) + std::log(total);
      const T share = static_cast<T>(1 / (total * static_cast<double>(n_)));
      for (int64_t i = 0; to && i < d_; ++i) to[p * wide_ + i] *= share;
    }
  }

  /// to_items += g^T h over the rows of one tile, where g = exp(z - lse) / P: the tile holds
  /// exp(z - shift), the rest of the factor goes to the thin side.
  void add_to_items(int64_t tile, int64_t first, int64_t rows, int64_t in_group, T* scratch,
                    T* thin) {
    const int64_t cols = cols_of(tile);
    T* z = tile_at(scratch, tile, rows, in_group);
    T* to_bias_tile = to_bias.defined() ? to_bias.mutable_data_ptr<T>() + tile * cols_ : nullptr;
    if (!kept_) scores(tile, first, rows, z);
    const T* hs = h_.const_data_ptr<T>() + first * wide_;
    for (int64_t p = 0; p < rows; ++p) {
      const double lse = lse_[static_cast<size_t>(first + p)];
      const T shift = kept_ ? shift_[static_cast<size_t>((in_group + p) * n_tiles_ + tile)]
                            : kernels::exp_row(z + p * stride_, cols, static_cast<T>(lse)).max;
      const T factor =
          static_cast<T>(std::exp(static_cast<double>(shift) - lse) / static_cast<double>(n_));
      for (int64_t i = 0; i < wide_; ++i) thin[p * wide_ + i] = factor * hs[p * wide_ + i];
      if (to_bias_tile) kernels::add_scaled(factor, z + p * stride_, to_bias_tile, cols);
    }
    kernels::block_product(kernels::BlockProduct<T>{
        z, 1, stride_, thin, wide_, rows, to_items.mutable_data_ptr<T>() + tile * cols_ * wide_,
        wide_, cols, wide_, true});
  }

  /// The targets' own part of the loss and of the gradients.
  double finish() {
    const T* hs = h_.const_data_ptr<T>();
    const T* es = items_.const_data_ptr<T>();
    const T minus = static_cast<T>(-1.0 / static_cast<double>(std::max<int64_t>(1, n_)));
    T* dh = with_gradient_ ? to_h.mutable_data_ptr<T>() : nullptr;
    double total = 0;
    for (int64_t p = 0; p < n_; ++p) {
      const int64_t y = targets_[p];
      T own = kernels::dot(hs + p * wide_, es + y * wide_, d_);
      if (bias_.defined()) own += bias_.const_data_ptr<T>()[y];
      total += lse_[static_cast<size_t>(p)] - static_cast<double>(own);
      if (dh) kernels::add_scaled(minus, es + y * wide_, dh + p * wide_, d_);
    }
    if (with_gradient_) {
      scatter_add(hs, targets_, n_, minus, to_items.mutable_data_ptr<T>(), n_items_, wide_);
    }
    if (to_bias.defined()) {
      T* db = to_bias.mutable_data_ptr<T>();
      for (int64_t p = 0; p < n_; ++p) db[targets_[p]] += minus;
    }
    return total / static_cast<double>(std::max<int64_t>(1, n_));
  }

  const int64_t n_, n_items_, d_, wide_;  // wide_: d in whole vectors
  const int64_t rows_, cols_, stride_, n_tiles_;
  const bool with_gradient_;
  const torch::Tensor h_, items_, bias_;  // h_ [P, wide_], items_ [N, wide_]
  const int64_t* targets_;
  std::vector<T> panels_;
  bool kept_ = false;
  int64_t group_ = 0;        // positions whose tiles are made before the items' gradient
  torch::Tensor held_;       // exp(score - shift) of a group, tile by tile
  std::vector<T> shift_;     // [position of the group, tile]
  std::vector<double> lse_;  // [P]
};

class Softmax : public torch::autograd::Function<Softmax> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& h,
                               const torch::Tensor& items, const torch::Tensor& targets,
                               const torch::Tensor& bias, SoftmaxBlocks blocks,
                               bool with_gradient) {
    double value = 0;
    by_type(h, [&](auto type) {
      // apply() takes no undefined tensor: an empty one stands for no bias.
      const auto ids = targets.contiguous();
      SoftmaxTiles<decltype(type)> tiles(h.contiguous(), items.contiguous(), ids,
                                         bias.numel() > 0 ? bias.contiguous() : torch::Tensor(),
                                         blocks, with_gradient);
      value = tiles.run();
      context->save_for_backward({tiles.to_h, tiles.to_items, tiles.to_bias});
    });
    return torch::full({}, value, h.options());
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    const bool one = upstream[0].item<double>() == 1;
    const auto times = [&](const torch::Tensor& g) {
      return !g.defined() || one ? g : g * upstream[0];
    };
    const torch::Tensor none;
    return {times(saved[0]), times(saved[1]), none, times(saved[2]), none, none};
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

torch::Tensor mean_or_zero(const torch::Tensor& x) {
  return x.sum() / static_cast<double>(std::max<int64_t>(1, x.numel()));
}

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
  if (composed(h)) return softmax_loss_composed(h, items, targets.to(h.device()), bias);
  const bool with_gradient =
      torch::GradMode::is_enabled() &&
      (h.requires_grad() || items.requires_grad() || (bias.defined() && bias.requires_grad()));
  return Softmax::apply(h, items, targets, bias.defined() ? bias : torch::empty({0}, h.options()),
                        blocks, with_gradient);
}

torch::Tensor softmax_loss_composed(const torch::Tensor& h, const torch::Tensor& items,
                                    const torch::Tensor& targets, const torch::Tensor& bias) {
  const auto scores = bias.defined() ? torch::addmm(bias, h, items.t()) : h.mm(items.t());
  const auto own = scores.gather(1, targets.unsqueeze(1)).squeeze(1);
  return mean_or_zero(torch::logsumexp(scores, 1) - own);
}

torch::Tensor sampled_loss(const torch::Tensor& h, const torch::Tensor& items,
                           const torch::Tensor& targets, const torch::Tensor& negatives,
                           const torch::Tensor& group_of, const SampledLoss& loss) {
  check(h, items, targets);
  TORCH_CHECK(negatives.dim() == 2 && group_of.dim() == 1 && group_of.size(0) == h.size(0),
              "sampled_loss wants negatives [groups, k] and a group for each position");
  if (composed(h)) {
    const auto on = h.device();
    return sampled_loss_composed(h, items, targets.to(on), negatives.to(on), group_of.to(on), loss);
  }
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
    return mean_or_zero((loss.target_weight * torch::softplus(-own) + others) / divisor);
  }
  const auto shifted =
      (scores - loss.correction).masked_fill(gone, -std::numeric_limits<double>::infinity());
  const auto all = torch::cat({own.unsqueeze(1), shifted}, 1);
  return mean_or_zero((torch::logsumexp(all, 1) - own) / divisor);
}

double gbce_weight(int64_t n_negatives, int64_t n_items, double t) {
  const double alpha =
      static_cast<double>(n_negatives) / static_cast<double>(std::max<int64_t>(1, n_items - 1));
  return 1 - t * (1 - alpha);
}

}  // namespace tessera
