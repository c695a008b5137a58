#include "tessera/ops/contrast.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <limits>

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr int64_t kBlockEntries = 1 << 19;  // of logits at once

/// anchors . keys / tau, -infinity at the excluded keys. [n, n_keys]
torch::Tensor logits_of(const torch::Tensor& anchors, const torch::Tensor& keys,
                        const torch::Tensor& excluded, double tau) {
  auto logits = anchors.mm(keys.t()).div(tau);
  if (!excluded.defined()) return logits;
  const auto present = excluded >= 0;
  const auto rows = present.nonzero().flatten();
  return logits.index_put(
      {rows, excluded.index_select(0, rows)},
      torch::full({}, -std::numeric_limits<double>::infinity(), logits.options()));
}

class InfoNce : public torch::autograd::Function<InfoNce> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& anchors,
                               const torch::Tensor& keys, const torch::Tensor& positive,
                               const torch::Tensor& excluded, double tau, double eps) {
    const int64_t n = anchors.size(0);
    const int64_t block = std::max<int64_t>(1, kBlockEntries / std::max<int64_t>(1, keys.size(0)));
    const auto d_anchors = torch::empty_like(anchors), d_keys = torch::zeros_like(keys);
    double value = 0;
    for (int64_t begin = 0; begin < n; begin += block) {
      const int64_t size = std::min(block, n - begin);
      const auto rows = anchors.narrow(0, begin, size);
      const auto at = positive.narrow(0, begin, size).unsqueeze(1);
      auto p = logits_of(rows, keys, excluded.narrow(0, begin, size), tau);
      const auto sum = p.logsumexp(1, true);
      p.sub_(sum);
      const auto log_p = p.gather(1, at);
      p.exp_();
      const auto p_positive = log_p.exp();
      value -= (eps > 0 ? (p_positive + eps).log() : log_p).sum(torch::kFloat64).item<double>();
      // d/d logit of -log(p + eps) is p_positive / (p_positive + eps) (p - one-hot).
      p.scatter_add_(1, at, torch::full_like(p_positive, -1));
      if (eps > 0) p.mul_(p_positive / (p_positive + eps));
      p.mul_(1 / (tau * static_cast<double>(n)));
      d_anchors.narrow(0, begin, size).copy_(p.mm(keys));
      d_keys.addmm_(p.t(), rows);
    }
    context->save_for_backward({d_anchors, d_keys});
    return torch::full({}, n > 0 ? value / static_cast<double>(n) : 0, anchors.options());
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    return {saved[0] * upstream[0], saved[1] * upstream[0], {}, {}, {}, {}};
  }
};

}  // namespace

torch::Tensor info_nce(const torch::Tensor& anchors, const torch::Tensor& keys,
                       const torch::Tensor& positive, const torch::Tensor& excluded, double tau,
                       double eps) {
  TORCH_CHECK(anchors.dim() == 2 && keys.dim() == 2 && anchors.size(1) == keys.size(1) &&
                  positive.dim() == 1 && positive.size(0) == anchors.size(0),
              "info_nce wants anchors [n, d], keys [n_keys, d] and positive [n], got ",
              anchors.sizes(), " ", keys.sizes(), " ", positive.sizes());
  return InfoNce::apply(anchors.contiguous(), keys.contiguous(), positive,
                        excluded.defined() ? excluded : torch::full_like(positive, -1), tau, eps);
}

torch::Tensor info_nce_composed(const torch::Tensor& anchors, const torch::Tensor& keys,
                                const torch::Tensor& positive, const torch::Tensor& excluded,
                                double tau, double eps) {
  const auto p = torch::log_softmax(logits_of(anchors, keys, excluded, tau), 1)
                     .gather(1, positive.unsqueeze(1));
  return -(eps > 0 ? (p.exp() + eps).log() : p).mean();
}

}  // namespace tessera
