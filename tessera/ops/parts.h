#pragma once

#include <torch/types.h>

namespace tessera {

// Losses and attention over the parts of an item (pamd sections 3, 4 and 7). Each kernel has its
// own gradient; float32 and float64. No result depends on the number of threads.

/// The order loss: decodes of common, whole and specific vector must resemble x in this order.
struct OrderOptions {
  enum class Contrast {
    softmax_order,  ///< list-wise, by log-sum-exp
    mse_rank,       ///< pair-wise, of mean squared errors over the batch
    none,           ///< mean of 1 - p_c
  } contrast = Contrast::softmax_order;
  double tau = 0.5;
  bool absolute = false;   ///< |p_s| for p_s
  bool batch_sum = false;  ///< the published code's fault: every p_s is the sum over the batch
};
struct OrderLoss {
  torch::Tensor value;    ///< [], mean over the batch; 0 for an empty one
  torch::Tensor cosines;  ///< float64 [3, B]: p_c, p_0, p_s as measured, without gradient
};
/// x [B, D] is data and gets no gradient; decoded [3, B, D]: of the common, the whole and the
/// specific vector. Norms are at least 1e-12.
OrderLoss order_loss(const torch::Tensor& x, const torch::Tensor& decoded,
                     const OrderOptions& options);
/// The same for the decodes y W + b of y = c, c + s and s; that of c + s is the sum of the other
/// two less b, so a third of the products is spared. c, s [B, d], weight [d, D], bias [D]. Not for
/// mse_rank.
OrderLoss order_loss_affine(const torch::Tensor& x, const torch::Tensor& c, const torch::Tensor& s,
                            const torch::Tensor& weight, const torch::Tensor& bias,
                            const OrderOptions& options);
/// The two terms of softmax_order for each row, from cosines p_c, p_0, p_s [3, B]: l1 puts the
/// common decode above both others, l2 the whole one above the specific; float [B] each.
struct OrderTerms {
  torch::Tensor l1, l2;
};
OrderTerms order_terms_composed(const torch::Tensor& cosines, const OrderOptions& options);
torch::Tensor order_loss_composed(const torch::Tensor& x, const torch::Tensor& decoded,
                                  const OrderOptions& options);

/// (1/d) sum_jk r_jk^2, r_jk the correlation over the rows of coordinate j of c and k of s; columns
/// with a standard deviation (divisor n) below 1e-6 count 0. c, s [n, d]
torch::Tensor overlap(const torch::Tensor& c, const torch::Tensor& s);

/// y = p.e + sum_k w_k a_k, a_k = p.r_k, w = softmax over the open parts (none open: y = p.e).
/// users [n_users, d], ids [n_items, d], parts [n_items, K, d], open bool [n_items, K] (undefined:
/// all), user_of and item_of int64 [P]. Returns y [P].
torch::Tensor part_attention(const torch::Tensor& users, const torch::Tensor& ids,
                             const torch::Tensor& parts, const torch::Tensor& open,
                             const torch::Tensor& user_of, const torch::Tensor& item_of);
torch::Tensor part_attention_composed(const torch::Tensor& users, const torch::Tensor& ids,
                                      const torch::Tensor& parts, const torch::Tensor& open,
                                      const torch::Tensor& user_of, const torch::Tensor& item_of);
/// The weights w of all users and items, 0 for closed parts. [K, n_users, n_items]
torch::Tensor part_weights(const torch::Tensor& users, const torch::Tensor& parts,
                           const torch::Tensor& open);

/// y of all users and items, float32 [n_users, n_items]: K + 1 blocked products and the softmax
/// fused, nothing but y is stored. p.e + mean(a) <= y <= p.e + max(a) over the open parts.
torch::Tensor part_scores(const torch::Tensor& users, const torch::Tensor& ids,
                          const torch::Tensor& parts, const torch::Tensor& open);
torch::Tensor part_scores_composed(const torch::Tensor& users, const torch::Tensor& ids,
                                   const torch::Tensor& parts, const torch::Tensor& open);

/// What part_scores() takes, for those who rank: top_k_parts() of ops/topk.h.
struct PartFactors {
  torch::Tensor users, ids, parts;  ///< [n_users, d], [n_items, d], [n_items, K, d]
  torch::Tensor open;               ///< bool [n_items, K] or undefined: all
};

}  // namespace tessera
