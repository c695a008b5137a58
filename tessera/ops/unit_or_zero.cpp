#include "tessera/ops/unit_or_zero.h"

#include <torch/autograd.h>
#include <torch/utils.h>

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr double kShortest = 1e-12;

class UnitOrZero : public torch::autograd::Function<UnitOrZero> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x) {
    const auto norm = x.norm(2, 1, true);
    const auto inverse = norm.reciprocal().masked_fill_(norm < kShortest, 0);
    const auto unit = x * inverse;
    context->save_for_backward({unit, inverse});
    return unit;
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &unit = saved[0], &inverse = saved[1];
    const auto along = (unit * upstream[0]).sum(1, true);
    return {upstream[0].addcmul(unit, along, -1).mul_(inverse)};
  }
};

}  // namespace

torch::Tensor unit_or_zero(const torch::Tensor& x) {
  TORCH_CHECK(x.dim() == 2, "unit_or_zero wants [n, d], got ", x.sizes());
  return UnitOrZero::apply(x);
}

}  // namespace tessera
