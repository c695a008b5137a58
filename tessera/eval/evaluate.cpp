#include "tessera/eval/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "tessera/base/error.h"
#include "tessera/eval/protocol_words.h"
#include "tessera/eval/ranking.h"
#include "tessera/ops/device.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Rows that may be absent, sorted and distinct.
Interactions distinct_or_none(const Interactions& rows) {
  return rows.n_rows() > 0 ? sorted_distinct(rows) : Interactions{};
}

const char* mask_name(Protocol::Mask mask) {
  switch (mask) {
    case Protocol::Mask::none:
      return "none";
    case Protocol::Mask::train:
      return "train";
    case Protocol::Mask::train_valid:
      return "train + valid";
  }
  return "";
}

/// How the dataset was split, "given" or a split's name; empty where nobody wrote it down.
std::string split_kind(const Dataset& data) {
  if (!data.about.is_object() || !data.about.contains("split")) return "";
  const Json& split = data.about["split"];
  if (!split.is_object() || !split.contains("kind") || !split["kind"].is_string()) return "";
  return split["kind"];
}

/// What a protocol masks of a user's ranking.
class UserMask {
 public:
  UserMask(const Dataset& data, const Protocol& protocol, Split split)
      : kind(split == Split::test ? protocol.mask_test : protocol.mask_valid),
        valid(split == Split::test ? distinct_or_none(data.valid) : Interactions{}),
        history(distinct_or_none(data.history)),
        train_(data.train_distinct) {}
  /// Appends the sorted masked items of a user.
  void append(int64_t user, std::vector<int32_t>& to) const {
    if (kind == Protocol::Mask::none) return;
    const auto start = static_cast<std::ptrdiff_t>(to.size());
    const auto add = [&](const Interactions& rows) {
      const auto row = row_of(rows, user);
      to.insert(to.end(), row.begin(), row.end());
    };
    add(train_);
    add(history);
    if (kind == Protocol::Mask::train_valid) add(valid);
    std::sort(to.begin() + start, to.end());
    to.erase(std::unique(to.begin() + start, to.end()), to.end());
  }

  const Protocol::Mask kind;
  const Interactions valid, history;  ///< sorted, distinct

 private:
  const Interactions& train_;
};

/// Whom a protocol averages, what each of them has held out, and what is masked.
class Plan {
 public:
  Plan(const Dataset& data, const Protocol& protocol, Split split);

  int64_t n_users() const { return static_cast<int64_t>(users.size()); }
  /// Distinct held-out items of the averaged user `index`, ascending.
  std::span<const int32_t> items_of(int64_t index) const { return slice(items, index); }
  /// How often each of them counts.
  std::span<const int32_t> times_of(int64_t index) const { return slice(times, index); }
  Json audit(const std::vector<int64_t>& topk) const;

  const Dataset& data;
  const Protocol& protocol;
  const Split split;
  const UserMask mask;
  std::vector<int64_t> users;  ///< averaged, ascending; with every_position once a held-out row
  std::vector<int64_t> held_before;  ///< every_position: the user's held-out rows before this one
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items, times;
  int64_t n_cold_users = 0, n_dropped_users = 0, n_distinct_users = 0;
  int64_t n_pairs = 0, n_dropped_pairs = 0, n_untrained_pairs = 0;
  int64_t n_masked_pairs = 0;  ///< kept though the ranking leaves their item out: misses

 private:
  std::span<const int32_t> slice(const std::vector<int32_t>& values, int64_t index) const {
    return std::span(values).subspan(offsets[index], offsets[index + 1] - offsets[index]);
  }
};

