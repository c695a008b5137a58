#include "tessera/model/scorer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace tessera {
namespace {

constexpr int64_t kScoreBytes = int64_t{256} << 20;
constexpr int64_t kListBlock = 4096;
constexpr int64_t kSpread = 1024;  // users and items that spread() looks at

Ragged chosen_rows(const Ragged& all, const std::vector<int64_t>& chosen) {
  std::vector<std::vector<int32_t>> rows;
  for (const int64_t row : chosen) {
    const auto items = all.row(row);
    rows.emplace_back(items.begin(), items.end());
  }
  return packed(rows);
}

Places places_of(const Ranks& ranks, const Ragged& mask, const torch::Tensor& hidden,
                 const Ragged& held) {
  Places places;
  const auto* n_candidates = ranks.n_candidates.const_data_ptr<int64_t>();
  places.n_candidates.assign(n_candidates, n_candidates + ranks.n_candidates.size(0));
  places.items.resize(held.items.size(0));
  const auto* greater = ranks.n_greater.const_data_ptr<int64_t>();
  const auto* lower = ranks.n_equal_lower.const_data_ptr<int64_t>();
  const auto* other = ranks.n_equal_other.const_data_ptr<int64_t>();
  const auto* held_items = held.items.const_data_ptr<int32_t>();
  const auto* held_offsets = held.offsets.const_data_ptr<int64_t>();
  const bool* gone = hidden.defined() ? hidden.const_data_ptr<bool>() : nullptr;
  for (int64_t row = 0; row < held.n_rows(); ++row) {
    const auto masked = mask.defined() ? mask.row(row) : std::span<const int32_t>();
    for (int64_t j = held_offsets[row]; j < held_offsets[row + 1]; ++j) {
      if (contains(masked, held_items[j]) || (gone != nullptr && gone[held_items[j]])) continue;
      places.items[j] = {.rank = greater[j] + lower[j] + 1, .above = greater[j], .equal = other[j]};
    }
  }
  return places;
}

Places places_of(const Vectors& of, const Ragged& mask, const torch::Tensor& hidden,
                 const Ragged& held) {
  return places_of(count_above_product(of.users, of.items, {mask.offsets, mask.items, hidden},
                                       held.offsets, held.items),
                   mask, hidden, held);
}

}  // namespace

std::span<const int32_t> Ragged::row(int64_t index) const {
  const auto* offset = offsets.const_data_ptr<int64_t>();
  return {items.const_data_ptr<int32_t>() + offset[index],
          static_cast<size_t>(offset[index + 1] - offset[index])};
}

Ragged Ragged::rows(int64_t first, int64_t last) const {
  if (!defined()) return {};
  const auto* offset = offsets.const_data_ptr<int64_t>();
  return {items.slice(0, offset[first], offset[last]),
          offsets.slice(0, first, last + 1) - offset[first]};
}

Ragged packed(const std::vector<int32_t>& items, const std::vector<int64_t>& offsets) {
  return {torch::tensor(items, torch::kInt32), torch::tensor(offsets, torch::kInt64)};
}

