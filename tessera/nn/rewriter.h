#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/random.h"
#include "tessera/nn/vector_gan.h"
#include "tessera/ops/graph.h"

namespace tessera {

struct RewriterOptions {
  /// vqgan, or what it is compared with: mean (of the high rows), neighbours (their mean by
  /// C = A^T A), ridge (a linear map with an intercept).
  std::string method = "vqgan";
  VectorGanOptions gan;
  bool hold_out = true;  ///< a tenth of the items, to stop by
  int64_t first_epochs = 200, later_epochs = 20;
};

/// Proposes rows of one modality from rows of another, learned from items at which both are trusted
/// (r2mr section 4). `rows` are the modalities' tables [n_items, d] everywhere.
class Rewriter {
 public:
  Rewriter() = default;
  Rewriter(const RewriterOptions& options, int64_t n_modalities, const BipartiteGraph& graph,
           const Random& random);

  /// Forgets how far the last round's training came.
  void begin_round();
  /// Chooses the pairs of a round (counted from 0): items at which both modalities are `high` (bool
  /// [n_items, M]) and take part; a tenth of the items is held out. Returns the number of items.
  int64_t choose(const torch::Tensor& high, const std::vector<bool>& takes_part, int64_t round);
  /// Trains on the chosen pairs from wherever it stands to the end of the round's epochs, or until
  /// the held-out distance stops falling; then the best state is restored. `after_epoch(epoch)`
  /// says whether to go on; false when it did not.
  bool train(const std::vector<torch::Tensor>& rows,
             const std::function<bool(int64_t)>& after_epoch);
  /// At most so many in this round: more in the first that trains at all.
  int64_t epochs_of_round() const;
  /// Rows of modality `to` for the items (int64 [n]), from their rows of `from`. [n, d]
  torch::Tensor candidates(const std::vector<torch::Tensor>& rows, int64_t from, int64_t to,
                           const torch::Tensor& items, const torch::Tensor& high) const;

  /// mean |e_hat - e| over the pairs learned or held out; NaN without any.
  double distance(const std::vector<torch::Tensor>& rows, bool held) const;
  /// Codes in use on the pairs learned, and their perplexity.
  std::pair<int64_t, double> codes_in_use(const std::vector<torch::Tensor>& rows) const;

  std::optional<VectorGan>& gan() { return gan_; }
  /// What a checkpoint holds of the round.
  struct Progress {
    int64_t epochs = 0, epochs_ever = 0;
    int64_t misses = 0;  ///< checks without gain
    double best = 1e300;
  };
  Progress& progress() { return progress_; }

 private:
  struct Pair {
    int64_t item, from, to;
  };
  struct Rows {
    torch::Tensor source, target, direction;
  };
  Rows rows_of(const std::vector<torch::Tensor>& rows, const Pair* pairs, size_t n) const;
  torch::Tensor ridge(const std::vector<torch::Tensor>& rows, int64_t from, int64_t to,
                      const torch::Tensor& source) const;

  RewriterOptions options_;
  int64_t n_modalities_ = 0;
  BipartiteGraph graph_;
  Random random_ = Random(0);
  std::optional<VectorGan> gan_;
  std::vector<Pair> learned_, held_;
  Progress progress_;
};

}  // namespace tessera
