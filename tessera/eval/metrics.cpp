#include "tessera/eval/metrics.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>

#include "tessera/base/error.h"

namespace tessera {
namespace {

using Kind = Metric::Kind;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kRetrieved = 50;  // places whose hits make the ideal of ndcg_retrieved
constexpr const char* kIldPrefix = "ild_";

struct Name {
  Kind kind;
  const char* name;
  std::vector<const char*> aliases;
};

const std::vector<Name>& names() {
  static const std::vector<Name> all = {
      {Kind::recall, "recall", {}},
      {Kind::precision, "precision", {}},
      {Kind::hit, "hit", {"hitrate", "hit_ratio", "hr"}},
      {Kind::mrr, "mrr", {"rr"}},
      {Kind::map, "map", {}},
      {Kind::ndcg, "ndcg", {}},
      {Kind::ndcg_retrieved, "ndcg_retrieved", {"ndcg_retrieved_ideal"}},
      {Kind::f1, "f1", {"FMeasure"}},
      {Kind::recall_pooled, "recall_pooled", {"micro_recall", "Recall2"}},
      {Kind::auc, "auc", {"GAUC"}},
      {Kind::item_coverage, "item_coverage", {}},
      {Kind::item_count, "item_count", {}},
      {Kind::user_coverage, "user_coverage", {}},
      {Kind::gini, "gini", {"GiniIndex"}},
      {Kind::shannon_entropy, "shannon_entropy", {"entropy"}},
      {Kind::average_popularity, "average_popularity", {"arp"}},
      {Kind::aplt, "aplt", {}},
      {Kind::tail_percentage, "tail_percentage", {}},
      {Kind::epc, "epc", {}},
      {Kind::novelty, "novelty", {}},
  };
  return all;
}

double discount(int64_t rank) { return 1 / std::log2(static_cast<double>(rank) + 1); }

/// sum_{r=1..n} 1 / log2(r + 1).
double ideal(int64_t n) {
  constexpr int64_t kTable = 1024;
  static const std::vector<double> sums = [] {
    std::vector<double> all(kTable + 1, 0.0);
    for (int64_t r = 1; r <= kTable; ++r) all[r] = all[r - 1] + discount(r);
    return all;
  }();
  if (n <= kTable) return sums[n];
  double sum = sums[kTable];
  for (int64_t r = kTable + 1; r <= n; ++r) sum += discount(r);
  return sum;
}

bool counts_items(Kind kind) {
  return kind == Kind::item_coverage || kind == Kind::item_count || kind == Kind::gini ||
         kind == Kind::shannon_entropy;
}

int64_t parse_k(const std::string& typed, std::string_view text) {
  int64_t k = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), k);
  if (error != std::errc() || end != text.data() + text.size() || k < 1) {
    throw usage_error("metric '{}': expected a whole number of at least 1 after '@', got '{}'",
                      printable(typed), printable(text));
  }
  return k;
}

}  // namespace

double value_of(const MetricValues& values, const std::string& name) {
  const auto at = std::find_if(values.begin(), values.end(),
                               [&](const auto& one) { return one.first == name; });
  return at == values.end() ? kNan : at->second;
}

std::string Metric::name() const {
  std::string text;
  if (kind == Kind::ild) {
    text = kIldPrefix + modality;
  } else {
    for (const Name& entry : names()) {
      if (entry.kind == kind) text = entry.name;
    }
  }
  return k > 0 ? fmt::format("{}@{}", text, k) : text;
}

bool Metric::per_user() const { return kind <= Kind::f1 || kind == Kind::auc; }

bool Metric::higher_is_better() const {
  return kind != Kind::gini && kind != Kind::average_popularity;
}

int64_t Metric::depth() const { return kind == Kind::ndcg_retrieved ? std::max(k, kRetrieved) : k; }

bool Metric::whole_list() const { return kind == Kind::auc || (per_user() && k == 0); }

