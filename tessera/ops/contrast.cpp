#include "tessera/ops/contrast.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/sequence_kernels.h"

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
  const auto places = torch::arange(keys.size(0), excluded.options());
  return logits.masked_fill(places == excluded.unsqueeze(1),
                            -std::numeric_limits<double>::infinity());
}

/// -log(p + eps) of the positive, p the softmax of the products z / tau; z becomes `weight` times
/// the gradient by z / tau, which is p_positive / (p_positive + eps) (p - one-hot). Key j stands
/// exp(often[j]) times in the softmax; null: once.
template <typename T>
double term(T* z, int64_t n, int64_t positive, int64_t excluded, const T* often, double tau,
            double eps, double weight) {
  const T by = static_cast<T>(1 / tau);
  for (int64_t j = 0; j < n; ++j) z[j] *= by;
  if (excluded >= 0) z[excluded] = -std::numeric_limits<T>::infinity();
  const double own = static_cast<double>(z[positive]);
  if (often != nullptr) {
    for (int64_t j = 0; j < n; ++j) z[j] += often[j];
  }
  const auto [max, sum] = kernels::exp_row(z, n);
  if (excluded >= 0) z[excluded] = 0;
  const double log_p = own - static_cast<double>(max) - std::log(static_cast<double>(sum));
  const double p = std::exp(log_p), share = eps > 0 ? p / (p + eps) : 1;
  const T scale = static_cast<T>(weight * share / static_cast<double>(sum));
  for (int64_t j = 0; j < n; ++j) z[j] *= scale;
  z[positive] -= static_cast<T>(weight * share);
  return -(eps > 0 ? std::log(p + eps) : log_p);
}

/// `counts` [n] of the anchors' type, empty where each row stands once.
class InfoNce : public torch::autograd::Function<InfoNce> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& anchors,
                               const torch::Tensor& keys, const torch::Tensor& positive,
                               const torch::Tensor& excluded, double tau, double eps,
                               const torch::Tensor& counts) {
    const int64_t n = anchors.size(0);
    const bool counted = counts.numel() > 0;
    const double total = counted ? counts.sum().item<double>() : static_cast<double>(n);
    const torch::Tensor often = counts.log();
    const int64_t block = std::max<int64_t>(1, kBlockEntries / std::max<int64_t>(1, keys.size(0)));
    const auto d_anchors = torch::empty_like(anchors), d_keys = torch::zeros_like(keys);
    const double weight = 1 / (tau * total);
    const int64_t n_keys = keys.size(0);
    const int64_t* at = positive.const_data_ptr<int64_t>();
    const int64_t* without = excluded.const_data_ptr<int64_t>();
    std::vector<double> terms(static_cast<size_t>(n));
    for (int64_t begin = 0; begin < n; begin += block) {
      const int64_t size = std::min(block, n - begin);
      const auto rows = anchors.narrow(0, begin, size);
      const auto p = rows.mm(keys.t());
      by_type(p, [&](auto type) {
        using T = decltype(type);
        T* z = p.mutable_data_ptr<T>();
        const T* times = counted ? counts.const_data_ptr<T>() : nullptr;
        const T* log_times = counted ? often.const_data_ptr<T>() : nullptr;
        parallel_for(0, size, 16, [&](int64_t first, int64_t last) {
          for (int64_t r = first; r < last; ++r) {
            const int64_t row = begin + r;
            const double by = times == nullptr ? 1 : static_cast<double>(times[row]);
            terms[static_cast<size_t>(row)] =
                by * term(z + r * n_keys, n_keys, at[row], without[row], log_times, tau, eps,
                          weight * by);
          }
        });
      });
      d_anchors.narrow(0, begin, size).copy_(p.mm(keys));
      d_keys.addmm_(p.t(), rows);
    }
    const double value = std::accumulate(terms.begin(), terms.end(), 0.0);
    context->save_for_backward({d_anchors, d_keys});
    return torch::full({}, n > 0 ? value / total : 0, anchors.options());
  }

  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto saved = context->get_saved_variables();
    return {saved[0] * upstream[0], saved[1] * upstream[0], {}, {}, {}, {}, {}};
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
  if (composed(anchors)) {
    return info_nce_composed(anchors, keys, positive, excluded, tau, eps);
  }
  return InfoNce::apply(anchors.contiguous(), keys.contiguous(), positive,
                        excluded.defined() ? excluded : torch::full_like(positive, -1), tau, eps,
                        torch::empty({0}, anchors.options().requires_grad(false)));
}

torch::Tensor info_nce_composed(const torch::Tensor& anchors, const torch::Tensor& keys,
                                const torch::Tensor& positive, const torch::Tensor& excluded,
                                double tau, double eps) {
  const auto p = torch::log_softmax(logits_of(anchors, keys, excluded, tau), 1)
                     .gather(1, positive.unsqueeze(1));
  const auto n = static_cast<double>(std::max<int64_t>(1, anchors.size(0)));
  return -(eps > 0 ? (p.exp() + eps).log() : p).sum() / n;
}

torch::Tensor batch_info_nce(const torch::Tensor& anchors, const torch::Tensor& keys,
                             const torch::Tensor& counts, double tau) {
  TORCH_CHECK(anchors.dim() == 2 && anchors.sizes() == keys.sizes() && counts.dim() == 1 &&
                  counts.size(0) == anchors.size(0),
              "batch_info_nce wants anchors and keys [n, d] and counts [n], got ", anchors.sizes(),
              " ", keys.sizes(), " ", counts.sizes());
  if (composed(anchors)) return batch_info_nce_composed(anchors, keys, counts, tau);
  const auto rows = counts.nonzero().flatten();
  const bool all = rows.size(0) == counts.size(0);
  const auto at = [&](const torch::Tensor& x) { return all ? x : x.index_select(0, rows); };
  return InfoNce::apply(at(anchors).contiguous(), at(keys).contiguous(),
                        torch::arange(rows.size(0)), torch::full_like(rows, -1), tau, 0.0,
                        at(counts).to(anchors.scalar_type()));
}

torch::Tensor batch_info_nce_composed(const torch::Tensor& anchors, const torch::Tensor& keys,
                                      const torch::Tensor& counts, double tau) {
  const auto batch = torch::repeat_interleave(counts);
  const auto logits = anchors.index_select(0, batch).mm(keys.index_select(0, batch).t()).div(tau);
  return (logits.logsumexp(1) - logits.diagonal()).mean();
}

}  // namespace tessera
