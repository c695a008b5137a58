#include "tessera/serve/recommender.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/data/manifest.h"
#include "tessera/eval/evaluate.h"

namespace tessera {
namespace {

constexpr int64_t kBlock = 1024;  // queries, or feature rows, held at once
constexpr float kNotCandidate = -std::numeric_limits<float>::infinity();

/// The n best of `scores`, ties to the lower index, without those marked kNotCandidate.
std::vector<ScoredItem> best_of(const std::vector<float>& scores, int64_t n) {
  std::vector<int32_t> order;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (std::isnan(scores[i])) {
      throw RunError(Exit::diverged, "a score is not a number: the model's weights hold NaN");
    }
    if (scores[i] != kNotCandidate) order.push_back(static_cast<int32_t>(i));
  }
  const size_t count = std::min(order.size(), static_cast<size_t>(n));
  std::partial_sort(
      order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
      [&](int32_t a, int32_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
  std::vector<ScoredItem> out;
  for (size_t r = 0; r < count; ++r) out.push_back({order[r], scores[order[r]]});
  return out;
}

/// Cosine of each row of `rows` [n, width] with `to` [width]; kNotCandidate for zero rows.
void cosines(const torch::Tensor& rows, const torch::Tensor& to, float* out) {
  const torch::Tensor products = torch::mv(rows, to).contiguous();
  const torch::Tensor norms = torch::linalg_vector_norm(rows, 2, {1}).contiguous();
  const float to_norm = torch::linalg_vector_norm(to).item<float>();
  const auto* product = products.const_data_ptr<float>();
  const auto* norm = norms.const_data_ptr<float>();
  for (int64_t i = 0; i < rows.size(0); ++i) {
    out[i] = norm[i] == 0 ? kNotCandidate : product[i] / (norm[i] * to_norm);
  }
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
torch::Tensor Recommender::barred(const Ask& ask) const {
  torch::Tensor out = hidden_.clone();
  auto* flags = out.mutable_data_ptr<bool>();
  if (!ask.only.empty()) {
    std::vector<char> wanted(data().n_items, 0);
    for (const auto& id : ask.only) wanted[item_index(id, "only: ")] = 1;
    for (int64_t i = 0; i < data().n_items; ++i) flags[i] = flags[i] || !wanted[i];
  }
  int64_t n_unknown = 0;
  for (const auto& id : ask.exclude) {
    const int32_t item = data().item_ids.find(id);
    if (item < 0) {
      ++n_unknown;
    } else {
      flags[item] = true;
    }
  }
  if (n_unknown > 0) {
    log_.warn("exclude: {} of {} ids are no items of the bundle", n_unknown, ask.exclude.size());
  }
  return out;
}

std::vector<Answer> Recommender::recommend(const Ask& ask) {
  check_n(ask.n);
  if (ask.users.empty() && ask.history.empty()) {
    throw usage_error("nobody to recommend to: give users or a history");
  }
  if (!ask.history.empty() && ask.users.size() > 1) {
    throw usage_error("a history belongs to one user, {} users given", ask.users.size());
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
  if (users.empty()) users.push_back(-1);
  const torch::Tensor barred_items = barred(ask);

  std::vector<Answer> answers(users.size());
  std::vector<Query> by_model, by_history, by_count;
  auto flush = [&] {
    answer(by_model, barred_items, ask.n);
    answer(by_history, barred_items, ask.n);
    for (Query& query : by_count) {
      std::vector<float> scores = popularity_;
      const auto* flags = barred_items.const_data_ptr<bool>();
      for (size_t i = 0; i < scores.size(); ++i) {
        if (flags[i]) scores[i] = kNotCandidate;
      }
      for (const int32_t item : query.mask) scores[item] = kNotCandidate;
      query.to->items = best_of(scores, ask.n);
    }
    by_count.clear();
  };
  for (size_t i = 0; i < users.size(); ++i) {
    Query query;
    query.user = users[i];
    query.to = &answers[i];
    if (!ask.users.empty()) answers[i].user = ask.users[i];
    query.history = history;
    if (history.empty() && query.user >= 0) {
      const auto known = data().known.of(query.user);
      query.history.assign(known.begin(), known.end());
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
    if (is_popularity_) {
      answers[i].via = "popular";
      query.history.clear();
      by_model.push_back(std::move(query));
    } else if (abilities_.takes_histories && !query.history.empty()) {
      answers[i].via = "history";
      by_history.push_back(std::move(query));
    } else if (!abilities_.takes_histories && trained) {
      answers[i].via = "user";
      query.history.clear();
      by_model.push_back(std::move(query));
    } else if (factor_ && !query.history.empty()) {
      answers[i].via = "item mean";
      query.user = -1;
      by_history.push_back(std::move(query));
    } else {
      answers[i].via = "popular";
      by_count.push_back(std::move(query));
    }
    if (static_cast<int64_t>(by_model.size() + by_history.size() + by_count.size()) >= kBlock) {
      flush();
    }
  }
  flush();
  return answers;
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

std::vector<float> Recommender::collaborative(int64_t item) {
  const torch::NoGradGuard no_grad;
  std::vector<float> scores(data().n_items, kNotCandidate);
  if (factor_) {
    const torch::Tensor vectors = factor_->item_vectors().to(torch::kFloat).contiguous();
    if (vectors[item].abs().sum().item<float>() == 0) {
      throw usage_error(
          "item '{}' has no collaborative vector (no train row){}", printable(item_id(item)),
          data().features.empty() ? ""
                                  : fmt::format("; use --by {}", data().features.front().name));
    }
    cosines(vectors, vectors[item], scores.data());
  } else if (abilities_.takes_histories) {
    Queries asked;
    asked.users = torch::tensor({int64_t{-1}}, torch::kInt64);
    asked.histories = packed({{static_cast<int32_t>(item)}});
    const torch::Tensor row = bundle_.model->score(asked).to(torch::kFloat).contiguous();
    const auto* score = row.const_data_ptr<float>();
    for (int64_t i = 0; i < data().n_items; ++i) {
      if (score[i] != 0) scores[i] = score[i];  // zero: nothing in common
    }
  } else {
    throw usage_error("{} has neither item vectors nor item similarities{}",
                      bundle_.about.value("model", "the model"),
                      data().features.empty()
                          ? ", and the bundle has no features to compare by"
                          : fmt::format("; use --by {}", data().features.front().name));
  }
  return scores;
}

std::vector<float> Recommender::by_feature(const Feature& feature, int64_t item) const {
  if (!feature.has(item)) {
    throw usage_error("item '{}' has no {} feature; {} of {} items have one",
                      printable(item_id(item)), feature.name,
                      feature.present().sum().item<int64_t>(), data().n_items);
  }
  const torch::Tensor to = feature.gather(torch::tensor({item}, torch::kInt64))[0];
  std::vector<float> scores(data().n_items, kNotCandidate);
  if (to.abs().sum().item<float>() == 0) {
    throw usage_error("item '{}': its {} feature is all zeros, which is near to nothing",
                      printable(item_id(item)), feature.name);
  }
  for (int64_t begin = 0; begin < data().n_items; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, data().n_items);
    cosines(feature.gather(torch::arange(begin, end, torch::kInt64)), to, scores.data() + begin);
  }
  return scores;
}

std::vector<ScoredItem> Recommender::similar(const std::string& item, int64_t n,
                                             const std::string& by) {
  check_n(n);
  const int64_t index = item_index(item, "");
  std::vector<float> scores;
  if (squeezed(by) == "cf") {
    scores = collaborative(index);
  } else {
    std::vector<std::string> ways = {"cf"};
    for (const auto& feature : data().features) ways.push_back(feature.name);
    const Feature* feature = data().feature(canonical_modality(by));
    if (!feature) {
      throw usage_error("the bundle cannot compare by '{}'{}: it has {}", printable(by),
                        did_you_mean(by, ways), fmt::join(ways, ", "));
    }
    scores = by_feature(*feature, index);
  }
  scores[index] = kNotCandidate;
  const auto* hidden = hidden_.const_data_ptr<bool>();
  for (int64_t i = 0; i < data().n_items; ++i) {
    if (hidden[i]) scores[i] = kNotCandidate;
  }
  return best_of(scores, n);
}

}  // namespace tessera
