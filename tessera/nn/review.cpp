#include "tessera/nn/review.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tessera/ops/edge_scores.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

constexpr int64_t kManyEdges = 100'000;
constexpr int kRedraws = 5;

torch::Tensor initial(int64_t rows, int64_t cols, bool uniform_start, const Random& random) {
  auto weight =
      uniform_start ? uniform(rows, cols, -1, 1, random) : xavier_uniform(rows, cols, random);
  return weight.set_requires_grad(true);
}

ReviewWeights weights(const ReviewForm& form, int64_t cols, const Random& random,
                      const std::string& name) {
  ReviewWeights out;
  out.weight = initial(form.width, cols, form.uniform, random.stream(name + ".weight"));
  if (form.split) {
    const Random own = random.stream(name + ".bias");
    out.bias = form.uniform ? uniform(1, cols, -1, 1, own).squeeze(0)
                            : linear_default_bias(form.width, cols, own);
    out.bias.set_requires_grad(true);
  }
  return out;
}

/// Those edges of `graph` for which `keep(user, item)` holds.
template <typename Keep>
BipartiteGraph chosen(const BipartiteGraph& graph, const Keep& keep) {
  const int64_t* from = graph.parts().user_offsets.const_data_ptr<int64_t>();
  const int32_t* item = graph.parts().user_items.const_data_ptr<int32_t>();
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items;
  for (int64_t u = 0; u < graph.n_users(); ++u) {
    for (int64_t e = from[u]; e < from[u + 1]; ++e) {
      if (keep(u, item[e])) items.push_back(item[e]);
    }
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return {torch::tensor(offsets, torch::kInt64), torch::tensor(items, torch::kInt32),
          graph.n_items()};
}

}  // namespace

double ReviewForm::scale() const {
  return divided ? std::sqrt(static_cast<double>(product_width())) : 1;
}

torch::Tensor ReviewWeights::project(const torch::Tensor& x, const ReviewForm& form) const {
  const auto y = bias.defined() ? torch::addmm(bias, x, weight) : x.matmul(weight);
  return form.half ? y.to(torch::kHalf).to(y.scalar_type()) : y;
}

ReviewWeights taste_weights(const ReviewForm& form, const Random& random, const std::string& name) {
  return weights(form, form.split ? form.width : form.n_tastes * form.width, random, name);
}
ReviewWeights row_weights(const ReviewForm& form, const Random& random, const std::string& name) {
  return weights(form, form.product_width(), random, name);
}

torch::Tensor consensus_loss(const torch::Tensor& x_own, const torch::Tensor& x_other) {
  return torch::softplus(-x_own).mean() + torch::softplus(x_other).mean();
}

torch::Tensor consensus_loss(const ReviewForm& form, const torch::Tensor& tastes,
                             const ReviewWeights& taste, const std::vector<torch::Tensor>& rows,
                             const std::vector<ReviewWeights>& weights, const torch::Tensor& user,
                             const torch::Tensor& item) {
  const int64_t n = item.numel(), k = form.n_tastes, w = form.product_width();
  const auto taste_rows = taste.project(tastes, form).view({-1, w});
  const auto each = torch::arange(k, torch::kInt64);
  const auto taste_at = (user.unsqueeze(1) * k + each).flatten();  // [2 n k]
  const auto row_at = item.unsqueeze(1).expand({n, k}).flatten().repeat({2});
  torch::Tensor loss;
  for (size_t m = 0; m < rows.size(); ++m) {
    const auto y = weights[m].project(rows[m], form);
    const auto x = row_dots(taste_rows, y, taste_at, row_at).view({2, n, k}) / form.scale();
    const auto part = consensus_loss(x[0], x[1]);
    loss = loss.defined() ? loss + part : part;
  }
  return loss;
}

