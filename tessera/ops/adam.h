#pragma once

#include <torch/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tessera/ops/kernels.h"

namespace tessera {

/// Adam (Kingma & Ba 2015), bias-corrected, in the order of operations
///   m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g g;
///   p <- p - lr / (1 - b1^t) * m / (sqrt(v) * (1 / sqrt(1 - b2^t)) + eps)
/// with weight decay none, added to the gradient (g + decay p), or decoupled (p <- p - lr decay p
/// first, AdamW).
struct AdamOptions {
  enum class Decay { none, gradient, decoupled };
  std::function<double(int64_t)> learning_rate;  ///< of the step, counted from 1
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0;
  Decay decay = Decay::none;
};

/// One step in plain tensor operations on any device: what the kernels compute, in words of torch.
/// `step` counts from 1; value, m and v change in place.
void adam_composed(torch::Tensor& value, torch::Tensor& m, torch::Tensor& v,
                   const torch::Tensor& gradient, int64_t step, const AdamOptions& options);

/// Adam on whole tensors; moments by name, made when a name is first stepped. One fused pass.
class DenseAdam {
 public:
  struct Moments {
    torch::Tensor m, v;
    int64_t step = 0;  ///< steps taken by this tensor
  };
  /// One step of `value` (float32 or float64, contiguous) against `gradient` of the same shape.
  void step(const std::string& name, torch::Tensor& value, const torch::Tensor& gradient,
            const AdamOptions& options);
  std::map<std::string, Moments>& moments() { return moments_; }

 private:
  std::map<std::string, Moments> moments_;
};

/// A table of which a step touches few rows, under the semantics of dense Adam: a row that was not
/// touched still decays its moments and still moves. The pending steps of a row are replayed, in
/// the same operations and order, when the row is next gathered, so the table equals DenseAdam's
/// bit for bit (bm3 section 10). A row never touched has no moments and, without weight decay,
/// never moves. Where ops go by plain tensor operations (ops/device.h) a step is one of dense Adam.
class RowTable {
 public:
  RowTable() = default;
  /// Takes over `value` [rows, width], float32 or float64.
  explicit RowTable(torch::Tensor value);

  /// Must be called before the first step, again after a load.
  void configure(AdamOptions options);

  /// Rows (int64 [n], distinct) brought up to date, as a leaf [n, width] that requires a gradient.
  /// One gather a step; the table remembers it for step().
  torch::Tensor gather(const torch::Tensor& rows);
  /// The gradient of the gathered leaf, undefined before backward. [n, width]
  torch::Tensor gradient() const {
    return gathered_.defined() ? gathered_.grad() : torch::Tensor();
  }
  /// Ends one optimiser step: applies the gradient of the gathered leaf, if there was one.
  void step();
  /// Replays every pending step of every row.
  void catch_up();

  /// The whole table, caught up. [rows, width]
  const torch::Tensor& value();
  /// Rows (int64 [n]) brought up to date, without gradient and without being remembered.
  torch::Tensor rows(const torch::Tensor& rows);

  bool defined() const { return value_.defined(); }
  int64_t n_rows() const { return value_.size(0); }
  int64_t width() const { return value_.size(1); }

  /// What a checkpoint holds; `load` replaces all (moments empty where the table never moved).
  struct Parts {
    torch::Tensor value, m, v;  ///< [rows, width]
    torch::Tensor last_step;    ///< int64 [rows]
    int64_t step = 0;
  };
  Parts parts();  ///< caught up
  void load(Parts parts);

 private:
  void step_all(const torch::Tensor& rows, const torch::Tensor& gradient);
  void replay(const int64_t* rows, int64_t n);  ///< null: all n rows; repeated rows are harmless
  void need_steps();
  void need_moments();

  AdamOptions options_;
  torch::Tensor value_, m_, v_;
  torch::Tensor last_step_;  ///< of each row, in main memory
  int64_t step_ = 0;
  int64_t ruled_from_ = 0;  ///< steps taken when the rule came: all rows were up to date
  std::vector<kernels::AdamStep> steps_;  ///< of step ruled_from_ + 1 + index
  torch::Tensor gathered_rows_, gathered_;
};

}  // namespace tessera
