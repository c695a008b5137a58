#include "tessera/eval/ranking.h"

#include <algorithm>

#include "tessera/base/error.h"
#include "tessera/model/part_ranked.h"
#include "tessera/model/sequence_model.h"
#include "tessera/ops/topk.h"

namespace tessera {
namespace {

constexpr int64_t kScoreBytes = int64_t{256} << 20;
constexpr int64_t kListBlock = 4096;

Ragged rows(const Ragged& all, int64_t first, int64_t last) {
  if (!all.defined()) return {};
  const auto* offsets = all.offsets.const_data_ptr<int64_t>();
  return {all.items.slice(0, offsets[first], offsets[last]),
          all.offsets.slice(0, first, last + 1) - offsets[first]};
}

}  // namespace

const Interactions& rows_of(const Dataset& data, Split split) {
  if (split == Split::valid) return data.valid;
  if (split == Split::test) return data.test;
  throw usage_error("split '{}' holds nothing out: choose valid or test", split_name(split));
}

std::span<const int32_t> row_of(const Interactions& rows, int64_t user) {
  return rows.n_rows() > 0 ? rows.of(user) : std::span<const int32_t>();
}

Ragged packed(const std::vector<int32_t>& items, const std::vector<int64_t>& offsets) {
  return {torch::tensor(items, torch::kInt32), torch::tensor(offsets, torch::kInt64)};
}

bool is_sequential(const Model& model) {
  return model.abilities().takes_histories &&
         model.batch_spec().unit == BatchSpec::Unit::sequence_row;
}

Queries make_queries(const Model& model, const Dataset& data, const Protocol& protocol, Split split,
                     std::span<const int64_t> users, std::span<const int64_t> held_before,
                     std::optional<uint64_t> shuffle) {
  Queries queries;
  queries.users = torch::tensor(std::vector<int64_t>(users.begin(), users.end()), torch::kInt64);
  const bool sequential = is_sequential(model);
  if (!sequential && data.history.n_rows() == 0) return queries;
  const bool with_valid = sequential && split == Split::test && protocol.sequential_sees_valid;
  std::vector<int32_t> items;
  std::vector<int64_t> offsets = {0};
  for (size_t index = 0; index < users.size(); ++index) {
    const int64_t user = users[index];
    for (const Interactions* rows : {&data.history, &data.train, &data.valid}) {
      if (rows == &data.valid && !with_valid) continue;
      const std::span<const int32_t> row = row_of(*rows, user);
      items.insert(items.end(), row.begin(), row.end());
    }
    if (sequential && !held_before.empty()) {
      const auto held = row_of(rows_of(data, split), user);
      items.insert(items.end(), held.begin(), held.begin() + held_before[index]);
    }
    if (sequential && shuffle) {
      const auto begin = items.begin() + offsets.back();
      std::vector<int32_t> history(begin, items.end());
      Random(*shuffle, "evaluate/shuffle").shuffle(history, 0, static_cast<uint64_t>(user));
      std::copy(history.begin(), history.end(), begin);
    }
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  queries.histories = packed(items, offsets);
  return queries;
}

int64_t ranking_block(Model& model, int64_t wanted) {
  wanted = std::max<int64_t>(1, wanted);
  if (dynamic_cast<FactorModel*>(&model) != nullptr) return wanted;
  const auto row_bytes =
      static_cast<int64_t>(sizeof(float)) * std::max<int64_t>(1, model.data().n_items);
  return std::clamp<int64_t>(kScoreBytes / row_bytes, 1, wanted);
}

BlockScores::BlockScores(Model& model, const Queries& queries) : model_(model), queries_(queries) {
  if (auto* factors = dynamic_cast<FactorModel*>(&model)) {
    users_ = factors->user_vectors(queries);
    items_ = factors->item_vectors();
  } else if (auto* sequence = dynamic_cast<SequenceModel*>(&model)) {
    const auto factors = sequence->factors(queries);
    users_ = factors.users;
    items_ = factors.items;
  } else if (auto* parts = dynamic_cast<PartRanked*>(&model)) {
    parts_ = parts->part_factors(queries);
  }
}

const torch::Tensor& BlockScores::scores() const {
  if (!scores_.defined()) scores_ = model_.score(queries_);
  return scores_;
}

TopLists BlockScores::top(const Ragged& mask, const torch::Tensor& hidden, int64_t k) const {
  const RankMask without{mask.offsets, mask.items, hidden};
  const TopK best = users_.defined() ? top_k_product(users_, items_, without, k)
                    : parts_         ? top_k_parts(*parts_, without, k)
                                     : top_k_scores(scores(), without, k);
  return {best.items, best.scores};
}

Places BlockScores::places(const Ragged& mask, const torch::Tensor& hidden,
                           const Ragged& held) const {
  const RankMask without{mask.offsets, mask.items, hidden};
  const Ranks ranks = users_.defined()
                          ? count_above_product(users_, items_, without, held.offsets, held.items)
                          : count_above_scores(scores(), without, held.offsets, held.items);
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
    std::span<const int32_t> masked;
    if (mask.defined()) {
      const auto* offsets = mask.offsets.const_data_ptr<int64_t>();
      masked = {mask.items.const_data_ptr<int32_t>() + offsets[row],
                static_cast<size_t>(offsets[row + 1] - offsets[row])};
    }
    for (int64_t j = held_offsets[row]; j < held_offsets[row + 1]; ++j) {
      if (contains(masked, held_items[j]) || (gone != nullptr && gone[held_items[j]])) continue;
      places.items[j] = {.rank = greater[j] + lower[j] + 1, .above = greater[j], .equal = other[j]};
    }
  }
  return places;
}

TopLists top_lists(Model& model, const Queries& queries, const Ragged& mask,
                   const torch::Tensor& hidden, int64_t k) {
  const torch::NoGradGuard no_gradients;
  if (model.training()) model.train(false);
  const int64_t n = queries.size(), block = ranking_block(model, kListBlock);
  TopLists all{torch::empty({n, k}, torch::kInt32), torch::empty({n, k}, torch::kFloat)};
  for (int64_t first = 0; first < n; first += block) {
    const int64_t last = std::min(first + block, n);
    Queries part;
    if (queries.users.defined()) part.users = queries.users.slice(0, first, last);
    part.histories = rows(queries.histories, first, last);
    const TopLists lists = BlockScores(model, part).top(rows(mask, first, last), hidden, k);
    all.items.slice(0, first, last).copy_(lists.items);
    all.scores.slice(0, first, last).copy_(lists.scores);
  }
  return all;
}

}  // namespace tessera