Metric parse_metric(const std::string& typed) {
  const size_t at = typed.find('@');
  const std::string text = typed.substr(0, at);
  Metric metric;
  if (at != std::string::npos) metric.k = parse_k(typed, std::string_view(typed).substr(at + 1));

  const std::string wanted = squeezed(text);
  if (wanted.size() > 3 && wanted.starts_with("ild") && text.size() > 4) {
    metric.kind = Kind::ild;
    metric.modality = text.substr(4);
    for (char& c : metric.modality) c = static_cast<char>(std::tolower(static_cast<uint8_t>(c)));
    if (text[3] == '_' || text[3] == '-') return metric;
  }
  std::vector<std::string> known;
  for (const Name& entry : names()) {
    bool same = squeezed(entry.name) == wanted;
    for (const char* alias : entry.aliases) same = same || squeezed(alias) == wanted;
    if (same) {
      metric.kind = entry.kind;
      if (metric.kind == Kind::auc && metric.k > 0) {
        throw usage_error("metric 'auc' is over all candidates and takes no K, got '{}'",
                          printable(typed));
      }
      return metric;
    }
    known.push_back(entry.name);
  }
  known.push_back("ild_<modality>");
  throw usage_error("no metric '{}'{}: metrics are {}", printable(typed), did_you_mean(text, known),
                    fmt::join(known, ", "));
}

const std::vector<std::string>& default_metrics() {
  static const std::vector<std::string> all = {"recall", "ndcg", "precision", "hit", "map", "mrr"};
  return all;
}

std::vector<Metric> expand_metrics(const std::vector<std::string>& names,
                                   const std::vector<int64_t>& topk) {
  std::vector<Metric> all;
  const auto put = [&](const Metric& metric) {
    if (std::find(all.begin(), all.end(), metric) == all.end()) all.push_back(metric);
  };
  const auto put_each = [&](Metric metric) {
    for (const int64_t k : topk) {
      metric.k = k;
      put(metric);
    }
  };
  const std::vector<std::string>& defaults = default_metrics();
  const bool are_defaults = names.empty() || names == defaults;
  for (const std::string& name : names.empty() ? defaults : names) {
    const Metric metric = parse_metric(name);
    const bool whole = metric.kind == Kind::auc ||
                       (!are_defaults && (metric.kind == Kind::mrr || metric.kind == Kind::map));
    if (metric.k > 0 || whole) {
      put(metric);
    } else {
      put_each(metric);
    }
  }
  return all;
}

double accuracy(const Metric& metric, std::span<const int64_t> hits, int64_t m, bool map_relevant) {
  const int64_t k = metric.k > 0 ? metric.k : std::numeric_limits<int64_t>::max();
  const auto n = static_cast<int64_t>(std::upper_bound(hits.begin(), hits.end(), k) - hits.begin());
  const std::span<const int64_t> within = hits.first(n);
  const auto relevant = static_cast<double>(m);
  switch (metric.kind) {
    case Kind::recall:
      return static_cast<double>(n) / relevant;
    case Kind::precision:
      return static_cast<double>(n) / static_cast<double>(k);
    case Kind::hit:
      return n > 0 ? 1 : 0;
    case Kind::mrr:
      return n > 0 ? 1 / static_cast<double>(within[0]) : 0;
    case Kind::map: {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<double>(i + 1) / static_cast<double>(within[i]);
      }
      return sum / static_cast<double>(map_relevant ? m : std::min(m, k));
    }
    case Kind::ndcg:
    case Kind::ndcg_retrieved: {
      if (n == 0) return 0;
      double sum = 0;
      for (const int64_t rank : within) sum += discount(rank);
      if (metric.kind == Kind::ndcg) return sum / ideal(std::min(m, k));
      const int64_t retrieved =
          std::upper_bound(hits.begin(), hits.end(), kRetrieved) - hits.begin();
      return sum / ideal(std::min(std::max(n, retrieved), k));
    }
    case Kind::f1: {
      const double p = static_cast<double>(n) / static_cast<double>(k);
      const double r = static_cast<double>(n) / relevant;
      return n > 0 ? 2 * p * r / (p + r) : 0;
    }
    default:
      throw std::logic_error("accuracy() knows no " + metric.name());
  }
}

double gini(std::vector<int64_t> counts) {
  std::sort(counts.begin(), counts.end());
  const auto n = static_cast<int64_t>(counts.size());
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  if (total == 0) return 0;
  double sum = 0;
  for (int64_t j = 1; j <= n; ++j) {
    sum += static_cast<double>(2 * j - n - 1) * static_cast<double>(counts[j - 1]);
  }
  return sum / (static_cast<double>(n) * total);
}