CrossReviewer::CrossReviewer(const BipartiteGraph& edges, std::vector<std::string> modalities,
                             const ReviewForm& form, const Random& random)
    : form_(form), modalities_(std::move(modalities)), random_(random) {
  const Random folds = random.stream("review.folds");
  const auto fold = [&](int64_t user, int32_t item) -> int64_t {
    return folds.bits(0, static_cast<uint64_t>(user), static_cast<uint32_t>(item)) & 1;
  };
  if (edges.n_edges() > kManyEdges) batch_size_ = 8192;
  options_.learning_rate = [](int64_t) { return 5e-3; };
  options_.weight_decay = 0.01;
  options_.decay = AdamOptions::Decay::decoupled;
  n_counted_ = torch::zeros({edges.n_items()}, torch::kInt64);
  for (int64_t f = 0; f < 2; ++f) {
    const auto at = static_cast<size_t>(f);
    taught_[at] = chosen(edges, [&](int64_t u, int32_t i) { return fold(u, i) == f; });
    const auto degrees = taught_[at].parts().user_offsets.diff();
    const int64_t* degree = degrees.const_data_ptr<int64_t>();
    asked_[at] =
        chosen(edges, [&](int64_t u, int32_t i) { return fold(u, i) != f && degree[u] > 0; });
    n_counted_ += asked_[at].parts().item_offsets.diff();
    Reviewer& reviewer = reviewers_[at];
    const std::string own = "init.review." + std::to_string(f);
    const double spread = 1 / std::sqrt(static_cast<double>(form.width));
    reviewer.tastes =
        RowTable(normal(edges.n_users(), form.width, 0, spread, random.stream(own + ".tastes")));
    reviewer.tastes.configure(options_);
    reviewer.taste = taste_weights(form, random, own + ".taste");
    for (const auto& name : modalities_) {
      reviewer.rows.push_back(row_weights(form, random, own + ".rows." + name));
    }
    for (int64_t u = 0; u < edges.n_users(); ++u) {
      if (degree[u] > 0) reviewer.users.push_back(static_cast<int32_t>(u));
      for (int64_t e = 0; e < degree[u]; ++e) edge_users_[at].push_back(static_cast<int32_t>(u));
    }
  }
}

double CrossReviewer::step(int64_t f, const std::vector<int64_t>& edges,
                           const std::vector<torch::Tensor>& rows) {
  const torch::AutoGradMode with_gradients(true);
  const auto at = static_cast<size_t>(f);
  Reviewer& reviewer = reviewers_[at];
  const auto& graph = taught_[at].parts();
  const int32_t* item_of = graph.user_items.const_data_ptr<int32_t>();
  const int64_t* from = graph.item_offsets.const_data_ptr<int64_t>();
  const int32_t* users_of = graph.item_users.const_data_ptr<int32_t>();
  const std::string fold = std::to_string(f);
  const Random negatives = random_.stream("review.negatives." + fold);
  const auto now = static_cast<uint64_t>(++reviewer.n_steps);
  const size_t n = edges.size();
  const auto user_index = torch::empty({static_cast<int64_t>(2 * n)}, torch::kInt64);
  const auto item_index = torch::empty({static_cast<int64_t>(n)}, torch::kInt64);
  int64_t* users = user_index.mutable_data_ptr<int64_t>();  // own users, then others
  int64_t* items = item_index.mutable_data_ptr<int64_t>();
  for (size_t r = 0; r < n; ++r) {
    users[r] = edge_users_[at][static_cast<size_t>(edges[r])];
    items[r] = item_of[edges[r]];
    uint32_t draw = 0;
    for (int attempt = 0; attempt <= kRedraws; ++attempt) {
      const int32_t other =
          reviewer
              .users[negatives.below(static_cast<uint32_t>(reviewer.users.size()), now, r, draw)];
      users[n + r] = other;
      if (!std::binary_search(users_of + from[items[r]], users_of + from[items[r] + 1], other)) {
        break;
      }
    }
  }
  DistinctRows user_rows(taught_[at].n_users()), item_rows(taught_[at].n_items());
  user_rows.mark(user_index);
  item_rows.mark(item_index);
  const auto distinct_users = user_rows.list(), distinct_items = item_rows.list();
  auto tastes = reviewer.tastes.gather(distinct_users);
  if (form_.dropout > 0) {
    tastes =
        tastes * dropout_mask(distinct_users, form_.width, form_.dropout,
                              random_.stream("review.drop." + fold), static_cast<int64_t>(now));
  }
  std::vector<torch::Tensor> picked;
  for (const auto& table : rows) picked.push_back(table.detach().index_select(0, distinct_items));
  const auto loss = consensus_loss(form_, tastes, reviewer.taste, picked, reviewer.rows,
                                   user_rows.inverse(user_index), item_rows.inverse(item_index));
  loss.backward();
  for (auto& [name, tensor] : tensors()) {
    torch::Tensor& gradient = tensor->mutable_grad();
    if (!gradient.defined() || name.rfind("review." + fold, 0) != 0) continue;
    adam_.step(name, *tensor, gradient, options_);
    gradient.reset();
  }
  reviewer.tastes.step();
  return loss.item<double>();
}

double CrossReviewer::train_epoch(const std::vector<torch::Tensor>& rows,
                                  std::array<int64_t, 2>& steps_left) {
  double sum = 0;
  int64_t n = 0;
  for (int64_t f = 0; f < 2; ++f) {
    const auto at = static_cast<size_t>(f);
    std::vector<int64_t> order(edge_users_[at].size());
    std::iota(order.begin(), order.end(), int64_t{0});
    random_.stream("review.order")
        .shuffle(order, static_cast<uint64_t>(n_epochs_), static_cast<uint64_t>(f));
    for (size_t begin = 0; begin < order.size() && steps_left[at] > 0;
         begin += static_cast<size_t>(batch_size_)) {
      const size_t end = std::min(order.size(), begin + static_cast<size_t>(batch_size_));
      sum += step(f,
                  {order.begin() + static_cast<std::ptrdiff_t>(begin),
                   order.begin() + static_cast<std::ptrdiff_t>(end)},
                  rows);
      ++n;
      --steps_left[at];
    }
  }
  ++n_epochs_;
  return n > 0 ? sum / static_cast<double>(n) : 0;
}

