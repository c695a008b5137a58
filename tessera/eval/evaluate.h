#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/eval/metrics.h"
#include "tessera/eval/protocol.h"
#include "tessera/model/model.h"

namespace tessera {

struct EvalOptions {
  std::vector<std::string> metrics;  ///< "recall", "ndcg@20", any spelling; empty: the defaults
  std::vector<int64_t> topk;         ///< for metrics without @K; empty: the protocol's
  bool topk_given = false;           ///< an explicit K above n_items is an error, a default is cut
  bool slices = false;
  bool per_user = false;
  int64_t sparse_max = 3;
  double tail_ratio = 0.1;
  std::string map_norm = "min";  ///< or "relevant"
  int64_t eval_batch_size = 4096;
  /// Puts each user's history into random order before it is asked about; target and mask stay. A
  /// model that reads order gets worse (sequential section 5.4), others do not change.
  std::optional<uint64_t> shuffle_histories = std::nullopt;  ///< the seed
  /// Asked between blocks of users; an evaluation that is told to stop ends with RunError (130).
  std::function<bool()> stop_requested = [] { return false; };
};

struct Slice {
  std::string name;  ///< cold, tail, sparse, missing_<modality>
  int64_t n_users = 0, n_pairs = 0;
  MetricValues metrics;
};

struct Evaluation {
  std::string split;
  MetricValues metrics;
  std::vector<Slice> slices;
  int64_t n_users = 0;
  Json audit;  ///< mask, users averaged, pairs dropped, .. (protocol section 5)
  double time_s = 0;
  /// per_user: one row an averaged user, ascending: held-out pairs ("n_test"), then the accuracy
  /// metrics, as the columns name them.
  std::vector<std::string> per_user_columns;
  std::vector<int64_t> per_user_users;
  std::vector<std::vector<double>> per_user;

  /// The value of a metric in any spelling, also where its K was cut to the catalogue; NaN when
  /// absent.
  double value(const std::string& metric) const;
};

/// True when the split has a held-out row.
bool has_rows(const Dataset& data, Split split);

/// Ranks all items for every user with a row in `split` (valid or test). Never holds
/// [n_users, n_items]. A NaN score ends with RunError (exit 5).
Evaluation evaluate(const Scorer& scorer, const Dataset& data, const Protocol& protocol,
                    Split split, const EvalOptions& options);
/// The same of a model as it stands; says in the audit where the protocol wants other training rows
/// than the model's.
Evaluation evaluate(Model& model, const Dataset& data, const Protocol& protocol, Split split,
                    const EvalOptions& options);

/// Refuses what evaluate() would refuse, without a model: metrics, cutoffs, a split that the
/// protocol cannot take.
void check_evaluation(const Dataset& data, const Protocol& protocol, Split split,
                      const EvalOptions& options);

/// The top `k` of every user, in the order of users, asked and masked as evaluate() does it.
void all_lists(const Scorer& scorer, const Dataset& data, const Protocol& protocol, Split split,
               int64_t k,
               const std::function<void(int64_t user, std::span<const int32_t> items,
                                        std::span<const float> scores)>& take);

/// per_user.tsv: header, then raw user id, held-out pairs and metrics as full doubles.
std::string per_user_tsv(const Evaluation& evaluation, const Dataset& data);

/// Lists of somebody else, by user: items best first, each once.
struct RecommendationLists {
  std::vector<std::vector<int32_t>> items;  ///< [n_users]
  Json audit;                               ///< rows read, unknown ids
};
/// Lines `user item`, `user item score`, or any columns under a header that names user, item and
/// perhaps rank and score (recs_top50.tsv); separated by tabs, commas or blanks. Sorted by rank,
/// else by score, ties to the lower item index, else as in the file. Unknown users and items are
/// counted; bad lines are exit 3.
RecommendationLists read_recommendations(const std::string& path, const Dataset& data);
/// The same from memory; `name` stands for the path in messages.
RecommendationLists parse_recommendations(std::string_view bytes, const std::string& name,
                                          const Dataset& data);
/// Masked items are taken out of the lists and counted; a user without a list has no hit.
Evaluation evaluate_lists(const RecommendationLists& lists, const Dataset& data,
                          const Protocol& protocol, Split split, const EvalOptions& options);

/// The canonical name of a metric in any spelling ("HitRate@10" -> "hit@10"); exit 2 with the
/// nearest name.
std::string canonical_metric(const std::string& name);

}  // namespace tessera