Plan::Plan(const Dataset& data, const Protocol& protocol, Split split)
    : data(data), protocol(protocol), split(split), mask(data, protocol, split) {
  const Interactions& rows = rows_of(data, split);
  if (protocol.every_position && data.valid.n_rows() > 0) {
    throw usage_error(
        "protocol '{}' is a fixed run without a valid set, '{}' has {} valid rows: import with "
        "`split` temporal-user `rounding` floor",
        protocol.name, data.name, data.valid.n_rows());
  }
  const std::vector<bool> trained = [&] {
    std::vector<bool> some(data.n_items, false);
    for (int64_t user = 0; user < data.train.n_users(); ++user) {
      for (const int32_t item : row_of(data.train, user)) some[item] = true;
    }
    return some;
  }();
  std::vector<int32_t> held, masked;
  for (int64_t user = 0; user < rows.n_users(); ++user) {
    const std::span<const int32_t> row = row_of(rows, user);
    if (row.empty()) continue;
    if (protocol.one_target && row.size() > 1) {
      throw usage_error(
          "protocol '{}' needs one {} row a user, user '{}' has {}: import with `split` "
          "leave-one-out, or choose `protocol` strict",
          protocol.name, split_name(split), printable(data.user_ids[user]), row.size());
    }
    const std::span<const int32_t> train = row_of(data.train_distinct, user);
    held.assign(row.begin(), row.end());
    std::sort(held.begin(), held.end());
    if (protocol.drop_repeats) {
      const std::span<const int32_t> valid = row_of(mask.valid, user),
                                     given = row_of(mask.history, user);
      held.erase(std::unique(held.begin(), held.end()), held.end());
      std::erase_if(held, [&](int32_t item) {
        return contains(train, item) || contains(valid, item) || contains(given, item);
      });
      n_dropped_pairs += static_cast<int64_t>(row.size() - held.size());
    }
    if (held.empty()) continue;
    ++n_distinct_users;
    if (train.empty()) {
      ++n_cold_users;
      if (!protocol.average_cold_users) {
        ++n_dropped_users;
        continue;
      }
    }
    if (protocol.every_position) {
      for (size_t t = 0; t < row.size(); ++t) {
        users.push_back(user);
        held_before.push_back(static_cast<int64_t>(t));
        items.push_back(row[t]);
        times.push_back(1);
        offsets.push_back(static_cast<int64_t>(items.size()));
        if (!trained[row[t]]) ++n_untrained_pairs;
      }
      n_pairs += static_cast<int64_t>(row.size());
      continue;
    }
    users.push_back(user);
    masked.clear();
    if (!protocol.drop_repeats) mask.append(user, masked);
    for (size_t i = 0; i < held.size(); ++i) {
      if (!trained[held[i]]) ++n_untrained_pairs;
      if (contains(masked, held[i])) ++n_masked_pairs;
      if (i > 0 && held[i] == held[i - 1]) {
        ++times.back();
      } else {
        items.push_back(held[i]);
        times.push_back(1);
      }
    }
    n_pairs += static_cast<int64_t>(held.size());
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
}

Json Plan::audit(const std::vector<int64_t>& topk) const {
  Json audit = {{"protocol", protocol.name},
                {"split", split_name(split)},
                {"mask", mask_name(mask.kind)},
                {"seen", seen_words(protocol)},
                {"selection_split", "valid"},
                {"rounding", protocol.round4 ? "4 decimals" : "none"},
                {"candidates", "all items"},
                {"users_averaged", n_users()},
                {"users_without_held_out_items", data.n_users - n_distinct_users},
                {"cold_users", n_cold_users},
                {"users_dropped", n_dropped_users},
                {"held_out_pairs", n_pairs},
                {"pairs_dropped_as_repeats", n_dropped_pairs},
                {"pairs_masked_as_repeats", n_masked_pairs},
                {"pairs_with_untrained_item", n_untrained_pairs},
                {"n_items", data.n_items},
                {"K", topk},
                {"notes", Json::array()}};
  if (split == Split::test && mask.kind == Protocol::Mask::train) {
    audit["notes"].push_back(fmt::format(
        "protocol {} masks train rows only: valid items compete with test items", protocol.name));
  }
  if (protocol.every_position) {
    audit["notes"].push_back(fmt::format(
        "protocol {} averages {} held-out rows, each with the rows before it as history, "
        "and selects nothing: its numbers stand in no table",
        protocol.name, n_users()));
  }
  const std::string kind = split_kind(data);
  if (protocol.name == "mmrec" && !kind.empty() && kind != "given" && kind != "random") {
    audit["notes"].push_back(fmt::format(
        "protocol mmrec is defined for given and random splits, this one is {}", printable(kind)));
  }
  if (protocol.one_target && !kind.empty() && kind != "given" && kind != "leave-one-out") {
    audit["notes"].push_back(
        fmt::format("protocol {} is defined for leave-one-out splits, this one is {}",
                    protocol.name, printable(kind)));
  }
  return audit;
}

/// The metrics and the K list after the checks against the catalogue.
struct Wanted {
  std::vector<Metric> metrics;
  std::vector<int64_t> topk;
  std::vector<std::string> notes;
  int64_t longest = 1;  ///< list length needed
  bool places = false;  ///< ranks of all held-out items needed
};

Wanted wanted_metrics(const Dataset& data, const Protocol& protocol, const EvalOptions& options) {
  Wanted wanted;
  const int64_t n_items = data.n_items;
  const auto refuse = [&](int64_t k) {
    return usage_error("topk {} is larger than the catalogue of {} items: choose at most {}", k,
                       n_items, n_items);
  };
  const auto put = [](std::vector<int64_t>& ks, int64_t k) {
    if (std::find(ks.begin(), ks.end(), k) == ks.end()) ks.push_back(k);
  };
  const bool given = options.topk_given && !options.topk.empty();
  for (const int64_t k : options.topk.empty() ? protocol.topk : options.topk) {
    if (k < 1) throw usage_error("topk must be at least 1, got {}", k);
    if (k > n_items && given) throw refuse(k);
    if (k > n_items) {
      wanted.notes.push_back(
          fmt::format("K {} is cut to the {} items of the catalogue", k, n_items));
    }
    put(wanted.topk, std::min(k, n_items));
  }
  for (Metric metric : expand_metrics(options.metrics, wanted.topk)) {
    if (metric.k > n_items) {
      if (metric != parse_metric(protocol.valid_metric)) throw refuse(metric.k);
      metric.k = n_items;
    }
    if (metric.kind == Metric::Kind::ild && data.feature(metric.modality) == nullptr) {
      std::vector<std::string> names;
      for (const Feature& feature : data.features) names.push_back(feature.name);
      throw usage_error("metric '{}': dataset '{}' has no modality '{}'{}: it has {}",
                        printable(metric.name()), data.name, printable(metric.modality),
                        did_you_mean(metric.modality, names),
                        names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")));
    }
    if (std::find(wanted.metrics.begin(), wanted.metrics.end(), metric) == wanted.metrics.end()) {
      wanted.metrics.push_back(metric);
    }
    wanted.longest = std::max(wanted.longest, std::min(metric.depth(), n_items));
    wanted.places = wanted.places || metric.whole_list();
  }
  return wanted;
}

/// One averaged user's list, and where the held-out items stand when that was asked for.
struct Answer {
  std::span<const int32_t> items;
  std::span<const Place> places;  ///< of the distinct held-out items, or empty
  int64_t n_candidates = 0;
};

/// Collects the answers of the averaged users, in their order, into metrics, slices and rows.
class Report {
 public:
  Report(const Plan& plan, const Wanted& wanted, const EvalOptions& options);
  /// Answers of the users from `first` on.
  void add(int64_t first, const std::vector<Answer>& answers);
  /// The same with candidates restricted to items without a train row.
  void add_cold_only(int64_t first, const std::vector<Answer>& answers);
  bool wants_cold_only() const { return cold_only_ >= 0; }
  bool is_untrained(int32_t item) const { return statistics_.counts[item] == 0; }
  Evaluation finish() const;

 private:
  struct SliceSums {
    std::string name;
    std::vector<bool> items;  // the held-out items that count; empty: all
    bool sparse_users;
    MetricSums sums;
  };
  void add_slice(const std::string& name, std::vector<bool> items, bool sparse_users = false);
  /// Fills hits_ and gives what the sums take of an answer; m = 0 when nothing of it counts.
  Ranked ranked(int64_t index, const Answer& answer, const std::vector<bool>* kept);
  std::vector<std::vector<double>> distances(const std::vector<Answer>& answers) const;

  const Plan& plan_;
  const Wanted& wanted_;
  const EvalOptions& options_;
  ItemStatistics statistics_;
  MetricSums sums_;
  std::vector<SliceSums> slices_;
  int64_t cold_only_ = -1;
  std::vector<int64_t> hits_;
  std::vector<std::vector<double>> per_user_;
};

Report::Report(const Plan& plan, const Wanted& wanted, const EvalOptions& options)
    : plan_(plan),
      wanted_(wanted),
      options_(options),
      statistics_(plan.data, options.tail_ratio),
      sums_(wanted.metrics, statistics_, options.map_norm == "relevant") {
  const Dataset& data = plan.data;
  std::vector<bool> cold(data.n_items);
  for (int64_t item = 0; item < data.n_items; ++item) cold[item] = statistics_.counts[item] == 0;
  if (options.slices) {
    add_slice("cold", cold);
    add_slice("tail", statistics_.tail);
    add_slice("sparse", {}, true);
    for (const Feature& feature : data.features) {
      std::vector<bool> missing(data.n_items);
      for (int64_t item = 0; item < data.n_items; ++item) missing[item] = !feature.has(item);
      add_slice("missing_" + feature.name, std::move(missing));
    }
  }
  // Nothing but cold items is held out: a cold-item split, reported with both candidate sets.
  if (plan.n_pairs > 0 && plan.n_untrained_pairs == plan.n_pairs) {
    cold_only_ = static_cast<int64_t>(slices_.size());
    add_slice("cold_only", std::move(cold));
  }
}

void Report::add_slice(const std::string& name, std::vector<bool> items, bool sparse_users) {
  slices_.push_back({name, std::move(items), sparse_users,
                     MetricSums(wanted_.metrics, statistics_, options_.map_norm == "relevant")});
}

Ranked Report::ranked(int64_t index, const Answer& answer, const std::vector<bool>* kept) {
  const std::span<const int32_t> held = plan_.items_of(index), times = plan_.times_of(index);
  const auto counts = [&](size_t i) { return kept == nullptr || (*kept)[held[i]]; };
  Ranked result;
  result.items = answer.items;
  hits_.clear();
  for (size_t i = 0; i < held.size(); ++i) result.m += counts(i) ? times[i] : 0;
  if (!answer.places.empty()) {
    for (size_t i = 0; i < held.size(); ++i) {
      if (counts(i) && answer.places[i].rank > 0) hits_.push_back(answer.places[i].rank);
    }
    std::sort(hits_.begin(), hits_.end());

    // Another held-out item lies above one exactly when fewer candidates lie above it.
    std::vector<int64_t> above;
    for (size_t i = 0; i < held.size(); ++i) {
      if (counts(i) && answer.places[i].rank > 0) above.push_back(answer.places[i].above);
    }
    std::sort(above.begin(), above.end());
    const auto n_others = answer.n_candidates - static_cast<int64_t>(above.size());
    double right = 0;
    for (size_t i = 0; i < held.size(); ++i) {
      const Place& place = answer.places[i];
      if (!counts(i) || place.rank <= 0) continue;
      const auto [first, last] = std::equal_range(above.begin(), above.end(), place.above);
      const int64_t others_above = place.above - (first - above.begin());
      const int64_t others_equal = place.equal - (last - first - 1);
      right += times[i] * (static_cast<double>(n_others - others_above - others_equal) +
                           0.5 * static_cast<double>(others_equal));
    }
    result.auc = n_others > 0 ? right / (static_cast<double>(result.m) * n_others) : kNan;
  } else {
    for (size_t r = 0; r < answer.items.size(); ++r) {
      const auto at = std::lower_bound(held.begin(), held.end(), answer.items[r]);
      if (at != held.end() && *at == answer.items[r] && counts(at - held.begin())) {
        hits_.push_back(static_cast<int64_t>(r) + 1);
      }
    }
  }
  result.hits = hits_;
  return result;
}

std::vector<std::vector<double>> Report::distances(const std::vector<Answer>& answers) const {
  std::vector<std::vector<double>> all(answers.size(),
                                       std::vector<double>(wanted_.metrics.size(), 0.0));
  for (const Feature& feature : plan_.data.features) {
    std::vector<std::pair<int64_t, size_t>> asked;  // K, metric
    for (size_t j = 0; j < wanted_.metrics.size(); ++j) {
      const Metric& metric = wanted_.metrics[j];
      if (metric.kind == Metric::Kind::ild && metric.modality == feature.name) {
        asked.emplace_back(metric.k, j);
      }
    }
    if (asked.empty()) continue;
    std::sort(asked.begin(), asked.end());
    std::vector<int64_t> ks;
    for (const auto& [k, j] : asked) ks.push_back(k);
    parallel_for(0, static_cast<int64_t>(answers.size()), 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const std::vector<double> values = intra_list_distances(feature, answers[i].items, ks);
        for (size_t a = 0; a < asked.size(); ++a) all[i][asked[a].second] = values[a];
      }
    });
  }
  return all;
}