double shannon_entropy(const std::vector<int64_t>& counts) {
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  double sum = 0;
  for (const int64_t count : counts) {
    if (count == 0) continue;
    const double p = static_cast<double>(count) / total;
    sum -= p * std::log(p);
  }
  return sum;
}

ItemStatistics::ItemStatistics(const Dataset& data, double tail_ratio)
    : counts(data.n_items, 0), tail(data.n_items, true), ratio_tail(data.n_items, false) {
  const int32_t* items =
      data.train.n_rows() > 0 ? data.train.items.const_data_ptr<int32_t>() : nullptr;
  for (int64_t row = 0; row < data.train.n_rows(); ++row) ++counts[items[row]];
  for (int64_t user = 0; user < data.train.n_users(); ++user) {
    n_train_users += data.train.of(user).empty() ? 0 : 1;
  }

  std::vector<int32_t> order(data.n_items);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return counts[a] > counts[b]; });
  const int64_t total = data.train.n_rows();
  int64_t covered = 0;
  for (size_t j = 0; j < order.size() && 5 * covered < 4 * total; ++j) {
    covered += counts[order[j]];
    tail[order[j]] = false;
  }

  std::iota(order.begin(), order.end(), 0);
  std::erase_if(order, [&](int32_t item) { return counts[item] == 0; });
  if (tail_ratio > 1) {
    for (const int32_t item : order) {
      ratio_tail[item] = static_cast<double>(counts[item]) <= tail_ratio;
    }
  } else if (!order.empty()) {
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return counts[a] < counts[b]; });
    // The small addend keeps .29 * 100 at 29.
    const auto n = static_cast<int64_t>(tail_ratio * static_cast<double>(order.size()) + 1e-9);
    const int64_t n_tail = std::clamp<int64_t>(n, 1, static_cast<int64_t>(order.size()));
    for (int64_t j = 0; j < n_tail; ++j) ratio_tail[order[j]] = true;
  }
}

MetricSums::MetricSums(const std::vector<Metric>& metrics, const ItemStatistics& statistics,
                       bool map_relevant)
    : metrics_(metrics),
      statistics_(&statistics),
      map_relevant_(map_relevant),
      sums_(metrics.size(), 0.0),
      counted_(metrics.size(), 0) {
  for (const Metric& metric : metrics_) {
    if (counts_items(metric.kind)) recommended_[metric.k].assign(statistics.counts.size(), 0);
  }
}

void MetricSums::add(const Ranked& user) {
  ++n_users_;
  n_pairs_ += user.m;
  for (auto& [k, counts] : recommended_) {
    const size_t n = std::min(user.items.size(), static_cast<size_t>(k));
    for (size_t r = 0; r < n; ++r) ++counts[user.items[r]];
  }
  for (size_t j = 0; j < metrics_.size(); ++j) {
    const Metric& metric = metrics_[j];
    const auto k = static_cast<size_t>(metric.k);
    const std::span<const int32_t> list = user.items.first(std::min(user.items.size(), k));
    const auto hits_within = [&] {
      return static_cast<double>(std::upper_bound(user.hits.begin(), user.hits.end(), metric.k) -
                                 user.hits.begin());
    };
    const auto share = [&](const std::vector<bool>& set) {
      if (list.empty()) return 0.0;
      int64_t n = 0;
      for (const int32_t item : list) n += set[item] ? 1 : 0;
      return static_cast<double>(n) / static_cast<double>(list.size());
    };
    const auto surprise = [&](int32_t item) {
      if (statistics_->n_train_users == 0) return 1.0;
      return 1 - static_cast<double>(statistics_->counts[item]) /
                     static_cast<double>(statistics_->n_train_users);
    };
    double value = 0;
    switch (metric.kind) {
      case Kind::recall_pooled:
        value = hits_within();
        break;
      case Kind::auc:
        value = user.auc;
        break;
      case Kind::item_coverage:
      case Kind::item_count:
      case Kind::gini:
      case Kind::shannon_entropy:
        break;
      case Kind::user_coverage:
        value = hits_within() > 0 ? 1 : 0;
        break;
      case Kind::average_popularity: {
        double sum = 0;
        for (const int32_t item : list) sum += static_cast<double>(statistics_->counts[item]);
        value = list.empty() ? 0 : sum / static_cast<double>(list.size());
        break;
      }
      case Kind::aplt:
        value = share(statistics_->tail);
        break;
      case Kind::tail_percentage:
        value = share(statistics_->ratio_tail);
        break;
      case Kind::epc: {
        double sum = 0;
        for (const int64_t rank : user.hits) {
          if (rank > static_cast<int64_t>(list.size())) break;
          sum += discount(rank) * surprise(list[rank - 1]);
        }
        value = sum / ideal(metric.k);
        break;
      }
      case Kind::novelty: {
        double sum = 0;
        for (size_t r = 0; r < list.size(); ++r) {
          sum += discount(static_cast<int64_t>(r) + 1) * surprise(list[r]);
        }
        value = sum / ideal(metric.k);
        break;
      }
      case Kind::ild:
        if (std::isnan(user.ild[j])) continue;
        value = user.ild[j];
        break;
      default:
        value = accuracy(metric, user.hits, user.m, map_relevant_);
    }
    sums_[j] += value;
    ++counted_[j];
  }
}

