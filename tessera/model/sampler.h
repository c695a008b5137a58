#pragma once

#include <cstdint>
#include <vector>

#include "tessera/model/model.h"

namespace tessera {

/// Makes the batches of an epoch. Everything is keyed by (seed, epoch or step, row), so a batch
/// does not depend on those before it nor on threads.
class Sampler {
 public:
  Sampler(const TrainView& data, const BatchSpec& spec, int64_t batch_size, const Random& random);

  void begin_epoch(int64_t epoch);
  int64_t n_batches() const { return n_batches_; }
  /// Batch `index` of the epoch; `step` is global and counts from 1.
  Batch batch(int64_t index, int64_t step) const;
  /// Pairs left out because their user has every item that could be a negative.
  int64_t n_left_out() const { return n_left_out_; }

 private:
  struct Row {
    int32_t user;
    int64_t begin, end;  // of the input, within the user's train row
    bool one_target;     // prefix rows predict the item after the input only
  };
  Batch pairs(int64_t index) const;
  Batch users(int64_t index) const;
  Batch distinct_users(int64_t step) const;
  Batch sequences(int64_t index) const;
  void draw_negatives(Batch& batch, int64_t step) const;
  void index_distinct(Batch& batch) const;

  const TrainView& data_;
  BatchSpec spec_;
  int64_t batch_size_, n_batches_ = 0, epoch_ = 0, n_left_out_ = 0;
  Random order_, negatives_, users_random_, positives_random_;
  std::vector<int32_t> pair_users_, pair_items_, candidates_, active_users_;
  std::vector<int64_t> order_of_epoch_;
  std::vector<Row> rows_;
  std::vector<std::vector<int64_t>> row_batches_;
};

}  // namespace tessera
