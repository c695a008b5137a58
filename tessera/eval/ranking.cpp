#include "tessera/eval/ranking.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tessera/base/error.h"

namespace tessera {
namespace {

constexpr int64_t kScoreBytes = int64_t{256} << 20;

}  // namespace

int64_t ranking_block(Model& model, int64_t wanted) {
  wanted = std::max<int64_t>(1, wanted);
  if (dynamic_cast<FactorModel*>(&model) != nullptr) return wanted;
  return std::clamp<int64_t>(kScoreBytes / 4 / std::max<int64_t>(1, model.data().n_items), 1,
                             wanted);
}

RankedBlock rank_block(Model& model, const Queries& queries, const Ragged& mask,
                       const torch::Tensor& hidden, const Ragged& held, int64_t k) {
  torch::Tensor scores = model.score(queries).to(torch::kFloat).contiguous();
  const int64_t n = scores.size(0), n_items = scores.size(1);
  RankedBlock block;
  block.lists.items = torch::full({n, k}, -1, torch::kInt32);
  block.lists.scores = torch::zeros({n, k}, torch::kFloat);
  for (int64_t i = 0; i < n; ++i) {
    const float* s = scores.const_data_ptr<float>() + i * n_items;
    std::vector<bool> gone(n_items, false);
    if (hidden.defined()) {
      for (int64_t j = 0; j < n_items; ++j) gone[j] = hidden.const_data_ptr<bool>()[j];
    }
    if (mask.defined()) {
      const auto* o = mask.offsets.const_data_ptr<int64_t>();
      for (int64_t j = o[i]; j < o[i + 1]; ++j)
        gone[mask.items.const_data_ptr<int32_t>()[j]] = true;
    }
    std::vector<int32_t> order;
    for (int64_t j = 0; j < n_items; ++j) {
      if (std::isnan(s[j])) throw RunError(Exit::diverged, "a score is NaN");
      if (!gone[j]) order.push_back(j);
    }
    const auto better = [&](int32_t a, int32_t b) { return s[a] != s[b] ? s[a] > s[b] : a < b; };
    const int64_t top = std::min<int64_t>(k, order.size());
    if (held.defined()) {
      const auto* o = held.offsets.const_data_ptr<int64_t>();
      for (int64_t j = o[i]; j < o[i + 1]; ++j) {
        const int32_t item = held.items.const_data_ptr<int32_t>()[j];
        Place place;
        if (!gone[item]) {
          place.rank = 1;
          for (const int32_t other : order) {
            if (better(other, item)) ++place.rank;
            if (s[other] > s[item]) ++place.above;
            if (s[other] == s[item] && other != item) ++place.equal;
          }
        }
        block.places.push_back(place);
      }
    }
    std::partial_sort(order.begin(), order.begin() + top, order.end(), better);
    for (int64_t r = 0; r < top; ++r) {
      block.lists.items[i][r] = order[r];
      block.lists.scores[i][r] = s[order[r]];
    }
  }
  return block;
}

TopLists top_lists(Model& model, const Queries& queries, const Ragged& mask,
                   const torch::Tensor& hidden, int64_t k) {
  const torch::NoGradGuard no_gradients;
  if (model.training()) model.train(false);
  const int64_t n = queries.size(), block_size = ranking_block(model, 4096);
  const auto rows = [](const Ragged& all, int64_t first, int64_t last) {
    if (!all.defined()) return Ragged{};
    const int64_t begin = all.offsets[first].item<int64_t>(),
                  end = all.offsets[last].item<int64_t>();
    return Ragged{all.items.slice(0, begin, end), all.offsets.slice(0, first, last + 1) - begin};
  };
  std::vector<torch::Tensor> items, scores;
  for (int64_t first = 0; first < n; first += block_size) {
    const int64_t last = std::min(first + block_size, n);
    Queries part;
    if (queries.users.defined()) part.users = queries.users.slice(0, first, last);
    part.histories = rows(queries.histories, first, last);
    const RankedBlock block = rank_block(model, part, rows(mask, first, last), hidden, {}, k);
    items.push_back(block.lists.items);
    scores.push_back(block.lists.scores);
  }
  if (items.empty()) {
    return {torch::empty({0, k}, torch::kInt32), torch::empty({0, k}, torch::kFloat)};
  }
  return {torch::cat(items), torch::cat(scores)};
}

}  // namespace tessera
