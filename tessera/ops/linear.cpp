#include "tessera/ops/linear.h"

#include <torch/autograd.h>
#include <torch/types.h>

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Whether bfloat16 products are the processor's own (AVX-512 BF16).
bool has_bfloat16_products() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16") != 0;
  return has;
#else
  return false;
#endif
}

/// a b of bfloat16 matrices, rounded to bfloat16, as float32.
torch::Tensor product(const torch::Tensor& a, const torch::Tensor& b) {
  if (a.is_cpu() && has_bfloat16_products()) return at::mm(a, b).to(torch::kFloat);
  return at::mm(a.to(torch::kFloat), b.to(torch::kFloat)).to(torch::kBFloat16).to(torch::kFloat);
}

class Linear16 : public torch::autograd::Function<Linear16> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight, const torch::Tensor& bias) {
    const auto x16 = x.to(torch::kBFloat16), weight16 = weight.to(torch::kBFloat16);
    context->save_for_backward({x16, weight16});
    context->saved_data["wants_x"] = x.requires_grad();
    return product(x16, weight16.t()).add_(bias);
  }
  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto g16 = upstream[0].to(torch::kBFloat16);
    const bool wants_x = context->saved_data["wants_x"].toBool();
    return {wants_x ? product(g16, saved[1]) : torch::Tensor(), product(g16.t(), saved[0]),
            upstream[0].sum(0)};
  }
};

}  // namespace

torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                     bool bfloat16) {
  if (bfloat16) return Linear16::apply(x, weight, bias);
  return torch::addmm(bias, x, weight.t());
}

}  // namespace tessera
