#pragma once

#include <torch/types.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/random.h"
#include "tessera/ops/adam.h"
#include "tessera/ops/graph.h"

// Scores of item features by the taste of the items' users, and what follows from them (R2MR, Tang
// et al. 2025; specs r2mr sections 2, 3, 5).
namespace tessera {

/// How tastes t [., d] and rows e [., d] meet.
///   expand: p = t W_u, W_u [d, K d];      y = e W_m, W_m [d, d];            width w = d
///   split:  p = t W_u + b, W_u [d, d];    y = e W_m + b_m, W_m [d, d / K];  width w = d / K
struct ReviewForm {
  int64_t width = 64;    ///< d
  int64_t n_tastes = 1;  ///< K
  bool split = false;
  bool divided = true;   ///< products by sqrt(w)
  bool half = false;     ///< projections rounded to float16
  bool uniform = false;  ///< weights U(-1, 1) at the start, else xavier uniform
  double dropout = 0.3;

  int64_t product_width() const { return split ? width / n_tastes : width; }
  double scale() const;
};

/// x W (+ b), rounded where the form asks for it.
struct ReviewWeights {
  torch::Tensor weight, bias;  ///< bias undefined in expand
  torch::Tensor project(const torch::Tensor& x, const ReviewForm& form) const;
};
ReviewWeights taste_weights(const ReviewForm& form, const Random& random, const std::string& name);
ReviewWeights row_weights(const ReviewForm& form, const Random& random, const std::string& name);

/// mean [softplus(-x) + softplus(x')] over pairs and tastes, [B, K] each.
torch::Tensor consensus_loss(const torch::Tensor& x_own, const torch::Tensor& x_other);
/// L_con of section 2: the same summed over the modalities, of B pairs of an item and a user of its
/// own with another user each. tastes [n_users, d], rows [n_items, d] by modality, `weights` by
/// modality; `user` int64 [2 B], the own users first, and `item` int64 [B] point into them.
torch::Tensor consensus_loss(const ReviewForm& form, const torch::Tensor& tastes,
                             const ReviewWeights& taste, const std::vector<torch::Tensor>& rows,
                             const std::vector<ReviewWeights>& weights, const torch::Tensor& user,
                             const torch::Tensor& item);

/// Two reviewers, each taught on one half of the edges and asked about the other half, so that no
/// edge is scored by who has seen it (without: a table of tastes memorises damaged rows). An edge
/// counts only if its user has an edge in the half that its reviewer was taught.
class CrossReviewer {
 public:
  CrossReviewer() = default;
  CrossReviewer(const BipartiteGraph& edges, std::vector<std::string> modalities,
                const ReviewForm& form, const Random& random);

  /// One pass of AdamW (lr 5e-3, decay .01, batches of 1024, or 8192 where there are more than
  /// 100,000 edges) over the edges of both halves; `rows` [n_items, d] by modality. At most
  /// `max_steps` a reviewer, counted in `steps_left`. Returns the mean loss.
  double train_epoch(const std::vector<torch::Tensor>& rows, std::array<int64_t, 2>& steps_left);

  /// The users' tastes as the two reviewers have them now, in evaluation form: [n_users, ..].
  using Tastes = std::array<torch::Tensor, 2>;
  Tastes projected_tastes() const;
  /// Mean over the counted edges of each item, 0 without any; in evaluation form. `items` as in
  /// edge_sums. [n]
  torch::Tensor scores(const Tastes& tastes, int64_t modality, const torch::Tensor& rows,
                       const torch::Tensor& items = {}) const;
  const torch::Tensor& n_counted() const { return n_counted_; }  ///< int64 [n_items]
  const BipartiteGraph& taught(int64_t reviewer) const {
    return taught_[static_cast<size_t>(reviewer)];
  }
  const BipartiteGraph& asked(int64_t reviewer) const {
    return asked_[static_cast<size_t>(reviewer)];
  }

  /// What a checkpoint holds, beside adam() and tastes().
  std::vector<std::pair<std::string, torch::Tensor*>> tensors();
  DenseAdam& adam() { return adam_; }
  RowTable& tastes(int64_t reviewer) { return reviewers_[static_cast<size_t>(reviewer)].tastes; }
  int64_t& n_epochs() { return n_epochs_; }
  int64_t& n_steps(int64_t reviewer) { return reviewers_[static_cast<size_t>(reviewer)].n_steps; }

 private:
  struct Reviewer {
    RowTable tastes;  // [n_users, d]
    ReviewWeights taste;
    std::vector<ReviewWeights> rows;
    std::vector<int32_t> users;  // with an edge in its half
    int64_t n_steps = 0;
  };
  double step(int64_t f, const std::vector<int64_t>& edges, const std::vector<torch::Tensor>& rows);

  ReviewForm form_;
  std::vector<std::string> modalities_;
  std::array<BipartiteGraph, 2> taught_, asked_;
  std::array<std::vector<int32_t>, 2> edge_users_;
  mutable std::array<Reviewer, 2> reviewers_;  // value() of a table catches up
  torch::Tensor n_counted_;
  DenseAdam adam_;
  AdamOptions options_;
  Random random_ = Random(0);
  int64_t batch_size_ = 1024, n_epochs_ = 0;
};

/// (mean of the null means + median of the scores) / 2: the threshold of `eta = auto`.
double auto_threshold(const std::vector<double>& null_means, const torch::Tensor& scores);
/// The middle value, or the mean of the two middle ones; 0 of none.
double median_of(const torch::Tensor& values);
/// Probability that one of `high` is above one of `low`, ties by half. NaN where either is empty.
double auc(const torch::Tensor& high, const torch::Tensor& low);

/// Where an item stands: no counted edge; no, some, or every modality accepted.
enum Area : int64_t { unscored = 0, low_area = 1, disparity = 2, high_area = 3 };
struct Areas {
  torch::Tensor high;  ///< bool [n_items, M]: scored, present and at least eta
  torch::Tensor area;  ///< int64 [n_items]
};
/// scores [n_items, M], present bool [n_items, M], scored bool [n_items], eta by modality.
Areas areas_of(const torch::Tensor& scores, const torch::Tensor& present,
               const torch::Tensor& scored, const std::vector<double>& eta);
/// The area of each item from `high`.
torch::Tensor area_of(const torch::Tensor& high, const torch::Tensor& scored);
/// Number of the ordered pair from -> to among those of M modalities, lexicographically.
int64_t direction_of(int64_t from, int64_t to, int64_t n_modalities);

}  // namespace tessera
