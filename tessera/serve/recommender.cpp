#include "tessera/serve/recommender.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tessera/base/error.h"
#include "tessera/eval/evaluate.h"
#include "tessera/eval/ranking.h"
#include "tessera/folder/manifest.h"
#include "tessera/ops/topk.h"

namespace tessera {
namespace {

constexpr float kNotCandidate = -std::numeric_limits<float>::infinity();
constexpr int64_t kUserBlock = 8192;  // lists that are made at once
constexpr int64_t kItemBlock = 4096;
constexpr int64_t kFeatureBytes = int64_t{128} << 20;  // feature rows held at once

/// Rows at length 1; rows of zeros stay.
torch::Tensor unit_rows(const torch::Tensor& rows) {
  return rows / torch::linalg_vector_norm(rows, 2, {1}, true).clamp_min(1e-30);
}

/// bool [n]: rows that are zero have no direction.
torch::Tensor zero_rows(const torch::Tensor& rows) { return rows.abs().amax(1) == 0; }

/// Each query's own item as the mask of its list.
RankMask without_itself(const std::vector<int64_t>& items, const torch::Tensor& barred) {
  return {torch::arange(static_cast<int64_t>(items.size()) + 1, torch::kInt64),
          torch::tensor(items, torch::kInt64).to(torch::kInt32), barred};
}

std::vector<Neighbours> neighbours_of(const std::vector<int64_t>& items, const TopK& best,
                                      int64_t n) {
  std::vector<Neighbours> out(items.size());
  const auto* item = best.items.const_data_ptr<int32_t>();
  const auto* score = best.scores.const_data_ptr<float>();
  for (size_t i = 0; i < items.size(); ++i) {
    out[i].item = items[i];
    for (int64_t r = 0; r < n; ++r, ++item, ++score) {
      if (*item >= 0 && *score != kNotCandidate) out[i].items.push_back({*item, *score});
    }
  }
  return out;
}

Ragged packed(const std::vector<std::vector<int32_t>>& rows) {
  std::vector<int32_t> items;
  std::vector<int64_t> offsets = {0};
  for (const auto& row : rows) {
    items.insert(items.end(), row.begin(), row.end());
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return {torch::tensor(items, torch::kInt32), torch::tensor(offsets, torch::kInt64)};
}

}  // namespace

/// One list to make: how it is scored, what is left out, and where it goes.
struct Recommender::Query {
  int64_t user = -1;
  std::vector<int32_t> history, mask;
  Answer* to = nullptr;
};

Recommender::Recommender(Bundle bundle, Log log)
    : bundle_(std::move(bundle)), log_(std::move(log)) {
  is_popularity_ = bundle_.about.value("model", "") == "Popularity";
  factor_ = dynamic_cast<FactorModel*>(bundle_.model.get());
  abilities_ = bundle_.model->abilities();
  seen_ = sorted_distinct(data().known);
  hidden_ = torch::zeros({data().n_items}, torch::kBool);
  auto* hidden = hidden_.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < data().n_items; ++i) hidden[i] = data().item_columns.hidden(i);
  const torch::Tensor counts = item_counts(data().train, data().n_items);
  const auto* count = counts.const_data_ptr<int64_t>();
  popularity_.assign(count, count + data().n_items);
  by_popularity_.resize(popularity_.size());
  std::iota(by_popularity_.begin(), by_popularity_.end(), 0);
  std::stable_sort(by_popularity_.begin(), by_popularity_.end(),
                   [&](int32_t a, int32_t b) { return popularity_[a] > popularity_[b]; });
}

void Recommender::check_n(int64_t n) const {
  if (n < 1 || n > data().n_items) {
    throw usage_error("-n must be from 1 to {}, the number of items in the catalogue, got {}",
                      data().n_items, n);
  }
}

int64_t Recommender::item_index(const std::string& id, const char* what) const {
  const int32_t item = data().item_ids.find(id);
  if (item < 0) {
    throw usage_error("{}no item '{}' in the bundle{}; item_map.tsv lists all {}", what,
                      printable(id), did_you_mean(id, data().item_ids.ids()), data().n_items);
  }
  return item;
}

/// bool [n_items]: what no list of this ask may hold.
torch::Tensor Recommender::barred(const std::vector<std::string>& only,
                                  const std::vector<std::string>& exclude) const {
  torch::Tensor out = hidden_.clone();
  auto* flags = out.mutable_data_ptr<bool>();
  if (!only.empty()) {
    std::vector<char> wanted(data().n_items, 0);
    size_t n_unknown = 0;
    for (const auto& id : only) {
      const int32_t item = data().item_ids.find(id);
      if (item < 0) {
        ++n_unknown;
      } else {
        wanted[item] = 1;
      }
    }
    if (n_unknown == only.size()) item_index(only.front(), "only: none of its ids is known: ");
    if (n_unknown > 0) {
      log_.warn("only: {} of {} ids are no items of the bundle", n_unknown, only.size());
    }
    for (int64_t i = 0; i < data().n_items; ++i) flags[i] = flags[i] || !wanted[i];
  }
  int64_t n_unknown = 0;
  for (const auto& id : exclude) {
    const int32_t item = data().item_ids.find(id);
    if (item < 0) {
      ++n_unknown;
    } else {
      flags[item] = true;
    }
  }
  if (n_unknown > 0) {
    log_.warn("exclude: {} of {} ids are no items of the bundle", n_unknown, exclude.size());
  }
  return out;
}

std::vector<Answer> Recommender::recommend(const Ask& ask) {
  std::vector<Answer> out;
  recommend(ask, [&](Answer&& answer) { out.push_back(std::move(answer)); });
  return out;
}

void Recommender::recommend(const Ask& ask, const std::function<void(Answer&&)>& take) {
  check_n(ask.n);
  if (ask.users.empty() && ask.history.empty() && !ask.all_users) {
    throw usage_error("nobody to recommend to: give users or a history");
  }
  if (!ask.history.empty() && (ask.users.size() > 1 || ask.all_users)) {
    throw usage_error("a history belongs to one user, {} users given",
                      ask.all_users ? data().n_users : static_cast<int64_t>(ask.users.size()));
  }
  std::vector<int32_t> history;
  for (const auto& id : ask.history) {
    history.push_back(static_cast<int32_t>(item_index(id, "history: ")));
  }
  std::vector<int64_t> users;
  for (const auto& id : ask.users) {
    const int32_t user = data().user_ids.find(id);
    if (user < 0 && history.empty()) {
      throw usage_error("no user '{}' in the bundle{}; give a new user's items as a history",
                        printable(id), did_you_mean(id, data().user_ids.ids()));
    }
    users.push_back(user);
  }
  if (users.empty() && !ask.all_users) users.push_back(-1);
  const torch::Tensor barred_items = barred(ask.only, ask.exclude);
  const auto* flags = barred_items.const_data_ptr<bool>();
  const auto n_users = ask.all_users ? data().n_users : static_cast<int64_t>(users.size());

  for (int64_t first = 0; first < n_users; first += kUserBlock) {
    const int64_t size = std::min(kUserBlock, n_users - first);
    std::vector<Answer> answers(size);
    std::vector<Query> by_model, by_history;
    for (int64_t i = 0; i < size; ++i) {
      Answer& answer = answers[i];
      Query query;
      query.user = ask.all_users ? first + i : users[first + i];
      query.to = &answer;
      if (ask.all_users) {
        answer.user = data().user_ids[query.user];
      } else if (!ask.users.empty()) {
        answer.user = ask.users[first + i];
      }
      if (ask.filter_seen) {
        query.mask = history;
        if (query.user >= 0) {
          const auto seen = seen_.of(query.user);
          query.mask.insert(query.mask.end(), seen.begin(), seen.end());
        }
        std::sort(query.mask.begin(), query.mask.end());
        query.mask.erase(std::unique(query.mask.begin(), query.mask.end()), query.mask.end());
      }
      const bool trained = query.user >= 0 && !data().train.of(query.user).empty();
      if (is_popularity_ || (!abilities_.takes_histories && trained)) {
        answer.via = is_popularity_ ? "popular" : "user";
        by_model.push_back(std::move(query));
        continue;
      }
      query.history = history;
      if (history.empty() && query.user >= 0) {
        const auto known = data().known.of(query.user);
        query.history.assign(known.begin(), known.end());
      }
      if (!query.history.empty() && (abilities_.takes_histories || factor_)) {
        answer.via = abilities_.takes_histories ? "history" : "item mean";
        if (!abilities_.takes_histories) query.user = -1;
        by_history.push_back(std::move(query));
        continue;
      }
      answer.via = "popular";
      for (const int32_t item : by_popularity_) {
        if (static_cast<int64_t>(answer.items.size()) == ask.n) break;
        if (flags[item] || contains(query.mask, item)) continue;
        answer.items.push_back({item, static_cast<double>(popularity_[item])});
      }
    }
    this->answer(by_model, barred_items, ask.n);
    this->answer(by_history, barred_items, ask.n);
    for (Answer& answer : answers) take(std::move(answer));
  }
}

/// Scores by the model and empties `queries`.
void Recommender::answer(std::vector<Query>& queries, const torch::Tensor& barred, int64_t n) {
  if (queries.empty()) return;
  std::vector<int64_t> users;
  std::vector<std::vector<int32_t>> histories, masks;
  bool any_history = false;
  for (Query& query : queries) {
    users.push_back(query.user);
    any_history = any_history || !query.history.empty();
    histories.push_back(std::move(query.history));
    masks.push_back(std::move(query.mask));
  }
  Queries asked;
  asked.users = torch::tensor(users, torch::kInt64);
  if (any_history) asked.histories = packed(histories);
  const torch::NoGradGuard no_grad;
  const TopLists lists = top_lists(*bundle_.model, asked, packed(masks), barred, n);
  const auto items = lists.items.to(torch::kCPU).contiguous();
  const auto scores = lists.scores.to(torch::kCPU).contiguous();
  const auto* item = items.const_data_ptr<int32_t>();
  const auto* score = scores.const_data_ptr<float>();
  for (size_t q = 0; q < queries.size(); ++q) {
    for (int64_t r = 0; r < n; ++r, ++item, ++score) {
      if (*item >= 0) queries[q].to->items.push_back({*item, *score});
    }
  }
  queries.clear();
}

/// Refuses what the bundle cannot compare by, and single items that it knows nothing of.
void Recommender::check_can_compare(const AskSimilar& ask, const Feature* feature,
                                    const std::vector<int64_t>& items) {
  if (!feature && !factor_ && !abilities_.takes_histories) {
    throw usage_error("{} has neither item vectors nor item similarities{}",
                      bundle_.about.value("model", "the model"),
                      data().features.empty()
                          ? ", and the bundle has no features to compare by"
                          : fmt::format("; use --by {}", data().features.front().name));
  }
  if (ask.all_items) return;
  for (const int64_t item : items) {
    if (feature && !feature->has(item)) {
      throw usage_error("item '{}' has no {} feature; {} of {} items have one",
                        printable(item_id(item)), feature->name,
                        feature->present().sum().item<int64_t>(), data().n_items);
    }
    if (feature) {
      const torch::Tensor row = feature->gather(torch::tensor({item}, torch::kInt64));
      if (row.abs().sum().item<float>() == 0) {
        throw usage_error("item '{}': its {} feature is all zeros, which is near to nothing",
                          printable(item_id(item)), feature->name);
      }
    } else if (factor_ && unit_items_[item].abs().sum().item<float>() == 0) {
      throw usage_error(
          "item '{}' has no collaborative vector (no train row){}", printable(item_id(item)),
          data().features.empty() ? ""
                                  : fmt::format("; use --by {}", data().features.front().name));
    }
  }
}

std::vector<Neighbours> Recommender::by_vectors(const std::vector<int64_t>& items,
                                                const torch::Tensor& barred, int64_t n) {
  const torch::Tensor index = torch::tensor(items, torch::kInt64);
  const TopK best = top_k_product(unit_items_.index_select(0, index), unit_items_,
                                  without_itself(items, barred), n);
  return neighbours_of(items, best, n);
}

std::vector<Neighbours> Recommender::by_histories(const std::vector<int64_t>& items,
                                                  const torch::Tensor& barred, int64_t n) {
  Queries asked;
  asked.users = torch::full({static_cast<int64_t>(items.size())}, -1, torch::kInt64);
  asked.histories = {torch::tensor(items, torch::kInt64).to(torch::kInt32),
                     torch::arange(static_cast<int64_t>(items.size()) + 1, torch::kInt64)};
  torch::Tensor scores = bundle_.model->score(asked).to(torch::kFloat);
  // Zero: nothing in common.
  scores = scores.masked_fill(scores == 0, kNotCandidate);
  return neighbours_of(items, top_k_scores(scores, without_itself(items, barred), n), n);
}

/// Cosine of feature rows, piece by piece of the catalogue.
std::vector<Neighbours> Recommender::by_feature(const Feature& feature,
                                                const std::vector<int64_t>& items,
                                                const torch::Tensor& barred, int64_t n) const {
  const torch::Tensor asked =
      unit_rows(feature.gather(torch::tensor(items, torch::kInt64)).to(torch::kFloat));
  const int64_t width = std::max<int64_t>(1, feature.width());
  const int64_t piece =
      std::clamp<int64_t>(kFeatureBytes / (4 * width), 1024, data().n_items + 1024);
  std::vector<Neighbours> out(items.size());
  for (size_t i = 0; i < items.size(); ++i) out[i].item = items[i];
  for (int64_t begin = 0; begin < data().n_items; begin += piece) {
    const int64_t end = std::min(begin + piece, data().n_items);
    const torch::Tensor rows = feature.gather(torch::arange(begin, end, torch::kInt64));
    const torch::Tensor out_of_play = barred.slice(0, begin, end).logical_or(zero_rows(rows));
    std::vector<int32_t> masked;
    std::vector<int64_t> offsets = {0};
    for (const int64_t item : items) {
      if (item >= begin && item < end) masked.push_back(static_cast<int32_t>(item - begin));
      offsets.push_back(static_cast<int64_t>(masked.size()));
    }
    const TopK best = top_k_product(
        asked, unit_rows(rows),
        {torch::tensor(offsets, torch::kInt64), torch::tensor(masked, torch::kInt32), out_of_play},
        std::min(n, end - begin));
    const auto some = neighbours_of(items, best, std::min(n, end - begin));
    for (size_t i = 0; i < items.size(); ++i) {
      auto& all = out[i].items;
      const auto middle = static_cast<std::ptrdiff_t>(all.size());
      for (const ScoredItem& one : some[i].items) all.push_back({one.item + begin, one.score});
      // Ties to the lower index: the earlier piece stands first.
      std::inplace_merge(
          all.begin(), all.begin() + middle, all.end(),
          [](const ScoredItem& a, const ScoredItem& b) { return a.score > b.score; });
      if (static_cast<int64_t>(all.size()) > n) all.resize(n);
    }
  }
  return out;
}

std::vector<ScoredItem> Recommender::similar(const std::string& item, int64_t n,
                                             const std::string& by) {
  AskSimilar ask;
  ask.items = {item};
  ask.n = n;
  ask.by = by;
  std::vector<ScoredItem> out;
  similar(ask, [&](Neighbours&& found) { out = std::move(found.items); });
  return out;
}

int64_t Recommender::similar(const AskSimilar& ask, const std::function<void(Neighbours&&)>& take) {
  check_n(ask.n);
  std::vector<int64_t> items;
  for (const auto& id : ask.items) items.push_back(item_index(id, ""));
  const Feature* feature = nullptr;
  if (squeezed(ask.by) != "cf") {
    std::vector<std::string> ways = {"cf"};
    for (const auto& each : data().features) ways.push_back(each.name);
    feature = data().feature(canonical_modality(ask.by));
    if (!feature) {
      throw usage_error("the bundle cannot compare by '{}'{}: it has {}", printable(ask.by),
                        did_you_mean(ask.by, ways), fmt::join(ways, ", "));
    }
    bundle_.check(feature->name + "_feat.npy");
  }
  const torch::NoGradGuard no_grad;
  torch::Tensor gone = barred(ask.only, ask.exclude);
  torch::Tensor empty = torch::zeros({data().n_items}, torch::kBool);
  if (!feature && factor_) {
    if (!unit_items_.defined()) {
      unit_items_ = unit_rows(factor_->item_vectors().to(torch::kFloat)).contiguous();
    }
    empty = zero_rows(unit_items_).contiguous();
  } else if (feature) {
    empty = feature->present().logical_not().contiguous();
  }
  check_can_compare(ask, feature, items);
  int64_t left_out = 0;
  if (ask.all_items) {
    const auto* hidden = hidden_.const_data_ptr<bool>();
    const auto* none = empty.const_data_ptr<bool>();
    for (int64_t item = 0; item < data().n_items; ++item) {
      if (hidden[item]) continue;
      if (none[item]) {
        ++left_out;
      } else {
        items.push_back(item);
      }
    }
  }
  gone = gone.logical_or(empty).contiguous();
  const bool whole_rows = !feature && !factor_;
  const int64_t block = whole_rows ? ranking_block(*bundle_.model, kItemBlock) : kItemBlock;
  for (size_t first = 0; first < items.size(); first += static_cast<size_t>(block)) {
    const size_t last = std::min(items.size(), first + static_cast<size_t>(block));
    const std::vector<int64_t> some(items.begin() + static_cast<std::ptrdiff_t>(first),
                                    items.begin() + static_cast<std::ptrdiff_t>(last));
    auto found = feature   ? by_feature(*feature, some, gone, ask.n)
                 : factor_ ? by_vectors(some, gone, ask.n)
                           : by_histories(some, gone, ask.n);
    for (auto& one : found) take(std::move(one));
  }
  return left_out;
}

}  // namespace tessera