void Report::add(int64_t first, const std::vector<Answer>& answers) {
  const std::vector<std::vector<double>> ild = distances(answers);
  for (size_t i = 0; i < answers.size(); ++i) {
    const int64_t index = first + static_cast<int64_t>(i), user = plan_.users[index];
    Ranked one = ranked(index, answers[i], nullptr);
    one.ild = ild[i];
    sums_.add(one);
    if (options_.per_user) {
      std::vector<double> row = {static_cast<double>(one.m)};
      for (const Metric& metric : wanted_.metrics) {
        if (!metric.per_user()) continue;
        row.push_back(metric.kind == Metric::Kind::auc
                          ? one.auc
                          : accuracy(metric, one.hits, one.m, options_.map_norm == "relevant"));
      }
      per_user_.push_back(std::move(row));
    }
    for (size_t s = 0; s < slices_.size(); ++s) {
      SliceSums& slice = slices_[s];
      if (static_cast<int64_t>(s) == cold_only_) continue;
      if (slice.sparse_users &&
          static_cast<int64_t>(row_of(plan_.data.train, user).size()) > options_.sparse_max) {
        continue;
      }
      Ranked part = ranked(index, answers[i], slice.items.empty() ? nullptr : &slice.items);
      part.ild = ild[i];
      if (part.m > 0) slice.sums.add(part);
    }
  }
}

