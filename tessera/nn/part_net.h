#pragma once

#include <torch/types.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tessera/ops/parts.h"

namespace tessera {

/// PAMD's pretraining model (pamd sections 2 and 3) as functions of its parameters, float32 or
/// float64: the vector of each modality is split into a common part c = e W and the specific rest
/// s = e - c, and decoders rebuild the other modalities.
struct PartNetOptions {
  std::vector<std::string> names;  ///< of the modalities
  std::vector<int64_t> widths;     ///< D_m
  int64_t d = 64;
  bool mlp_encoder = false;     ///< and decoder
  bool mlp_common = false;      ///< c = W2 relu(W1 e) in place of e W
  bool shared_decoder = false;  ///< one decoder a target in place of one an ordered pair
  OrderOptions order;
  double purify = 0, w_en = 1, w_de = 1;
};

/// One parameter, its initial distribution U(-bound, bound), 0, or 1.
struct PartParameter {
  std::string name;
  std::vector<int64_t> shape;
  double bound = 0;  ///< 0: filled with `fill`
  double fill = 0;
  bool decoder = false;  ///< trained before the recommender only
};

/// Everything of one modality: e, c and s, [B, d].
struct Parts {
  torch::Tensor e, c, s;
};

/// The common part of items over their modalities, [n, d]: the mean of c[m] [n, d] over the
/// modalities m with present[m] (bool [n], undefined: all); 0 for an item without any.
torch::Tensor mean_common(const std::vector<torch::Tensor>& c,
                          const std::vector<torch::Tensor>& present);

class PartNet {
 public:
  /// `tensor(name)` gives the parameter of that name whenever it is needed.
  PartNet(PartNetOptions options, std::function<const torch::Tensor&(const std::string&)> tensor);

  static std::vector<PartParameter> parameters(const PartNetOptions& options);

  /// x [B, D_m]
  Parts split(size_t m, const torch::Tensor& x) const;
  /// From a vector of modality `from` to modality `to`: [B, d] to [B, D_to].
  torch::Tensor decode(size_t from, size_t to, const torch::Tensor& y) const;

  struct Loss {
    torch::Tensor total;
    std::vector<std::pair<std::string, torch::Tensor>> terms;  ///< sim, ort, l, purify; unweighted
    // Where gradients are off:
    std::vector<std::pair<std::string, double>> directions;  ///< l_ab by "a to b"
    double p_c = 0, p_0 = 0, p_s = 0;                        ///< mean cosines over all directions
    double ordered = 0;                                      ///< share of p_c > p_0 > p_s
  };
  /// L_pre over the rows; x[m] [B, D_m], present[m] bool [B] or undefined where all are. A pair of
  /// modalities that no row has both of contributes 0.
  Loss loss(const std::vector<torch::Tensor>& x, const std::vector<torch::Tensor>& present) const;

  const PartNetOptions& options() const { return options_; }

 private:
  torch::Tensor linear(const std::string& name, const torch::Tensor& x) const;
  OrderLoss decoded_order_loss(size_t from, size_t to, const Parts& of,
                               const torch::Tensor& target) const;

  PartNetOptions options_;
  std::function<const torch::Tensor&(const std::string&)> tensor_;
};

}  // namespace tessera