Ragged packed(const std::vector<std::vector<int32_t>>& rows) {
  std::vector<int32_t> items;
  std::vector<int64_t> offsets = {0};
  for (const auto& row : rows) {
    items.insert(items.end(), row.begin(), row.end());
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return packed(items, offsets);
}

int64_t Queries::user(int64_t row) const {
  return users.defined() ? users.const_data_ptr<int64_t>()[row] : -1;
}

std::array<std::pair<const char*, bool*>, 4> flags_of(Abilities& abilities) {
  return {{{"uses_features", &abilities.uses_features},
           {"score_reads_features", &abilities.score_reads_features},
           {"ranks_cold_items", &abilities.ranks_cold_items},
           {"takes_histories", &abilities.takes_histories}}};
}

const char* via_word(Via via) {
  switch (via) {
    case Via::user:
      return "user";
    case Via::history:
      return "history";
    case Via::item_mean:
      return "item mean";
    case Via::popular:
      break;
  }
  return "popular";
}

TrainFacts::TrainFacts(const TrainView& data) {
  const torch::Tensor rows = item_counts(data.train, data.n_items);
  const auto* count = rows.const_data_ptr<int64_t>();
  counts.assign(count, count + data.n_items);
  column = rows.to(torch::kFloat).unsqueeze(1);
  for (int64_t user = 0; user < data.n_users; ++user) {
    trained_user.push_back(!data.train.of(user).empty());
  }
  has_feature.assign(static_cast<size_t>(data.n_items), false);
  for (const Feature& feature : data.features) {
    for (int64_t item = 0; item < data.n_items; ++item) {
      if (feature.has(item)) has_feature[static_cast<size_t>(item)] = true;
    }
  }
}

TrainFacts TrainFacts::with_items(int64_t n) const {
  TrainFacts out = *this;
  out.counts.resize(counts.size() + static_cast<size_t>(n), 0);
  out.has_feature.resize(out.counts.size(), true);
  out.column = torch::cat({column, torch::zeros({n, 1})});
  return out;
}

TopLists BlockScores::top(const Ragged& mask, const torch::Tensor& hidden, int64_t k) const {
  const RankMask without{mask.offsets, mask.items, hidden};
  TopK best = factors_.users.defined() ? top_k_product(factors_.users, factors_.items, without, k)
              : parts_                 ? top_k_parts(*parts_, without, k)
                                       : top_k_scores(whole_, without, k);
  if (!popular_.empty()) {
    const auto rows = torch::tensor(popular_, torch::kInt64);
    const Ragged masked = mask.defined() ? chosen_rows(mask, popular_) : Ragged{};
    const TopK some = top_k_product(torch::ones({rows.size(0), 1}), counts_,
                                    {masked.offsets, masked.items, hidden}, k);
    best.items.index_copy_(0, rows, some.items);
    best.scores.index_copy_(0, rows, some.scores);
  }
  return {best.items, best.scores};
}

Places BlockScores::places(const Ragged& mask, const torch::Tensor& hidden,
                           const Ragged& held) const {
  Places places;
  if (factors_.users.defined()) {
    places = places_of(factors_, mask, hidden, held);
  } else {
    places = places_of(count_above_scores(own_whole(), {mask.offsets, mask.items, hidden},
                                          held.offsets, held.items),
                       mask, hidden, held);
  }
  if (popular_.empty()) return places;
  const Ragged some_held = chosen_rows(held, popular_);
  const Places some =
      places_of(Vectors{torch::ones({some_held.n_rows(), 1}), counts_},
                mask.defined() ? chosen_rows(mask, popular_) : Ragged{}, hidden, some_held);
  const auto* offset = held.offsets.const_data_ptr<int64_t>();
  auto from = some.items.begin();
  for (size_t i = 0; i < popular_.size(); ++i) {
    const int64_t row = popular_[i], n = offset[row + 1] - offset[row];
    places.n_candidates[static_cast<size_t>(row)] = some.n_candidates[i];
    std::copy(from, from + n, places.items.begin() + offset[row]);
    from += n;
  }
  return places;
}
torch::Tensor BlockScores::own_whole() const {
  if (factors_.users.defined()) return factors_.users.matmul(factors_.items.t());
  if (parts_) return part_scores(parts_->users, parts_->ids, parts_->parts, parts_->open);
  return whole_;
}

torch::Tensor BlockScores::whole() const {
  torch::Tensor scores = own_whole();
  if (popular_.empty()) return scores;
  return scores.index_copy(
      0, torch::tensor(popular_, torch::kInt64),
      counts_.t().to(scores.scalar_type()).expand({static_cast<int64_t>(popular_.size()), -1}));
}

Scorer::Scorer(std::shared_ptr<const TrainFacts> facts, const Abilities& abilities)
    : facts_(std::move(facts)), abilities_(abilities) {}

bool Scorer::trained(int64_t user) const {
  return user >= 0 && user < static_cast<int64_t>(facts_->trained_user.size()) &&
         facts_->trained_user[static_cast<size_t>(user)];
}

Via Scorer::via(int64_t user, bool has_history) const {
  if (abilities_.takes_histories) return has_history ? Via::history : Via::popular;
  return trained(user) ? Via::user : Via::popular;
}

std::vector<Via> Scorer::vias(const Queries& queries) const {
  std::vector<Via> out;
  for (int64_t row = 0; row < queries.size(); ++row) {
    const int64_t user = queries.user(row);
    // Without any histories a model of such reads the train rows.
    const bool has_history =
        queries.histories.defined() ? !queries.histories.row(row).empty() : trained(user);
    out.push_back(via(user, has_history));
  }
  return out;
}

BlockScores Scorer::rank(const Queries& queries) const {
  const torch::NoGradGuard no_gradients;
  BlockScores scores = own(queries);
  const auto vias = this->vias(queries);
  if (!personal()) return scores;
  for (size_t row = 0; row < vias.size(); ++row) {
    if (vias[row] == Via::popular) scores.popular_.push_back(static_cast<int64_t>(row));
  }
  if (!scores.popular_.empty()) scores.counts_ = facts_->column;
  return scores;
}

TopLists Scorer::top(const Queries& queries, const Ragged& mask, const torch::Tensor& hidden,
                     int64_t k) const {
  const torch::NoGradGuard no_gradients;
  const int64_t n = queries.size(), at_once = block(kListBlock);
  TopLists all{torch::empty({n, k}, torch::kInt32), torch::empty({n, k}, torch::kFloat)};
  for (int64_t first = 0; first < n; first += at_once) {
    const int64_t last = std::min(first + at_once, n);
    Queries part;
    if (queries.users.defined()) part.users = queries.users.slice(0, first, last);
    part.histories = queries.histories.rows(first, last);
    const TopLists lists = rank(part).top(mask.rows(first, last), hidden, k);
    all.items.slice(0, first, last).copy_(lists.items);
    all.scores.slice(0, first, last).copy_(lists.scores);
  }
  return all;
}

int64_t Scorer::block(int64_t wanted) const {
  const auto row_bytes = static_cast<int64_t>(sizeof(float)) * std::max<int64_t>(1, n_items());
  return std::clamp<int64_t>(kScoreBytes / row_bytes, 1, std::max<int64_t>(1, wanted));
}

bool Scorer::has_vector(int64_t item) const {
  const auto index = static_cast<size_t>(item);
  return facts_->counts[index] > 0 || (abilities_.ranks_cold_items && facts_->has_feature[index]);
}

torch::Tensor Scorer::fold_in(const Ragged& histories, FoldIn) const {
  const torch::Tensor vectors = item_vectors();
  if (!vectors.defined()) return {};
  torch::Tensor out = torch::zeros({histories.n_rows(), vectors.size(1)}, vectors.options());
  const auto* offset = histories.offsets.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < histories.n_rows(); ++row) {
    if (offset[row] == offset[row + 1]) continue;
    const auto items = histories.items.slice(0, offset[row], offset[row + 1]).to(torch::kInt64);
    out[row].copy_(vectors.index_select(0, items).mean(0));
  }
  return out;
}