void Report::add_cold_only(int64_t first, const std::vector<Answer>& answers) {
  const std::vector<std::vector<double>> ild = distances(answers);
  for (size_t i = 0; i < answers.size(); ++i) {
    Ranked one = ranked(first + static_cast<int64_t>(i), answers[i], nullptr);
    one.ild = ild[i];
    slices_[cold_only_].sums.add(one);
  }
}

Evaluation Report::finish() const {
  Evaluation result;
  result.split = split_name(plan_.split);
  result.metrics = sums_.values();
  result.n_users = sums_.n_users();
  for (const SliceSums& slice : slices_) {
    result.slices.push_back(
        {slice.name, slice.sums.n_users(), slice.sums.n_pairs(), slice.sums.values()});
  }
  result.audit = plan_.audit(wanted_.topk);
  for (const std::string& note : wanted_.notes) result.audit["notes"].push_back(note);
  if (cold_only_ >= 0) result.audit["candidates"] = "all items; slice cold_only: untrained items";
  for (const auto& [name, n] : sums_.users_without_pair()) {
    result.audit["users_without_pair"][name] = n;
  }
  if (options_.per_user) {
    result.per_user_columns = {fmt::format("n_{}", split_name(plan_.split))};
    for (const Metric& metric : wanted_.metrics) {
      if (metric.per_user()) result.per_user_columns.push_back(metric.name());
    }
    result.per_user_users = plan_.users;
    result.per_user = per_user_;
  }
  return result;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The averaged users [first, last) of a plan, ready to be ranked.
struct Block {
  Block(const Plan& plan, int64_t first, int64_t last);
  /// Ranks and hands the answers over.
  template <typename Take>
  void rank(const BlockScores& scores, const torch::Tensor& hidden, const Wanted& wanted,
            const Take& take) const;

  Ragged mask;  // undefined where nothing is masked
  Ragged held;
};

Block::Block(const Plan& plan, int64_t first, int64_t last) {
  std::vector<int32_t> masked;
  std::vector<int64_t> mask_offsets = {0}, held_offsets;
  for (int64_t index = first; index <= last; ++index) {
    held_offsets.push_back(plan.offsets[index] - plan.offsets[first]);
    if (index == last) break;
    plan.mask.append(plan.users[index], masked);
    mask_offsets.push_back(static_cast<int64_t>(masked.size()));
  }
  if (!masked.empty()) mask = packed(masked, mask_offsets);
  held = packed({plan.items.begin() + plan.offsets[first], plan.items.begin() + plan.offsets[last]},
                held_offsets);
}

template <typename Take>
void Block::rank(const BlockScores& scores, const torch::Tensor& hidden, const Wanted& wanted,
                 const Take& take) const {
  const TopLists lists = scores.top(mask, hidden, wanted.longest);
  Places places;
  if (wanted.places) places = scores.places(mask, hidden, held);
  const int64_t n = lists.items.size(0), k = lists.items.size(1);
  const int32_t* items = lists.items.const_data_ptr<int32_t>();
  const int64_t* offsets = held.offsets.const_data_ptr<int64_t>();
  std::vector<Answer> answers(n);
  for (int64_t i = 0; i < n; ++i) {
    const std::span<const int32_t> row(items + i * k, static_cast<size_t>(k));
    answers[i].items = row.first(std::find(row.begin(), row.end(), -1) - row.begin());
    if (!wanted.places) continue;
    answers[i].places = std::span(places.items).subspan(offsets[i], offsets[i + 1] - offsets[i]);
    answers[i].n_candidates = places.n_candidates[i];
  }
  take(answers);
}

/// Those who are answered by something else than what the model learned of them.
void note_fallbacks(Evaluation& result, const std::vector<int64_t>& by_via) {
  const auto note = [&](Via via, const char* key, const char* words) {
    const int64_t n = by_via[static_cast<size_t>(via)];
    if (n == 0) return;
    result.audit[key] = n;
    result.audit["notes"].push_back(
        fmt::format("{} users without a train row are answered by {}", n, words));
  };
  note(Via::item_mean, "users_answered_by_item_mean", "the mean of their history's item vectors");
  note(Via::popular, "users_answered_by_popularity", "popularity");
}

/// RecBole trains a sequence model on every prefix (protocol section 5).
void note_rows(Evaluation& result, const Protocol& protocol, Model& model) {
  if (protocol.name != "recbole-seq" || !model.trainable()) return;
  if (model.batch_spec().unit != BatchSpec::Unit::sequence_row) return;
  const auto rows = model.batch_spec().rows;
  if (rows == BatchSpec::Rows::prefix) return;
  result.audit["notes"].push_back(
      fmt::format("protocol recbole-seq trains on every prefix, this model was given rows = {}",
                  rows == BatchSpec::Rows::user ? "user" : "chunk"));
}

}  // namespace

