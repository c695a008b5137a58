#include "tessera/nn/linear.h"

#include "tessera/ops/fill.h"
#include "tessera/ops/linear.h"

namespace tessera {
namespace {

torch::Tensor initial_weight(Start start, int64_t out, int64_t in, const Random& random) {
  switch (start) {
    case Start::uniform:
      return linear_default_weight(out, in, random);
    case Start::xavier:
      return xavier_normal(out, in, random);
    case Start::normal:
      break;
  }
  return normal(out, in, 0, 0.02, random);
}

torch::Tensor initial_bias(Start start, int64_t out, int64_t in, const Random& random) {
  return start == Start::normal ? torch::zeros({out}) : linear_default_bias(in, out, random);
}

/// `number`: of the layer among those of one name, empty for the first.
Linear layer(const std::string& name, const std::string& number, int64_t out, int64_t in,
             const MakeParameter& make, const Random& random, Start start,
             const std::string& stream) {
  const std::string weight = ".weight" + number, bias = ".bias" + number;
  Linear made;
  made.weight = &make(name + weight,
                      initial_weight(start, out, in, random.stream("init." + stream + weight)));
  made.bias =
      &make(name + bias, initial_bias(start, out, in, random.stream("init." + stream + bias)));
  return made;
}

}  // namespace

Linear::Linear(const std::string& name, int64_t out, int64_t in, const MakeParameter& make,
               const Random& random, Start start, const std::string& stream)
    : Linear(layer(name, "", out, in, make, random, start, stream.empty() ? name : stream)) {}

torch::Tensor Linear::operator()(const torch::Tensor& x, bool bfloat16) const {
  return linear(x, *weight, *bias, bfloat16);
}

Mlp::Mlp(const std::string& name, int64_t out, int64_t in, int64_t n_layers,
         const MakeParameter& make, const Random& random, Start start)
    : first(name, out, in, make, random, start) {
  if (n_layers > 1) second = layer(name, "2", out, out, make, random, start, name);
}

torch::Tensor Mlp::operator()(const torch::Tensor& x, bool bfloat16) const {
  const auto y = first(x, bfloat16);
  return second.defined() ? second(y.relu(), bfloat16) : y;
}

}  // namespace tessera