CrossReviewer::Tastes CrossReviewer::projected_tastes() const {
  const torch::NoGradGuard no_grad;
  Tastes out;
  for (size_t f = 0; f < 2; ++f) {
    out[f] = reviewers_[f].taste.project(reviewers_[f].tastes.value(), form_);
  }
  return out;
}

torch::Tensor CrossReviewer::scores(const Tastes& tastes, int64_t modality,
                                    const torch::Tensor& rows, const torch::Tensor& items) const {
  const torch::NoGradGuard no_grad;
  torch::Tensor sum;
  for (size_t f = 0; f < 2; ++f) {
    const auto y = reviewers_[f].rows[static_cast<size_t>(modality)].project(rows.detach(), form_);
    const auto part = edge_sums(asked_[f], y, tastes[f], form_.n_tastes, form_.scale(), items);
    sum = sum.defined() ? sum + part : part;
  }
  const auto n = (items.defined() ? n_counted_.index_select(0, items) : n_counted_);
  return sum / n.clamp_min(1).to(sum.scalar_type());
}

std::vector<std::pair<std::string, torch::Tensor*>> CrossReviewer::tensors() {
  std::vector<std::pair<std::string, torch::Tensor*>> out;
  for (size_t f = 0; f < 2; ++f) {
    const std::string name = "review." + std::to_string(f);
    const auto add = [&](const std::string& of, ReviewWeights& w) {
      out.emplace_back(name + "." + of + ".weight", &w.weight);
      if (w.bias.defined()) out.emplace_back(name + "." + of + ".bias", &w.bias);
    };
    add("taste", reviewers_[f].taste);
    for (size_t m = 0; m < modalities_.size(); ++m) {
      add("rows." + modalities_[m], reviewers_[f].rows[m]);
    }
  }
  return out;
}

double median_of(const torch::Tensor& values) {
  if (values.numel() == 0) return 0;
  const auto sorted = std::get<0>(values.detach().to(torch::kFloat64).flatten().sort());
  const int64_t n = sorted.numel();
  return (sorted[(n - 1) / 2].item<double>() + sorted[n / 2].item<double>()) / 2;
}

double auto_threshold(const std::vector<double>& null_means, const torch::Tensor& scores) {
  const double sum = std::accumulate(null_means.begin(), null_means.end(), 0.0);
  const double null = sum / static_cast<double>(std::max<size_t>(1, null_means.size()));
  return (null + median_of(scores)) / 2;
}

double auc(const torch::Tensor& high, const torch::Tensor& low) {
  if (high.numel() == 0 || low.numel() == 0) return std::numeric_limits<double>::quiet_NaN();
  const auto sorted = std::get<0>(low.detach().to(torch::kFloat64).flatten().sort()).contiguous();
  const auto asked = high.detach().to(torch::kFloat64).flatten().contiguous();
  const double* begin = sorted.const_data_ptr<double>();
  const double* end = begin + sorted.numel();
  double wins = 0;
  for (int64_t i = 0; i < asked.numel(); ++i) {
    const double value = asked.const_data_ptr<double>()[i];
    const auto [first, last] = std::equal_range(begin, end, value);
    wins += static_cast<double>(first - begin) + static_cast<double>(last - first) / 2;
  }
  return wins / (static_cast<double>(asked.numel()) * static_cast<double>(sorted.numel()));
}

Areas areas_of(const torch::Tensor& scores, const torch::Tensor& present,
               const torch::Tensor& scored, const std::vector<double>& eta) {
  const auto threshold = torch::tensor(eta, torch::kFloat64).unsqueeze(0);
  const auto high = scores.detach()
                        .to(torch::kFloat64)
                        .ge(threshold)
                        .logical_and(present)
                        .logical_and(scored.unsqueeze(1));
  return {high, area_of(high, scored)};
}

torch::Tensor area_of(const torch::Tensor& high, const torch::Tensor& scored) {
  const auto n = high.sum(1);
  const auto area = torch::where(n == high.size(1), torch::full_like(n, Area::high_area),
                                 torch::where(n > 0, torch::full_like(n, Area::disparity),
                                              torch::full_like(n, Area::low_area)));
  return area * scored.to(torch::kInt64);
}

int64_t direction_of(int64_t from, int64_t to, int64_t n_modalities) {
  return from * (n_modalities - 1) + to - (to > from ? 1 : 0);
}

}  // namespace tessera
