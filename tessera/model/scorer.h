#pragma once

#include <torch/types.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/random.h"
#include "tessera/data/dataset.h"
#include "tessera/ops/parts.h"
#include "tessera/ops/topk.h"

namespace tessera {

/// Rows of different lengths, packed.
struct Ragged {
  torch::Tensor items;    ///< int32 [n]
  torch::Tensor offsets;  ///< int64 [rows + 1]
  bool defined() const { return offsets.defined(); }
  int64_t n_rows() const { return defined() ? offsets.size(0) - 1 : 0; }
  std::span<const int32_t> row(int64_t index) const;
  Ragged rows(int64_t first, int64_t last) const;  ///< undefined if this is
};
Ragged packed(const std::vector<int32_t>& items, const std::vector<int64_t>& offsets);
Ragged packed(const std::vector<std::vector<int32_t>>& rows);

/// Whom to recommend to: users (int64 [n], -1 unknown), their histories, or both. Where both are
/// given the history wins for models that take one natively.
struct Queries {
  torch::Tensor users;
  Ragged histories;
  int64_t size() const { return users.defined() ? users.size(0) : histories.n_rows(); }
  int64_t user(int64_t row) const;  ///< -1 where none is given
};

struct Vectors {
  torch::Tensor users, items;  ///< [n_users, d], [n_items, d]
};

/// What a model can and cannot do, as help, errors and reports tell it.
struct Abilities {
  bool uses_features = false;         ///< learns from item features and needs at least one modality
  bool score_reads_features = false;  ///< reads them when ranking
  bool ranks_cold_items = false;      ///< items without a train row get a meaningful score
  bool takes_histories = false;       ///< scores from a history natively
};

/// Each by its name, for files and tables.
std::array<std::pair<const char*, bool*>, 4> flags_of(Abilities& abilities);

/// What the scores of a list rest on.
enum class Via : uint8_t { user, history, item_mean, popular };
const char* via_word(Via via);  ///< "user", "history", "item mean", "popular"

/// Best first, ties to the lower item index.
struct TopLists {
  torch::Tensor items;   ///< int32 [n, k], -1 after the end of a short list
  torch::Tensor scores;  ///< float32 [n, k]
};

/// Where a held-out item stands among a user's candidates.
struct Place {
  int64_t rank = 0;   ///< from 1; 0: masked or hidden
  int64_t above = 0;  ///< candidates with a higher score
  int64_t equal = 0;  ///< other candidates with the same score
};
struct Places {
  std::vector<Place> items;           ///< parallel to the held-out items
  std::vector<int64_t> n_candidates;  ///< by row
};

/// The scores of some queries: factors or parts, whose scores are made and ranked piece by piece,
/// or whole rows. A NaN score ends with RunError (exit 5). For one thread.
class BlockScores {
 public:
  explicit BlockScores(Vectors factors) : factors_(std::move(factors)) {}
  explicit BlockScores(PartFactors parts) : parts_(std::move(parts)) {}
  explicit BlockScores(torch::Tensor whole) : whole_(std::move(whole)) {}

  /// `mask` (rows sorted) and `hidden` (bool [n_items]) may be undefined.
  TopLists top(const Ragged& mask, const torch::Tensor& hidden, int64_t k) const;
  /// `held`: sorted distinct items by row.
  Places places(const Ragged& mask, const torch::Tensor& hidden, const Ragged& held) const;
  /// float [n, n_items]
  torch::Tensor whole() const;

 private:
  friend class Scorer;
  torch::Tensor own_whole() const;

  Vectors factors_;
  std::optional<PartFactors> parts_;
  mutable torch::Tensor whole_;   // of parts: once asked for
  std::vector<int64_t> popular_;  // rows that are ranked by the train counts instead
  torch::Tensor counts_;          // float [n_items, 1]
};

/// What every scorer knows of the training: who and what has train rows.
struct TrainFacts {
  explicit TrainFacts(const TrainView& data);
  std::vector<int64_t> counts;     ///< train rows by item
  torch::Tensor column;            ///< the same, float [n_items, 1]
  std::vector<bool> trained_user;  ///< has a train row
  std::vector<bool> has_feature;   ///< by item: has one of the modalities
  /// With `n` items more, which nobody has seen and which have features.
  TrainFacts with_items(int64_t n) const;
};

/// How a history becomes a user vector while the items stay as they are.
enum class FoldIn : uint8_t { mean };

/// A trained model made ready to rank, by Model::freeze(): immutable, and many threads may ask it.
/// It may refer to the model, which then must live on and not be trained meanwhile. Items that were
/// added after training stand behind those of the training.
class Scorer {
 public:
  Scorer(std::shared_ptr<const TrainFacts> facts, const Abilities& abilities);
  virtual ~Scorer() = default;
  Scorer(const Scorer&) = delete;
  Scorer& operator=(const Scorer&) = delete;

