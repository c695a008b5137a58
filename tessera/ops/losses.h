#pragma once

#include <torch/types.h>

#include <vector>

namespace tessera {

/// s_up - s_un of each pair: u, p [B, d] and n [B * K, d], the K negatives of a pair together. [B,
/// K]
torch::Tensor bpr_margins(const torch::Tensor& u, const torch::Tensor& p, const torch::Tensor& n);

/// BPR (baselines section 0): -mean logsigmoid(s_up - s_un) over the B x K margins; bpr_loss of
/// triples.h in plain tensor operations.
torch::Tensor bpr_loss_composed(const torch::Tensor& u, const torch::Tensor& p,
                                const torch::Tensor& n);

/// sum_k w_k (1 - cos(a_k, b_k)), |a||b| at least 1e-8; a, b [n, d], w [n] constant. One pass, with
/// gradients to a and, where it asks for one, to b (bm3 section 5).
torch::Tensor cosine_loss(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& w);
torch::Tensor cosine_loss_composed(const torch::Tensor& a, const torch::Tensor& b,
                                   const torch::Tensor& w);

/// mean (x - y)^2 and mean |x - y| over all entries, y constant, as one node each; the gradient of
/// the second is 0 where they meet. x, y [n, d]
torch::Tensor mean_square(const torch::Tensor& x, const torch::Tensor& y);
torch::Tensor mean_distance(const torch::Tensor& x, const torch::Tensor& y);
torch::Tensor mean_square_composed(const torch::Tensor& x, const torch::Tensor& y);
torch::Tensor mean_distance_composed(const torch::Tensor& x, const torch::Tensor& y);

/// L2 of baselines section 0: sum of squares of all rows / (2 B).
torch::Tensor l2_rows(const std::vector<torch::Tensor>& rows, int64_t batch_size);
/// NORM of baselines section 0: sum of the Frobenius norms, not squared, / B.
torch::Tensor norm_rows(const std::vector<torch::Tensor>& rows, int64_t batch_size);

/// sum_r n_r |row r|^2 in double, `counts` int64 [n] or undefined: each row once. x [n, ..]
torch::Tensor sum_of_squares(const torch::Tensor& x, const torch::Tensor& counts = {});
torch::Tensor sum_of_squares_composed(const torch::Tensor& x, const torch::Tensor& counts = {});

/// |x|_F with gradient x / |x|, and 0 at x = 0.
torch::Tensor frobenius_norm(const torch::Tensor& x);
torch::Tensor frobenius_norm_composed(const torch::Tensor& x);

}  // namespace tessera