double Evaluation::value(const std::string& metric) const {
  Metric wanted = parse_metric(metric);
  for (const auto& [name, value] : metrics) {
    if (name == wanted.name()) return value;
  }
  // A protocol's K that was cut to the catalogue.
  if (audit.is_object() && audit.contains("n_items") && wanted.k > audit["n_items"]) {
    wanted.k = audit["n_items"];
    for (const auto& [name, value] : metrics) {
      if (name == wanted.name()) return value;
    }
  }
  return kNan;
}

void check_evaluation(const Dataset& data, const Protocol& protocol, Split split,
                      const EvalOptions& options) {
  wanted_metrics(data, protocol, options);
  const Plan plan(data, protocol, split);
}

void all_lists(
    const Scorer& scorer, const Dataset& data, const Protocol& protocol, Split split, int64_t k,
    const std::function<void(int64_t, std::span<const int32_t>, std::span<const float>)>& take) {
  const UserMask mask(data, protocol, split);
  const int64_t block_size = scorer.block(2048);
  for (int64_t first = 0; first < data.n_users; first += block_size) {
    const int64_t last = std::min(first + block_size, data.n_users);
    std::vector<int64_t> users(static_cast<size_t>(last - first));
    std::iota(users.begin(), users.end(), first);
    std::vector<int32_t> masked;
    std::vector<int64_t> offsets = {0};
    for (const int64_t user : users) {
      mask.append(user, masked);
      offsets.push_back(static_cast<int64_t>(masked.size()));
    }
    const TopLists lists = scorer.rank(make_queries(scorer, data, protocol, split, users))
                               .top(packed(masked, offsets), {}, k);
    const auto* items = lists.items.const_data_ptr<int32_t>();
    const auto* values = lists.scores.const_data_ptr<float>();
    for (int64_t row = 0; row < last - first; ++row) {
      const std::span<const int32_t> all(items + row * k, static_cast<size_t>(k));
      const auto n = static_cast<size_t>(std::find(all.begin(), all.end(), -1) - all.begin());
      take(first + row, all.first(n), {values + row * k, n});
    }
  }
}

