#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/eval/evaluate.h"

namespace tessera {

/// `sampled-N` (pamd section 8): a user's held-out items among items without any interaction of
/// that user, drawn uniformly to N in total. For comparison with papers that rank so; never to be
/// put beside full ranking, which is another quantity.
struct SampledOptions {
  int64_t total = 1000;
  int64_t k = 10;
  bool ideal_all = false;  ///< ndcg's ideal over all held-out items; else over at most k
  uint64_t seed = 999;     ///< of the candidates, with the user; not that of a training
};

/// precision, recall and ndcg of one list: `hits` are ranks from 1, at most k each.
struct SampledValues {
  double precision = 0, recall = 0, ndcg = 0;
};
SampledValues sampled_values(const std::vector<int64_t>& hits, int64_t n_held,
                             const SampledOptions& options);

/// Candidates of a user, ascending: the distinct held-out items and the drawn ones; fewer than the
/// total where there are not enough.
std::vector<int32_t> sampled_candidates(const Dataset& data, Split split, int64_t user,
                                        const SampledOptions& options);

/// Means over the users with held-out items.
struct SampledResult {
  SampledOptions options;
  std::string split;
  int64_t n_users = 0;
  MetricValues metrics;

  std::string name() const { return fmt::format("sampled-{}", options.total); }
  std::string ideal() const { return options.ideal_all ? "all" : "capped"; }
  /// {"name", "split", "k", "ndcg_ideal", "seed", "n_users", "metrics"}.
  Json json() const;
};
/// Ties to the lower item index.
SampledResult evaluate_sampled(Model& model, const Dataset& data, const Protocol& protocol,
                               Split split, const SampledOptions& options);

}  // namespace tessera
