#include "tessera/ops/residual_norm.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRows = 32;  // a thread takes at least, and sums of rows go by as many

class ResidualNormNode : public torch::autograd::Function<ResidualNormNode> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight, const torch::Tensor& bias,
                               const torch::Tensor& gain, const torch::Tensor& shift, double eps) {
    const ResidualNorm kept = residual_norm_forward(x, weight, bias, gain, shift, eps);
    context->save_for_backward({x, weight, gain, kept.y, kept.norms});
    return kept.out;
  }

  static variable_list backward(AutogradContext* context, variable_list upstream) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &gain = saved[2], &y = saved[3];
    const bool wants_sums = context->needs_input_grad(2) || context->needs_input_grad(3) ||
                            context->needs_input_grad(4);
    ResidualNormGradients to;
    if (context->needs_input_grad(1)) to.weight = torch::empty_like(weight);
    if (wants_sums) to.sums = torch::empty({3, y.size(1)}, y.options());
    const auto dy = residual_norm_backward({x, y, saved[4], {}}, gain, upstream[0], to);
    const auto sum = [&](int64_t at) { return wants_sums ? to.sums[at] : torch::Tensor(); };
    return {context->needs_input_grad(0) ? at::mm(dy, weight.t()) : torch::Tensor(),
            to.weight,
            sum(0),
            sum(1),
            sum(2),
            torch::Tensor()};
  }
};

}  // namespace

ResidualNorm residual_norm_forward(const torch::Tensor& x, const torch::Tensor& weight,
                                   const torch::Tensor& bias_in, const torch::Tensor& gain_in,
                                   const torch::Tensor& shift_in, double eps) {
  const auto y = at::mm(x, weight), out = torch::empty_like(y);
  const auto bias = bias_in.contiguous(), gain = gain_in.contiguous(),
             shift = shift_in.contiguous();
  const int64_t n = y.size(0), d = y.size(1);
  const auto norms = torch::empty({n, 2}, y.options());
  by_type(y, [&](auto type) {
    using T = decltype(type);
    T* rows = y.mutable_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    auto* norm = reinterpret_cast<kernels::RowNorm<T>*>(norms.mutable_data_ptr<T>());
    const T *b = bias.const_data_ptr<T>(), *g = gain.const_data_ptr<T>(),
            *s = shift.const_data_ptr<T>();
    parallel_for(0, n, kRows, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        norm[r] = kernels::norm_row(rows + r * d, b, g, s, d, eps, to + r * d);
      }
    });
  });
  return {x, y, norms, out};
}

torch::Tensor residual_norm_backward(const ResidualNorm& kept, const torch::Tensor& gain_in,
                                     const torch::Tensor& upstream,
                                     const ResidualNormGradients& to) {
  const torch::Tensor& y = kept.y;
  const auto g = upstream.contiguous(), gain = gain_in.contiguous(), dy = torch::empty_like(y);
  const int64_t n = y.size(0), d = y.size(1), n_parts = (n + kRows - 1) / kRows;
  torch::Tensor sums;
  if (to.sums.defined()) sums = torch::zeros({n_parts, 3, d}, y.options());
  by_type(y, [&](auto type) {
    using T = decltype(type);
    const T* rows = y.const_data_ptr<T>();
    const T* from = g.const_data_ptr<T>();
    const T* gains = gain.const_data_ptr<T>();
    const auto* norm = reinterpret_cast<const kernels::RowNorm<T>*>(kept.norms.const_data_ptr<T>());
    T* into = dy.mutable_data_ptr<T>();
    T* sum = sums.defined() ? sums.mutable_data_ptr<T>() : nullptr;
    parallel_for(0, n_parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t r = part * kRows; r < std::min(n, (part + 1) * kRows); ++r) {
          kernels::norm_row_back(rows + r * d, norm[r], from + r * d, gains, d, into + r * d,
                                 sum ? sum + part * 3 * d : nullptr);
        }
      }
    });
  });
  torch::Tensor whole = to.sums, weight = to.weight;
  if (whole.defined()) at::sum_out(whole, sums, 0);
  if (weight.defined()) at::mm_out(weight, kept.x.t(), dy);
  return dy;
}

torch::Tensor residual_norm(const torch::Tensor& x, const torch::Tensor& weight,
                            const torch::Tensor& bias, const torch::Tensor& gain,
                            const torch::Tensor& shift, double eps) {
  TORCH_CHECK(
      x.dim() == 2 && weight.dim() == 2 && bias.dim() == 1 && bias.size(0) == weight.size(1) &&
          gain.sizes() == bias.sizes() && shift.sizes() == bias.sizes() &&
          bias.scalar_type() == weight.scalar_type() && gain.scalar_type() == bias.scalar_type() &&
          shift.scalar_type() == bias.scalar_type(),
      "residual_norm wants x [n, in], weight [in, out] and bias, gain, shift [out] of one "
      "type, got ",
      x.sizes(), " ", weight.sizes(), " ", bias.sizes(), " ", gain.sizes(), " ", shift.sizes());
  if (composed(x)) return residual_norm_composed(x, weight, bias, gain, shift, eps);
  return ResidualNormNode::apply(x, weight, bias, gain, shift, eps);
}

torch::Tensor residual_norm_composed(const torch::Tensor& x, const torch::Tensor& weight,
                                     const torch::Tensor& bias, const torch::Tensor& gain,
                                     const torch::Tensor& shift, double eps) {
  const auto y = torch::addmm(bias, x, weight);
  return y + torch::layer_norm(y, {y.size(1)}, gain, shift, eps);
}

}  // namespace tessera