std::string canonical_metric(const std::string& name) { return parse_metric(name).name(); }

bool has_rows(const Dataset& data, Split split) { return rows_of(data, split).n_rows() > 0; }

std::string per_user_tsv(const Evaluation& evaluation, const Dataset& data) {
  std::string text = fmt::format("user\t{}\n", fmt::join(evaluation.per_user_columns, "\t"));
  for (size_t i = 0; i < evaluation.per_user.size(); ++i) {
    text += data.user_ids[evaluation.per_user_users[i]];
    for (const double value : evaluation.per_user[i]) text += fmt::format("\t{}", value);
    text += '\n';
  }
  return text;
}

Evaluation evaluate(const Scorer& scorer, const Dataset& data, const Protocol& protocol,
                    Split split, const EvalOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Wanted wanted = wanted_metrics(data, protocol, options);
  const Plan plan(data, protocol, split);
  Report report(plan, wanted, options);

  const int64_t block_size = scorer.block(options.eval_batch_size);
  std::vector<int64_t> by_via(4, 0);
  torch::Tensor trained;
  if (report.wants_cold_only()) trained = item_counts(data.train, data.n_items) > 0;
  for (int64_t first = 0; first < plan.n_users(); first += block_size) {
    if (options.stop_requested()) {
      throw RunError(Exit::interrupted_without_checkpoint, "interrupted");
    }
    const int64_t last = std::min(first + block_size, plan.n_users());
    const Block block(plan, first, last);
    const auto n = static_cast<size_t>(last - first);
    const auto part = [&](const std::vector<int64_t>& values) {
      return values.empty() ? std::span<const int64_t>() : std::span(values.data() + first, n);
    };
    const Queries queries = make_queries(scorer, data, protocol, split, part(plan.users),
                                         part(plan.held_before), options.shuffle_histories);
    if (scorer.personal()) {
      for (const Via via : scorer.vias(queries)) ++by_via[static_cast<size_t>(via)];
    }
    const BlockScores scores = scorer.rank(queries);
    block.rank(scores, {}, wanted, [&](const auto& answers) { report.add(first, answers); });
    if (report.wants_cold_only()) {
      block.rank(scores, trained, wanted,
                 [&](const auto& answers) { report.add_cold_only(first, answers); });
    }
  }
  Evaluation result = report.finish();
  note_fallbacks(result, by_via);
  result.time_s = seconds_since(start);
  return result;
}

