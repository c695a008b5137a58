#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/random.h"
#include "tessera/ops/adam.h"

namespace tessera {

/// out = y + LN(y), y = x W + c, W [in, out]; LN with eps 1e-5 (r2mr section 4).
struct GanBlock {
  torch::Tensor weight, bias, gain, shift;
  torch::Tensor operator()(const torch::Tensor& x) const;
};

/// Slots [n, w] and the code nearest to each by squared distance, ties to the lower index.
torch::Tensor nearest_codes(const torch::Tensor& slots, const torch::Tensor& codes);
torch::Tensor nearest_codes_composed(const torch::Tensor& slots, const torch::Tensor& codes);
/// What an encoder gives, the nearest codes of its slots, and both as constants: what section 4
/// writes sg. All [n, width of the encoder's last block].
struct Coded {
  torch::Tensor z, z_q, z_fixed, z_q_fixed;
};
/// mean (sg z_q - z)^2 + 0.1 mean (z_q - sg z)^2: commitment 1 and codebook .1, as published.
torch::Tensor code_loss(const Coded& coded);
torch::Tensor code_loss(const torch::Tensor& z, const torch::Tensor& z_q);
/// exp of the entropy of the codes in use.
double perplexity(const torch::Tensor& code_of_slot, int64_t n_codes);
/// 0.1 [mean softplus(-real) + mean softplus(fake)].
torch::Tensor discriminator_loss(const torch::Tensor& real, const torch::Tensor& fake);
/// mean softplus(-fake).
torch::Tensor adversarial_loss(const torch::Tensor& fake);

struct VectorGanOptions {
  int64_t width = 64, prompt = 32, n_directions = 2;
  std::vector<int64_t> encoder = {128, 256, 128}, decoder = {128, 256}, discriminator = {64, 32};
  int64_t n_codes = 128, code_width = 16;
  double learning_rate = 2e-3, ln_gain = 0.1, adv = 0.1;
};

/// A vector-quantised GAN from rows of one modality to rows of another, one network for all
/// directions, told apart by a prompt.
class VectorGan {
 public:
  VectorGan() = default;
  VectorGan(const VectorGanOptions& options, const Random& random);

  /// Rows of the target modality. source [n, width], direction int64 [n]
  torch::Tensor rewrite(const torch::Tensor& source, const torch::Tensor& direction) const;
  /// One step of the discriminator on the detached fake, then one of the network with the
  /// discriminator frozen; returns mean |e_hat - target| before it. The gradients of the losses
  /// below, written out; the batch goes in two halves side by side.
  double step(const torch::Tensor& source, const torch::Tensor& target,
              const torch::Tensor& direction);
  // The losses of step(), of tensors of any one float type.
  Coded code(const torch::Tensor& source, const torch::Tensor& direction) const;
  /// e_hat: the decoder over z + sg(z_q - z). [n, width]
  torch::Tensor decode(const Coded& coded) const;
  /// L_D of section 4; no gradient goes into `e_hat`.
  torch::Tensor loss_of_discriminator(const torch::Tensor& target,
                                      const torch::Tensor& e_hat) const;
  struct NetworkLoss {
    torch::Tensor total, distance;  ///< L_R, and mean |e_hat - target| of it
  };
  /// L_R of section 4, the discriminator frozen.
  NetworkLoss loss_of_network(const Coded& coded, const torch::Tensor& e_hat,
                              const torch::Tensor& target) const;

  /// The code of every slot. int64 [n * slots]
  torch::Tensor codes_of(const torch::Tensor& source, const torch::Tensor& direction) const;

  /// Remembers the network's state, and goes back to it. Optimisers and discriminator stay.
  void remember_best();
  void restore_best();

  int64_t n_codes() const { return codes_.size(0); }
  int64_t n_parameters() const;                ///< of the network
  int64_t n_discriminator_parameters() const;  ///< of the discriminator
  /// What a checkpoint holds, beside the optimisers; the remembered state may be undefined.
  std::vector<std::pair<std::string, torch::Tensor*>> tensors();
  DenseAdam& adam() { return adam_; }
  DenseAdam& discriminator_adam() { return discriminator_adam_; }

 private:
  using Named = std::vector<std::pair<std::string, torch::Tensor*>>;
  Named network();
  Named discriminator();
  AdamOptions network_options() const;
  AdamOptions discriminator_options() const;
  /// The same step by autograd of the losses.
  double step_composed(const torch::Tensor& source, const torch::Tensor& target,
                       const torch::Tensor& direction);
  torch::Tensor encode(const torch::Tensor& source, const torch::Tensor& direction) const;
  torch::Tensor decode_rows(const torch::Tensor& z) const;
  torch::Tensor judge(const torch::Tensor& rows, bool frozen) const;

  VectorGanOptions options_;
  torch::Tensor prompts_, codes_;
  std::vector<GanBlock> encoder_, decoder_, judge_;
  torch::Tensor logit_weight_, logit_bias_;  // [in, 1], [1]
  std::vector<torch::Tensor> best_;
  DenseAdam adam_, discriminator_adam_;
};

}  // namespace tessera
