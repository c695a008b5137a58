#pragma once

#include <torch/types.h>

#include <string>
#include <utility>
#include <vector>

namespace tessera {

/// How a critic computes: see Critic.
struct CriticForm {
  enum class Output { sigmoid, linear, sigmoid100 };
  bool batch_norm = true;  ///< statistics of the rows of the call, biased variance, eps 1e-5
  double slope = 0.2;      ///< of the leaky ReLU; 1: identity
  Output output = Output::sigmoid;
};

/// A discriminator of rows x in R^n (mmssl section 1.4). Layer k:
///   A = x W^T + b;  Z = leaky(A);  H = R o (gamma o BN(Z) + beta),  R a dropout mask;
/// then D(x) = output(H_last . w + b). Without batch normalisation gamma and beta are absent.
/// What follows computes values and gradients by formula, from the first layer's products x W1^T
/// on, so that the rows themselves need never exist (ops/factored_rows.h).
struct Critic {
  struct Layer {
    torch::Tensor weight;  ///< first layer [n, h], transposed, so that a row's entries are
                           ///< contiguous; others [h, h of the layer before]
    torch::Tensor bias, gamma, beta;  ///< [h]
  };
  CriticForm form;
  std::vector<Layer> layers;  ///< at least one
  torch::Tensor weight;       ///< [h of the last layer]
  torch::Tensor bias;         ///< [1]

  /// Those that the form has, by name: "weight1", "bias1", "gamma1", "beta1", ..., "weight",
  /// "bias".
  std::vector<std::pair<std::string, torch::Tensor*>> tensors();
  Critic zeros_like() const;
};

/// One mask a layer, [N, h]; an empty list: no dropout.
using CriticMasks = std::vector<torch::Tensor>;

/// A call of the critic and what its gradients need.
struct CriticPass {
  struct Layer {
    torch::Tensor slopes;  ///< derivative of leaky at A, [N, h]; undefined: 1
    torch::Tensor normal;  ///< (Z - mean) root, [N, h]; undefined without batch normalisation
    torch::Tensor root;    ///< 1 / sqrt(variance + eps), [h]
    torch::Tensor mask;    ///< [N, h] or undefined
    torch::Tensor hidden;  ///< H
  };
  std::vector<Layer> layers;
  torch::Tensor logit;  ///< [N]
  torch::Tensor score;  ///< D(x), [N]
};

/// `first` = x W1^T, without the bias. [N, h1]
CriticPass critic_pass(const Critic& critic, const torch::Tensor& first, const CriticMasks& masks);

/// The adjoint of A1 (and of `first`) under d loss / d score = upstream [N]. Adds to all of
/// `gradients` but the first layer's weight, which is x^T times the result; null: none are wanted.
torch::Tensor critic_backward(const Critic& critic, const CriticPass& pass,
                              const torch::Tensor& upstream, Critic* gradients);

/// D(x) with a gradient to `first` alone: the critic is constant. [N]
torch::Tensor critic_score(const Critic& critic, const torch::Tensor& first,
                           const CriticMasks& masks);

/// weight * mean_j (|g_j| - 1)^2, g_j row j of the derivative of the sum of D over the rows of the
/// pass: forward over reverse, by the formulas of mmssl section 8.
struct GradientPenalty {
  torch::Tensor value;    ///< weighted, []
  torch::Tensor slopes;   ///< |g_j|, [N]
  torch::Tensor adjoint;  ///< of A1: the first weight's gradient wants x^T adjoint besides. [N, h1]
};
/// Adds to `gradients`: all of every parameter but x^T adjoint of the first weight. Through W1 W1^T
/// or block by block, whichever costs less; never more than [N, h1] or [h1, h1] at once.
GradientPenalty gradient_penalty(const Critic& critic, const CriticPass& pass, double weight,
                                 Critic& gradients);

/// The same in plain tensor operations over rows [N, n], for autograd.
torch::Tensor critic_composed(const Critic& critic, const torch::Tensor& rows,
                              const CriticMasks& masks);
std::pair<torch::Tensor, torch::Tensor> gradient_penalty_composed(const Critic& critic,
                                                                  const torch::Tensor& rows,
                                                                  const CriticMasks& masks,
                                                                  double weight);

}  // namespace tessera