Evaluation evaluate(Model& model, const Dataset& data, const Protocol& protocol, Split split,
                    const EvalOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const ReferenceOps plain(model.settings().reference());
  Evaluation result = evaluate(*model.freeze(), data, protocol, split, options);
  note_rows(result, protocol, model);
  result.time_s = seconds_since(start);
  return result;
}

Evaluation evaluate_lists(const RecommendationLists& lists, const Dataset& data,
                          const Protocol& protocol, Split split, const EvalOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Wanted wanted = wanted_metrics(data, protocol, options);
  for (const Metric& metric : wanted.metrics) {
    if (metric.kind == Metric::Kind::auc) {
      throw usage_error(
          "metric 'auc' needs the scores of all items, a file of lists has the best "
          "ones only: leave it out");
    }
    if (metric.whole_list()) {
      throw usage_error(
          "metric '{0}' reads the whole ranking, a file of lists has the best ones only: "
          "use {0}@K, such as {0}@{1}",
          metric.name(), wanted.topk.empty() ? 20 : wanted.topk.back());
    }
  }
  const Plan plan(data, protocol, split);
  Report report(plan, wanted, options);
  int64_t n_masked = 0, n_without = 0, n_short = 0;
  const auto list_of = [&](int64_t user, bool cold_only) {
    std::vector<int32_t> mask, list;
    plan.mask.append(user, mask);
    for (const int32_t item : lists.items[user]) {
      if (contains(mask, item)) {
        n_masked += cold_only ? 0 : 1;
      } else if (!cold_only || report.is_untrained(item)) {
        list.push_back(item);
      }
    }
    return list;
  };
  for (int64_t index = 0; index < plan.n_users(); ++index) {
    const int64_t user = plan.users[index];
    if (lists.items[user].empty()) ++n_without;
    const std::vector<int32_t> list = list_of(user, false);
    if (const auto length = static_cast<int64_t>(list.size());
        length < wanted.longest && !lists.items[user].empty()) {
      std::vector<int32_t> mask;
      plan.mask.append(user, mask);
      n_short += length < data.n_items - static_cast<int64_t>(mask.size()) ? 1 : 0;
    }
    report.add(index, {{.items = list, .places = {}, .n_candidates = 0}});
    if (report.wants_cold_only()) {
      const std::vector<int32_t> cold = list_of(user, true);
      report.add_cold_only(index, {{.items = cold, .places = {}, .n_candidates = 0}});
    }
  }
  Evaluation result = report.finish();
  result.audit["lists"] = lists.audit;
  result.audit["lists"]["masked_items_removed"] = n_masked;
  result.audit["lists"]["averaged_users_without_a_list"] = n_without;
  result.audit["lists"]["averaged_users_with_a_short_list"] = n_short;
  result.time_s = seconds_since(start);
  return result;
}

}  // namespace tessera
