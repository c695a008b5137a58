#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tessera/model/model.h"
#include "tessera/nn/sequence_encoder.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/sequence_losses.h"

namespace tessera {

/// What sequence models share: their rows and their loss (sequential sections 1 and 3).
struct SequenceSettings {
  int64_t max_length = 50;
  std::string rows = "user", loss = "ce", neg_share = "position", reduce = "sum";
  int64_t n_negatives = 256;
  bool logq = false, unseen_negatives = false;
  double gbce_t = 0.75;

  /// Also 128 rows as the default batch.
  void describe(Fields& f);
};

/// The embeddings of the items, [n_items, d]. Where a step's loss reads every row they are one
/// tensor; where it reads few (sampled losses) a lazily updated table, of which a step gathers what
/// it reads, once. Both give the same bits.
class ItemRows {
 public:
  ItemRows(torch::Tensor* whole, RowTable* lazy) : whole_(whole), lazy_(lazy) {}
  bool lazy() const { return lazy_ != nullptr; }
  /// Rows of items int64 [n], repeats allowed; with gradient if they are one tensor or in a step.
  torch::Tensor rows(const torch::Tensor& items);
  /// The whole table, for losses over all items and for ranking.
  const torch::Tensor& all() { return lazy() ? lazy_->value() : *whole_; }

  /// A lazy table's step: gathers the distinct items of `read` (int64, any shape) in rising order.
  void begin(const std::vector<torch::Tensor>& read);
  const torch::Tensor& gathered() const { return leaf_; }
  torch::Tensor places(const torch::Tensor& items) const;  ///< of items in gathered()
  void end() { leaf_ = torch::Tensor(); }

 private:
  torch::Tensor* whole_;
  RowTable* lazy_;
  torch::Tensor leaf_;
  std::optional<DistinctRows> read_;  // the items of a step
};

/// A model that scores a history: the next item from the items before it, oldest first. Users
/// without a history get the train counts as scores; a query that gives no histories means the
/// train rows. Queries are cut to the last max_length items.
class SequenceModel : public Model {
 public:
  SequenceModel(const SequenceSettings& settings, const Context& context);
  Abilities abilities() const override { return {.takes_histories = true}; }
  BatchSpec batch_spec() const override;
  /// The chosen loss over every position with a target.
  Loss loss(const Batch& batch) override;

 protected:
  std::shared_ptr<const Scorer> make_scorer() override;
  /// Vectors of the next item at every slot: items int64 [P], packed by pass.offsets. [P, d]
  virtual torch::Tensor encode(const torch::Tensor& items, const Pass& pass) = 0;
  /// What they are compared with. [n_items, d]
  virtual torch::Tensor candidates() = 0;
  /// Added to the scores, [n_items] or undefined.
  virtual torch::Tensor candidate_bias() { return {}; }
  /// One vector a row, for ranking; the last slot's unless a model knows better. [rows, d]
  virtual torch::Tensor row_vectors(const torch::Tensor& items, const Pass& pass);

  Pass pass_of(const Batch& batch) const;
  /// The trained item embeddings "item_embedding"; once. `read_whole`: candidates() reads more than
  /// the rows of a sampled loss.
  ItemRows& item_rows(torch::Tensor initial, bool read_whole = false);

  const SequenceSettings sequence_;

 private:
  /// The chosen loss of vectors [P, d] against targets [P]; row_of int64 [P], rising, is the row of
  /// the batch that a vector belongs to; `sampled` are its negatives, undefined under ce.
  torch::Tensor item_loss(const torch::Tensor& vectors, const Batch& batch,
                          const torch::Tensor& row_of, torch::Tensor sampled);
  torch::Tensor negatives(const torch::Tensor& row_of, const Batch& batch) const;
  /// How many items the negatives of a row are drawn from. [rows]
  std::vector<int64_t> pools(const Batch& batch) const;

  friend class SequenceScorer;
  std::optional<ItemRows> item_rows_;
};

}  // namespace tessera