  const Abilities& abilities() const { return abilities_; }
  const TrainFacts& facts() const { return *facts_; }
  int64_t n_items() const { return facts_->column.size(0); }
  /// Scores depend on the order of a history, which must therefore be given.
  virtual bool reads_order() const { return false; }
  /// Scores differ between users.
  virtual bool personal() const { return true; }

  /// What answers a user (-1: a stranger) with a history or without.
  virtual Via via(int64_t user, bool has_history) const;
  /// What answers each query.
  std::vector<Via> vias(const Queries& queries) const;

  /// Scores of the queries; those via `popular` get the train counts.
  BlockScores rank(const Queries& queries) const;
  torch::Tensor scores(const Queries& queries) const { return rank(queries).whole(); }
  /// The best k of each query, in blocks. `mask` and `hidden` may be undefined.
  TopLists top(const Queries& queries, const Ragged& mask, const torch::Tensor& hidden,
               int64_t k) const;
  /// Queries that are ranked at once: at most `wanted`, and 256 MB of scores where they are made
  /// whole.
  virtual int64_t block(int64_t wanted) const;

  /// False for an item whose score is untrained noise: without a train row, but for models that
  /// rank such items by features which it has.
  bool has_vector(int64_t item) const;
  /// [n_items, d] whose inner products with a user's are the scores, so that an index can hold
  /// them; undefined where scores are made otherwise.
  virtual torch::Tensor item_vectors() const { return {}; }
  /// User vectors [n, d] of histories; undefined where item_vectors() is.
  torch::Tensor fold_in(const Ragged& histories, FoldIn method) const;
  /// Mean and standard deviation of the scores of up to 1,024 trained users and 1,024 trained
  /// items, drawn by the stream "spread" (serving section 1.2).
  struct Spread {
    double mean = 0, deviation = 0;
  };
  Spread spread(const Random& random) const;

 protected:
  /// Scores of the queries, whatever via() says of them.
  virtual BlockScores own(const Queries& queries) const = 0;
  bool trained(int64_t user) const;

  const std::shared_ptr<const TrainFacts> facts_;
  const Abilities abilities_;
};

/// Scores are inner products. Users with a train row are answered by their vector, others by the
/// mean of their history's item vectors.
class VectorScorer final : public Scorer {
 public:
  /// users [n_users, d], items [n_items, d]
  VectorScorer(std::shared_ptr<const TrainFacts> facts, const Abilities& abilities,
               Vectors vectors);
  Via via(int64_t user, bool has_history) const override;
  int64_t block(int64_t wanted) const override;
  torch::Tensor item_vectors() const override { return vectors_.items; }
  const Vectors& vectors() const { return vectors_; }
  /// The same with items [n, d] more.
  std::shared_ptr<const VectorScorer> with_items(const torch::Tensor& items) const;

 protected:
  BlockScores own(const Queries& queries) const override;

 private:
  const Vectors vectors_;
};

/// Scores are attention over the parts of items (ops/parts.h). Users without a train row have
/// nothing of their own.
class PartScorer final : public Scorer {
 public:
  /// `all`: users [n_users, d] and every item.
  PartScorer(std::shared_ptr<const TrainFacts> facts, const Abilities& abilities, PartFactors all);
  Via via(int64_t user, bool has_history) const override;
  /// The same with n items more: ids [n, d], parts [n, K, d], open bool [n, K] or undefined.
  std::shared_ptr<const PartScorer> with_items(const PartFactors& more) const;

 protected:
  BlockScores own(const Queries& queries) const override;

 private:
  const PartFactors all_;
};

}  // namespace tessera