MetricValues MetricSums::values() const {
  MetricValues all;
  for (size_t j = 0; j < metrics_.size(); ++j) {
    const Metric& metric = metrics_[j];
    double value = kNan;
    if (n_users_ > 0 && counts_items(metric.kind)) {
      const std::vector<int64_t>& counts = recommended_.at(metric.k);
      const auto used = static_cast<double>(
          std::count_if(counts.begin(), counts.end(), [](int64_t c) { return c > 0; }));
      if (metric.kind == Kind::item_count) value = used;
      if (metric.kind == Kind::item_coverage) value = used / static_cast<double>(counts.size());
      if (metric.kind == Kind::gini) value = gini(counts);
      if (metric.kind == Kind::shannon_entropy) value = shannon_entropy(counts);
    } else if (metric.kind == Kind::recall_pooled) {
      if (n_pairs_ > 0) value = sums_[j] / static_cast<double>(n_pairs_);
    } else if (counted_[j] > 0) {
      value = sums_[j] / static_cast<double>(counted_[j]);
    }
    all.emplace_back(metric.name(), value);
  }
  return all;
}

std::vector<std::pair<std::string, int64_t>> MetricSums::users_without_pair() const {
  std::vector<std::pair<std::string, int64_t>> all;
  for (size_t j = 0; j < metrics_.size(); ++j) {
    if (metrics_[j].kind == Kind::ild) {
      all.emplace_back(metrics_[j].name(), n_users_ - counted_[j]);
    }
  }
  return all;
}

std::vector<double> intra_list_distances(const Feature& feature, std::span<const int32_t> items,
                                         const std::vector<int64_t>& ks) {
  const int64_t width = feature.width();
  std::vector<float> row(width);
  std::vector<double> sum(width, 0.0);
  const int32_t* row_of_item = feature.row_of_item.const_data_ptr<int32_t>();
  std::vector<double> values;
  size_t read = 0;
  int64_t n = 0;
  double self = 0;  // sum of the squared lengths of the unit rows, n but for rounding
  for (const int64_t k : ks) {
    for (; read < items.size() && read < static_cast<size_t>(k); ++read) {
      const int32_t at = row_of_item[items[read]];
      if (at < 0) continue;
      feature.rows.read_row(at, row.data());
      double square = 0;
      for (const float x : row) square += static_cast<double>(x) * x;
      if (square == 0) continue;
      const double scale = 1 / std::sqrt(square);
      for (int64_t d = 0; d < width; ++d) sum[d] += scale * row[d];
      self += square * scale * scale;
      ++n;
    }
    // |sum of unit rows|^2 = n + 2 * sum of the cosines of the pairs.
    double square = 0;
    for (const double x : sum) square += x * x;
    const double n_pairs = 0.5 * static_cast<double>(n) * static_cast<double>(n - 1);
    values.push_back(n < 2 ? kNan : 1 - 0.5 * (square - self) / n_pairs);
  }
  return values;
}

}  // namespace tessera
