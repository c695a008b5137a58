#include "tessera/nn/rewriter.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <limits>

#include "tessera/nn/review.h"

namespace tessera {
namespace {

constexpr size_t kBatch = 128;
constexpr int64_t kCheckEvery = 5, kPatience = 8;
constexpr double kLeastGain = 1e-4, kRidge = 1;

}  // namespace

Rewriter::Rewriter(const RewriterOptions& options, int64_t n_modalities,
                   const BipartiteGraph& graph, const Random& random)
    : options_(options), n_modalities_(n_modalities), graph_(graph), random_(random) {
  options_.gan.n_directions = n_modalities * (n_modalities - 1);
  if (options_.method == "vqgan") gan_.emplace(options_.gan, random);
}

void Rewriter::begin_round() {
  const int64_t ever = progress_.epochs_ever;
  progress_ = {};
  progress_.epochs_ever = ever;
}

int64_t Rewriter::epochs_of_round() const {
  const bool fresh = progress_.epochs_ever == progress_.epochs;
  return fresh ? options_.first_epochs : options_.later_epochs;
}

int64_t Rewriter::choose(const torch::Tensor& high, const std::vector<bool>& takes_part,
                         int64_t round) {
  const torch::Tensor flags = high.contiguous();
  const bool* is_high = flags.const_data_ptr<bool>();
  std::vector<std::vector<Pair>> of_item(static_cast<size_t>(high.size(0)));
  std::vector<int64_t> used;
  for (int64_t i = 0; i < high.size(0); ++i) {
    auto& pairs = of_item[static_cast<size_t>(i)];
    const auto trusted = [&](int64_t m) {
      return is_high[i * n_modalities_ + m] && takes_part[static_cast<size_t>(m)];
    };
    for (int64_t a = 0; a < n_modalities_; ++a) {
      for (int64_t b = 0; b < n_modalities_; ++b) {
        if (a != b && trusted(a) && trusted(b)) pairs.push_back({i, a, b});
      }
    }
    if (!pairs.empty()) used.push_back(i);
  }
  random_.stream("rewrite.hold_out").shuffle(used, static_cast<uint64_t>(round));
  const size_t n_held = options_.hold_out ? used.size() / 10 : 0;
  learned_.clear();
  held_.clear();
  for (size_t j = 0; j < used.size(); ++j) {
    const auto& pairs = of_item[static_cast<size_t>(used[j])];
    auto& to = j < n_held ? held_ : learned_;
    to.insert(to.end(), pairs.begin(), pairs.end());
  }
  return static_cast<int64_t>(used.size());
}

Rewriter::Rows Rewriter::rows_of(const std::vector<torch::Tensor>& rows, const Pair* pairs,
                                 size_t n) const {
  const int64_t d = options_.gan.width, count = static_cast<int64_t>(n);
  Rows out{torch::empty({count, d}), torch::empty({count, d}),
           torch::empty({count}, torch::kInt64)};
  for (size_t j = 0; j < n; ++j) {
    const auto [item, from, to] = pairs[j];
    const auto copy = [&](int64_t m, torch::Tensor& table) {
      const float* row = rows[static_cast<size_t>(m)].const_data_ptr<float>() + item * d;
      std::copy(row, row + d, table.mutable_data_ptr<float>() + static_cast<int64_t>(j) * d);
    };
    copy(from, out.source);
    copy(to, out.target);
    out.direction.mutable_data_ptr<int64_t>()[j] = direction_of(from, to, n_modalities_);
  }
  return out;
}

double Rewriter::distance(const std::vector<torch::Tensor>& rows, bool held) const {
  const auto& pairs = held ? held_ : learned_;
  if (pairs.empty()) return std::numeric_limits<double>::quiet_NaN();
  const Rows of = rows_of(rows, pairs.data(), pairs.size());
  const auto e_hat = gan_->rewrite(of.source, of.direction);
  return (e_hat - of.target).abs().mean(torch::kFloat64).item<double>();
}

std::pair<int64_t, double> Rewriter::codes_in_use(const std::vector<torch::Tensor>& rows) const {
  const Rows of = rows_of(rows, learned_.data(), learned_.size());
  const auto codes = gan_->codes_of(of.source, of.direction);
  const auto n = (torch::bincount(codes, {}, gan_->n_codes()) > 0).sum().item<int64_t>();
  return {n, perplexity(codes, gan_->n_codes())};
}

bool Rewriter::train(const std::vector<torch::Tensor>& rows,
                     const std::function<bool(int64_t)>& after_epoch) {
  if (!gan_) return true;
  const Random orders = random_.stream("rewrite.order");
  while (progress_.epochs < epochs_of_round() && progress_.misses < kPatience) {
    std::vector<Pair> order = learned_;
    orders.shuffle(order, static_cast<uint64_t>(progress_.epochs_ever));
    for (size_t begin = 0; begin < order.size(); begin += kBatch) {
      const Rows of = rows_of(rows, order.data() + begin, std::min(kBatch, order.size() - begin));
      gan_->step(of.source, of.target, of.direction);
    }
    ++progress_.epochs;
    ++progress_.epochs_ever;
    if (!held_.empty() && progress_.epochs % kCheckEvery == 0) {
      const double now = distance(rows, true);
      if (now < progress_.best - kLeastGain) {
        progress_.best = now;
        progress_.misses = 0;
        gan_->remember_best();
      } else {
        ++progress_.misses;
      }
    }
    if (!after_epoch(progress_.epochs)) return false;
  }
  if (progress_.best < Progress{}.best) gan_->restore_best();
  return true;
}

torch::Tensor Rewriter::candidates(const std::vector<torch::Tensor>& rows, int64_t from, int64_t to,
                                   const torch::Tensor& items, const torch::Tensor& high) const {
  const torch::NoGradGuard no_grad;
  const auto source = rows[static_cast<size_t>(from)].index_select(0, items);
  const auto& table = rows[static_cast<size_t>(to)];
  const auto trusted = high.select(1, to);
  if (options_.method == "vqgan") {
    const auto direction =
        torch::full({items.numel()}, direction_of(from, to, n_modalities_), torch::kInt64);
    return gan_->rewrite(source, direction);
  }
  if (options_.method == "mean") {
    const auto mean = table.index_select(0, trusted.nonzero().flatten()).mean(0, true);
    return mean.expand({items.numel(), table.size(1)}).contiguous();
  }
  if (options_.method == "ridge") return ridge(rows, from, to, source);
  // C = A^T A; its diagonal does not matter: an item to rewrite is not among the high ones.
  const auto mask = trusted.to(torch::kFloat32).unsqueeze(1);
  const auto sum = to_items(graph_, to_users(graph_, table * mask));
  const auto weight = to_items(graph_, to_users(graph_, mask));
  return (sum / weight.clamp_min(1e-12)).index_select(0, items);
}

torch::Tensor Rewriter::ridge(const std::vector<torch::Tensor>& rows, int64_t from, int64_t to,
                              const torch::Tensor& source) const {
  std::vector<Pair> pairs;
  for (const auto& pair : learned_) {
    if (pair.from == from && pair.to == to) pairs.push_back(pair);
  }
  const Rows of = rows_of(rows, pairs.data(), pairs.size());
  const auto wide = [](const torch::Tensor& x) {
    return torch::cat({x.to(torch::kFloat64), torch::ones({x.size(0), 1}, torch::kFloat64)}, 1);
  };
  const auto x = wide(of.source);
  const auto map =
      torch::linalg_solve(x.t().matmul(x) + kRidge * torch::eye(x.size(1), torch::kFloat64),
                          x.t().matmul(of.target.to(torch::kFloat64)), /*left=*/true);
  return wide(source).matmul(map).to(torch::kFloat32);
}

}  // namespace tessera
