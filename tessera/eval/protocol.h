#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tessera {

/// A named protocol (specs: protocol section 5): what is masked, who is averaged, how an epoch is
/// chosen.
struct Protocol {
  enum class Mask { none, train, train_valid };
  std::string name;
  Mask mask_valid = Mask::train, mask_test = Mask::train_valid;
  bool average_cold_users = true;  ///< users without a train row take part
  bool drop_repeats = true;        ///< a held-out pair already in train (test: or valid) is dropped
  bool sequential_sees_valid = true;  ///< sequential models get train + valid at test
  bool one_target = false;            ///< needs a leave-one-out split: one row a user and split
  /// Every held-out row is a query of its own, with all that the user did before it as its history.
  bool every_position = false;
  std::string valid_metric = "recall@20";
  std::vector<int64_t> topk = {10, 20};
  bool round4 = false;  ///< the validation score is rounded to 4 decimals first
  bool tie_improves = false;
  bool patience_plus_one = false;
  int64_t patience = 20, epochs = 1000;
};

/// Exit 2 with the nearest name when there is none of that name.
const Protocol& find_protocol(const std::string& name);
const std::vector<Protocol>& protocols();

/// Which epoch is best and when to stop, by one score an evaluation.
class EarlyStopping {
 public:
  EarlyStopping(const Protocol& protocol, int64_t patience)
      : protocol_(&protocol), patience_(patience) {}
  /// Takes the score of `epoch`; true when it is the best so far.
  bool add(int64_t epoch, double score);
  /// Never before a score was taken, and with a patience of 0 at the first miss.
  bool stop() const {
    return misses_ > 0 && misses_ >= patience_ + (protocol_->patience_plus_one ? 1 : 0);
  }
  int64_t best_epoch() const { return best_epoch_; }
  double best_score() const { return best_score_; }  ///< unrounded score of the best epoch
  int64_t misses() const { return misses_; }

  /// The counters, for checkpoints.
  int64_t best_epoch_ = -1, misses_ = 0;
  double best_ = -1, best_score_ = -1;

 private:
  const Protocol* protocol_;
  int64_t patience_;
};

}  // namespace tessera
