#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <string>

#include "tessera/base/random.h"

namespace tessera {

/// Makes a trained tensor by name; the reference stays valid (Model::maker).
using MakeParameter = std::function<torch::Tensor&(const std::string&, torch::Tensor)>;

/// Initial values of a layer from `in` to `out` columns. normal: W from N(0, .02), b zero; uniform:
/// both from U(-1/sqrt(in), 1/sqrt(in)); xavier: W from N(0, sqrt(2 / (in + out))), b as in
/// uniform.
enum class Start { normal, uniform, xavier };

/// y = x W' + b, W [out, in], b [out]: the tensors "<name>.weight" and "<name>.bias".
struct Linear {
  torch::Tensor *weight = nullptr, *bias = nullptr;
  Linear() = default;
  /// Drawn from the streams init.<stream>.weight and init.<stream>.bias; an empty `stream` is the
  /// name.
  Linear(const std::string& name, int64_t out, int64_t in, const MakeParameter& make,
         const Random& random, Start start = Start::normal, const std::string& stream = "");
  bool defined() const { return weight != nullptr; }
  /// x [n, in]; the precision as ops/linear.h says. [n, out]
  torch::Tensor operator()(const torch::Tensor& x, bool bfloat16 = false) const;
};

/// One linear layer, or two with a ReLU between: the second's tensors are "<name>.weight2" and
/// "<name>.bias2", [out, out] and [out].
struct Mlp {
  Linear first, second;
  Mlp() = default;
  Mlp(const std::string& name, int64_t out, int64_t in, int64_t n_layers, const MakeParameter& make,
      const Random& random, Start start = Start::xavier);
  torch::Tensor operator()(const torch::Tensor& x, bool bfloat16 = false) const;
};

}  // namespace tessera