Scorer::Spread Scorer::spread(const Random& random) const {
  const auto drawn = [&](auto has_row, int64_t n, uint64_t row) {
    std::vector<int64_t> out;
    for (int64_t i = 0; i < n; ++i) {
      if (has_row(i)) out.push_back(i);
    }
    random.stream("spread").shuffle(out, 0, row);
    out.resize(std::min<size_t>(out.size(), kSpread));
    return out;
  };
  const auto users = drawn([&](int64_t user) { return trained(user); },
                           static_cast<int64_t>(facts_->trained_user.size()), 0);
  const auto items =
      drawn([&](int64_t item) { return facts_->counts[static_cast<size_t>(item)] > 0; },
            static_cast<int64_t>(facts_->counts.size()), 1);
  double n = 0, sum = 0, squares = 0;
  const auto chosen = torch::tensor(items, torch::kInt64);
  const int64_t at_once = block(kSpread);
  for (size_t first = 0; first < users.size(); first += static_cast<size_t>(at_once)) {
    const auto last = std::min(users.size(), first + static_cast<size_t>(at_once));
    const std::vector<int64_t> some(users.begin() + static_cast<std::ptrdiff_t>(first),
                                    users.begin() + static_cast<std::ptrdiff_t>(last));
    const auto scores = this->scores({torch::tensor(some, torch::kInt64), {}})
                            .index_select(1, chosen)
                            .to(torch::kDouble);
    n += static_cast<double>(scores.numel());
    sum += scores.sum().item<double>();
    squares += scores.square().sum().item<double>();
  }
  if (n == 0) return {};
  const double mean = sum / n;
  return {mean, std::sqrt(std::max(0.0, squares / n - mean * mean))};
}

