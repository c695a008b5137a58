#include "tessera/serve/recommender.h"

#include <algorithm>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/folder/manifest.h"
#include "tessera/ops/topk.h"
#include "tessera/ops/unit_rows.h"

namespace tessera {
namespace {

constexpr float kNotCandidate = -std::numeric_limits<float>::infinity();
constexpr int64_t kUserBlock = 8192;  // lists that are made at once
constexpr int64_t kItemBlock = 4096;
constexpr int64_t kFeatureBytes = int64_t{128} << 20;  // feature rows held at once

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

void check_n(const Version& version, int64_t n) {
  if (n < 1 || n > version.catalogue->size()) {
    throw usage_error("`n` must be from 1 to {}, the number of items in the catalogue, got {}",
                      version.catalogue->size(), n);
  }
}

int64_t item_index(const Version& version, const std::string& id, const char* what) {
  const int64_t item = version.catalogue->find(id);
  if (item < 0) {
    throw usage_error("{}no item '{}' in the bundle{}; item_map.tsv lists all {}", what,
                      printable(id), version.catalogue->nearest(id), version.catalogue->size());
  }
  return item;
}

/// bool [n_items]: what no list of this ask may hold.
torch::Tensor barred(const Version& version, const std::vector<std::string>& only,
                     const std::vector<std::string>& exclude, const Log& log) {
  const Catalogue& catalogue = *version.catalogue;
  torch::Tensor out = catalogue.hidden().clone();
  auto* flags = out.mutable_data_ptr<bool>();
  if (!only.empty()) {
    std::vector<char> wanted(static_cast<size_t>(catalogue.size()), 0);
    size_t n_unknown = 0;
    for (const auto& id : only) {
      const int64_t item = catalogue.find(id);
      if (item < 0) {
        ++n_unknown;
      } else {
        wanted[static_cast<size_t>(item)] = 1;
      }
    }
    if (n_unknown == only.size())
      item_index(version, only.front(), "only: none of its ids is known: ");
    if (n_unknown > 0) {
      log.warn("only: {} of {} ids are no items of the bundle", n_unknown, only.size());
    }
    for (int64_t i = 0; i < catalogue.size(); ++i)
      flags[i] = flags[i] || !wanted[static_cast<size_t>(i)];
  }
  int64_t n_unknown = 0;
  for (const auto& id : exclude) {
    const int64_t item = catalogue.find(id);
    if (item < 0) {
      ++n_unknown;
    } else {
      flags[item] = true;
    }
  }
  if (n_unknown > 0) {
    log.warn("exclude: {} of {} ids are no items of the bundle", n_unknown, exclude.size());
  }
  return out;
}

/// False also for items that came after training.
bool has_row(const Feature& feature, int64_t item) {
  return item < feature.n_items() && feature.has(item);
}

/// Refuses what the bundle cannot compare by, and single items that it knows nothing of.
void check_can_compare(const Version& version, const AskSimilar& ask, const Feature* feature,
                       const std::vector<int64_t>& items) {
  const auto& features = version.data->features;
  const bool by_vectors = version.unit_items.defined();
  if (!feature && !by_vectors && !version.scorer->abilities().takes_histories) {
    throw usage_error("{} has neither item vectors nor item similarities{}", version.model,
                      features.empty() ? ", and the bundle has no features to compare by"
                                       : fmt::format("; use `by` {}", features.front().name));
  }
  if (ask.all_items) return;
  for (const int64_t item : items) {
    if (feature && item >= version.data->n_items) {
      throw usage_error("item '{}' came after training: it is compared by cf only",
                        printable(version.catalogue->id(item)));
    }
    if (feature && !has_row(*feature, item)) {
      throw usage_error("item '{}' has no {} feature; {} of {} items have one",
                        printable(version.catalogue->id(item)), feature->name,
                        feature->present().sum().item<int64_t>(), version.data->n_items);
    }
    if (feature) {
      const torch::Tensor row = feature->gather(torch::tensor({item}, torch::kInt64));
      if (row.abs().sum().item<float>() == 0) {
        throw usage_error("item '{}': its {} feature is all zeros, which is near to nothing",
                          printable(version.catalogue->id(item)), feature->name);
      }
    } else if (by_vectors && version.unit_items[item].abs().sum().item<float>() == 0) {
      throw usage_error(
          "item '{}' has no collaborative vector (no train row){}",
          printable(version.catalogue->id(item)),
          features.empty() ? "" : fmt::format("; use `by` {}", features.front().name));
    }
  }
}

std::vector<Neighbours> by_vectors(const Version& version, const std::vector<int64_t>& items,
                                   const torch::Tensor& barred, int64_t n) {
  const torch::Tensor index = torch::tensor(items, torch::kInt64);
  const TopK best = top_k_product(version.unit_items.index_select(0, index), version.unit_items,
                                  without_itself(items, barred), n);
  return neighbours_of(items, best, n);
}

std::vector<Neighbours> by_histories(const Version& version, const std::vector<int64_t>& items,
                                     const torch::Tensor& barred, int64_t n) {
  Queries asked;
  asked.users = torch::full({static_cast<int64_t>(items.size())}, -1, torch::kInt64);
  asked.histories = {torch::tensor(items, torch::kInt64).to(torch::kInt32),
                     torch::arange(static_cast<int64_t>(items.size()) + 1, torch::kInt64)};
  torch::Tensor scores = version.scorer->scores(asked).to(torch::kFloat);
  // Zero: nothing in common.
  scores = scores.masked_fill(scores == 0, kNotCandidate);
  return neighbours_of(items, top_k_scores(scores, without_itself(items, barred), n), n);
}

/// Cosine of feature rows, piece by piece of the catalogue.
std::vector<Neighbours> by_feature(const Feature& feature, const std::vector<int64_t>& items,
                                   const torch::Tensor& barred, int64_t n) {
  const int64_t n_items = feature.n_items();
  const torch::Tensor asked =
      unit_rows(feature.gather(torch::tensor(items, torch::kInt64)).to(torch::kFloat));
  const int64_t width = std::max<int64_t>(1, feature.width());
  const int64_t piece = std::clamp<int64_t>(kFeatureBytes / (4 * width), 1024, n_items + 1024);
  std::vector<Neighbours> out(items.size());
  for (size_t i = 0; i < items.size(); ++i) out[i].item = items[i];
  for (int64_t begin = 0; begin < n_items; begin += piece) {
    const int64_t end = std::min(begin + piece, n_items);
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

}  // namespace

Recommender::Recommender(std::shared_ptr<const Version> version, Log log)
    : now_(std::move(version)), log_(std::move(log)) {}

std::shared_ptr<const Version> Recommender::version() const {
  const std::lock_guard lock(mutex_);
  return now_;
}

void Recommender::exchange(std::shared_ptr<const Version> version) {
  const std::lock_guard lock(mutex_);
  now_.swap(version);
}

void Recommender::add_items(const NewItems& items) {
  const std::lock_guard lock(adding_);
  exchange(with_items(*version(), items));
}

std::vector<Answer> Recommender::recommend(const Ask& ask) const {
  std::vector<Answer> out;
  recommend(ask, [&](Answer&& answer) { out.push_back(std::move(answer)); });
  return out;
}

void Recommender::recommend(const Ask& ask, const std::function<void(Answer&&)>& take) const {
  const auto now = version();
  const Dataset& data = *now->data;
  check_n(*now, ask.n);
  if (ask.users.empty() && ask.history.empty() && !ask.all_users) {
    throw usage_error("nobody to recommend to: give users or a history");
  }
  if (!ask.history.empty() && (ask.users.size() > 1 || ask.all_users)) {
    throw usage_error("a history belongs to one user, {} users given",
                      ask.all_users ? data.n_users : static_cast<int64_t>(ask.users.size()));
  }
  std::vector<int32_t> history;
  for (const auto& id : ask.history) {
    history.push_back(static_cast<int32_t>(item_index(*now, id, "history: ")));
  }
  std::vector<int64_t> users;
  for (const auto& id : ask.users) {
    const int32_t user = data.user_ids.find(id);
    if (user < 0 && history.empty()) {
      throw usage_error("no user '{}' in the bundle{}; give a new user's items as a history",
                        printable(id), did_you_mean(id, data.user_ids.near(id)));
    }
    users.push_back(user);
  }
  if (users.empty() && !ask.all_users) users.push_back(-1);
  const torch::Tensor without = barred(*now, ask.only, ask.exclude, log_);
  const auto n_users = ask.all_users ? data.n_users : static_cast<int64_t>(users.size());
  const bool takes_histories = now->scorer->abilities().takes_histories;

  for (int64_t first = 0; first < n_users; first += kUserBlock) {
    const int64_t size = std::min(kUserBlock, n_users - first);
    std::vector<int64_t> asked;
    std::vector<std::vector<int32_t>> histories, masks;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t user = ask.all_users ? first + i : users[first + i];
      std::vector<int32_t> mask, of = history;
      if (ask.filter_seen) {
        mask = history;
        if (user >= 0) {
          const auto seen = now->seen.of(user);
          mask.insert(mask.end(), seen.begin(), seen.end());
        }
        std::sort(mask.begin(), mask.end());
        mask.erase(std::unique(mask.begin(), mask.end()), mask.end());
      }
      const bool has_vector = !takes_histories && user >= 0 && !data.train.of(user).empty();
      if (of.empty() && user >= 0 && !has_vector) {
        const auto known = data.known.of(user);
        of.assign(known.begin(), known.end());
      }
      asked.push_back(user);
      histories.push_back(std::move(of));
      masks.push_back(std::move(mask));
    }
    const Queries queries{torch::tensor(asked, torch::kInt64), packed(histories)};
    const auto vias = now->scorer->vias(queries);
    const TopLists lists = now->scorer->top(queries, packed(masks), without, ask.n);
    const auto* item = lists.items.const_data_ptr<int32_t>();
    const auto* score = lists.scores.const_data_ptr<float>();
    for (int64_t i = 0; i < size; ++i) {
      Answer answer;
      answer.via = vias[static_cast<size_t>(i)];
      if (ask.all_users) {
        answer.user = data.user_ids[first + i];
      } else if (!ask.users.empty()) {
        answer.user = ask.users[first + i];
      }
      for (int64_t r = 0; r < ask.n; ++r, ++item, ++score) {
        if (*item >= 0) answer.items.push_back({*item, *score});
      }
      take(std::move(answer));
    }
  }
}

std::vector<ScoredItem> Recommender::similar(const std::string& item, int64_t n,
                                             const std::string& by) const {
  AskSimilar ask;
  ask.items = {item};
  ask.n = n;
  ask.by = by;
  std::vector<ScoredItem> out;
  similar(ask, [&](Neighbours&& found) { out = std::move(found.items); });
  return out;
}

int64_t Recommender::similar(const AskSimilar& ask,
                             const std::function<void(Neighbours&&)>& take) const {
  const auto now = version();
  const Dataset& data = *now->data;
  const bool vectors = now->unit_items.defined();
  check_n(*now, ask.n);
  std::vector<int64_t> items;
  for (const auto& id : ask.items) items.push_back(item_index(*now, id, ""));
  const Feature* feature = nullptr;
  if (squeezed(ask.by) != "cf") {
    std::vector<std::string> ways = {"cf"};
    for (const auto& each : data.features) ways.push_back(each.name);
    feature = data.feature(canonical_modality(ask.by));
    if (!feature) {
      throw usage_error("the bundle cannot compare by '{}'{}: it has {}", printable(ask.by),
                        did_you_mean(ask.by, ways), fmt::join(ways, ", "));
    }
    if (std::find(now->unread.begin(), now->unread.end(), feature->name) != now->unread.end()) {
      throw usage_error("the bundle was loaded without the rows of '{}'", feature->name);
    }
  }
  const torch::NoGradGuard no_grad;
  torch::Tensor gone = barred(*now, ask.only, ask.exclude, log_);
  const int64_t n_items = now->catalogue->size();
  torch::Tensor empty = torch::zeros({n_items}, torch::kBool);
  if (!feature && vectors) {
    empty = zero_rows(now->unit_items).contiguous();
  } else if (feature) {
    empty.fill_(true).slice(0, 0, data.n_items).copy_(feature->present().logical_not());
  }
  check_can_compare(*now, ask, feature, items);
  int64_t left_out = 0;
  if (ask.all_items) {
    const auto* hidden = now->catalogue->hidden().const_data_ptr<bool>();
    const auto* none = empty.const_data_ptr<bool>();
    for (int64_t item = 0; item < n_items; ++item) {
      if (hidden[item]) continue;
      if (none[item]) {
        ++left_out;
      } else {
        items.push_back(item);
      }
    }
  }
  gone = gone.logical_or(empty).contiguous();
  const bool whole_rows = !feature && !vectors;
  const int64_t block = whole_rows ? now->scorer->block(kItemBlock) : kItemBlock;
  for (size_t first = 0; first < items.size(); first += static_cast<size_t>(block)) {
    const size_t last = std::min(items.size(), first + static_cast<size_t>(block));
    const std::vector<int64_t> some(items.begin() + static_cast<std::ptrdiff_t>(first),
                                    items.begin() + static_cast<std::ptrdiff_t>(last));
    auto found = feature   ? by_feature(*feature, some, gone, ask.n)
                 : vectors ? by_vectors(*now, some, gone, ask.n)
                           : by_histories(*now, some, gone, ask.n);
    for (auto& one : found) take(std::move(one));
  }
  return left_out;
}

}  // namespace tessera
