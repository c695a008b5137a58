#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tessera/data/dataset.h"

namespace tessera {

/// Metrics in the order asked for; NaN where undefined (no user in the slice).
using MetricValues = std::vector<std::pair<std::string, double>>;
/// A value by its name; NaN where there is none.
double value_of(const MetricValues& values, const std::string& name);

/// One metric as asked for (specs: protocol sections 6 and 7).
struct Metric {
  enum class Kind {
    recall,
    precision,
    hit,
    mrr,
    map,
    ndcg,
    ndcg_retrieved,
    f1,
    recall_pooled,
    auc,
    item_coverage,
    item_count,
    user_coverage,
    gini,
    shannon_entropy,
    average_popularity,
    aplt,
    tail_percentage,
    epc,
    novelty,
    ild,
  };
  Kind kind = Kind::recall;
  int64_t k = 0;         ///< 0: none typed; for mrr and map the whole list
  std::string modality;  ///< of ild
  bool operator==(const Metric&) const = default;

  /// The canonical name, "hit@10", "mrr", "ild_image@20".
  std::string name() const;
  /// A mean of per-user values that per_user.tsv can hold.
  bool per_user() const;
  /// False for gini and average_popularity, of which nobody wants the most.
  bool higher_is_better() const;
  /// Places of the list that it reads: K, but at least 50 for ndcg_retrieved.
  int64_t depth() const;
  /// Needs the rank of every held-out item, not only of those in the list.
  bool whole_list() const;
};

/// Any spelling, with or without @K; exit 2 with the nearest name.
Metric parse_metric(const std::string& typed);

/// What is reported when nobody asks: recall ndcg precision hit map mrr.
const std::vector<std::string>& default_metrics();

/// The metrics of `names` (empty: recall, ndcg, precision, hit, map, mrr), those without a K at
/// each of `topk`; mrr and map typed without K stay whole-list, but not in the written-out list of
/// the defaults. Each once, in order.
std::vector<Metric> expand_metrics(const std::vector<std::string>& names,
                                   const std::vector<int64_t>& topk);

/// recall, precision, hit, mrr, map, ndcg, ndcg_retrieved or f1 of one user. `hits`: ranks of the
/// hits from 1, ascending, to metric.depth() or deeper; `m` held-out items, at least 1.
/// `map_relevant`: map divides by m. ndcg_retrieved divides by the ideal of min(K, hits among the
/// first max(50, K)), as the published MMSSL program does for its K (mmssl section 6).
double accuracy(const Metric& metric, std::span<const int64_t> hits, int64_t m,
                bool map_relevant = false);

/// How unevenly the items were recommended: 0 equal, towards 1 concentrated. `counts` of all items.
double gini(std::vector<int64_t> counts);
/// Natural logarithm.
double shannon_entropy(const std::vector<int64_t>& counts);

/// What the metrics beyond accuracy read of the train rows.
struct ItemStatistics {
  ItemStatistics(const Dataset& data, double tail_ratio);

  std::vector<int64_t> counts;   ///< train interactions by item
  int64_t n_train_users = 0;     ///< users with a train row
  std::vector<bool> tail;        ///< all but the shortest head with 80 % of the train interactions
  std::vector<bool> ratio_tail;  ///< the tail of tail_percentage
};

/// One averaged user's answer.
struct Ranked {
  std::span<const int32_t>
      items;                      ///< best first, to the largest K; shorter when candidates ran out
  std::span<const int64_t> hits;  ///< ranks from 1 of the held-out items that were ranked
  int64_t m = 0;                  ///< held-out pairs
  double auc = 0;
  std::span<const double> ild;  ///< by metric; NaN without a pair of rows, other metrics 0
};

/// Sums over users. Users are added one after the other in their order, in float64, so that no
/// value depends on threads.
class MetricSums {
 public:
  MetricSums(const std::vector<Metric>& metrics, const ItemStatistics& statistics,
             bool map_relevant);
  void add(const Ranked& user);
  MetricValues values() const;
  int64_t n_users() const { return n_users_; }
  int64_t n_pairs() const { return n_pairs_; }
  /// Users left out of each ild metric, by its name.
  std::vector<std::pair<std::string, int64_t>> users_without_pair() const;

 private:
  std::vector<Metric> metrics_;
  const ItemStatistics* statistics_;
  bool map_relevant_;
  int64_t n_users_ = 0, n_pairs_ = 0;
  std::vector<double> sums_;
  std::vector<int64_t> counted_;                         // users in the mean of each metric
  std::map<int64_t, std::vector<int64_t>> recommended_;  // by K: how often each item
};

/// The intra-list distances of one modality for the first k items of a list, for each k of `ks`
/// (ascending): mean of 1 - cosine over pairs of rows that exist and are not zero; NaN without one.
std::vector<double> intra_list_distances(const Feature& feature, std::span<const int32_t> items,
                                         const std::vector<int64_t>& ks);

}  // namespace tessera