VectorScorer::VectorScorer(std::shared_ptr<const TrainFacts> facts, const Abilities& abilities,
                           Vectors vectors)
    : Scorer(std::move(facts), abilities),
      vectors_{vectors.users.detach().contiguous(), vectors.items.detach().contiguous()} {}

Via VectorScorer::via(int64_t user, bool has_history) const {
  if (trained(user)) return Via::user;
  return has_history ? Via::item_mean : Via::popular;
}

int64_t VectorScorer::block(int64_t wanted) const { return std::max<int64_t>(1, wanted); }

BlockScores VectorScorer::own(const Queries& queries) const {
  const auto& [users, items] = vectors_;
  torch::Tensor rows;
  if (queries.users.defined()) {
    rows = users.index_select(0, queries.users.clamp_min(0));
  } else {
    rows = torch::zeros({queries.size(), users.size(1)}, users.options());
  }
  if (queries.histories.defined()) {
    const auto vias = this->vias(queries);
    std::vector<int64_t> at;
    std::vector<std::vector<int32_t>> histories;
    for (size_t row = 0; row < vias.size(); ++row) {
      if (vias[row] != Via::item_mean) continue;
      const auto history = queries.histories.row(static_cast<int64_t>(row));
      at.push_back(static_cast<int64_t>(row));
      histories.emplace_back(history.begin(), history.end());
    }
    if (!at.empty()) {
      rows.index_copy_(0, torch::tensor(at, torch::kInt64),
                       fold_in(packed(histories), FoldIn::mean));
    }
  }
  return BlockScores(Vectors{rows, items});
}

std::shared_ptr<const VectorScorer> VectorScorer::with_items(const torch::Tensor& items) const {
  return std::make_shared<VectorScorer>(
      std::make_shared<const TrainFacts>(facts_->with_items(items.size(0))), abilities_,
      Vectors{vectors_.users, torch::cat({vectors_.items, items})});
}

PartScorer::PartScorer(std::shared_ptr<const TrainFacts> facts, const Abilities& abilities,
                       PartFactors all)
    : Scorer(std::move(facts), abilities), all_(std::move(all)) {}

Via PartScorer::via(int64_t user, bool) const { return trained(user) ? Via::user : Via::popular; }

BlockScores PartScorer::own(const Queries& queries) const {
  const auto users = queries.users.defined() ? queries.users.clamp_min(0)
                                             : torch::zeros({queries.size()}, torch::kInt64);
  return BlockScores(
      PartFactors{all_.users.index_select(0, users), all_.ids, all_.parts, all_.open});
}

std::shared_ptr<const PartScorer> PartScorer::with_items(const PartFactors& more) const {
  const int64_t n = more.ids.size(0);
  const auto joined = [&](const torch::Tensor& open, const torch::Tensor& of) {
    return open.defined() ? open : torch::ones({of.size(0), of.size(1)}, torch::kBool);
  };
  PartFactors all{all_.users, torch::cat({all_.ids, more.ids}),
                  torch::cat({all_.parts, more.parts}),
                  all_.open.defined() || more.open.defined()
                      ? torch::cat({joined(all_.open, all_.parts), joined(more.open, more.parts)})
                      : torch::Tensor()};
  return std::make_shared<PartScorer>(std::make_shared<const TrainFacts>(facts_->with_items(n)),
                                      abilities_, std::move(all));
}

}  // namespace tessera
