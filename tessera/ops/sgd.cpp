#include "tessera/ops/sgd.h"

#include <cmath>

#include "tessera/ops/by_type.h"
#include "tessera/ops/triple_kernels.h"

namespace tessera {

BprSgdLoss bpr_sgd(torch::Tensor& users, torch::Tensor& items, const torch::Tensor& u,
                   const torch::Tensor& p, const torch::Tensor& n, const BprSgdOptions& options) {
  TORCH_CHECK(users.is_contiguous() && items.is_contiguous() && users.dtype() == items.dtype() &&
                  users.size(1) == items.size(1) && n.dim() == 2 && n.size(0) == u.size(0) &&
                  p.size(0) == u.size(0) && n.is_contiguous(),
              "bpr_sgd wants contiguous tables of one width, u and p [B], n [B, K]");
  const int64_t d = users.size(1), k = n.size(1), n_triples = n.numel();
  const auto* user_of = u.const_data_ptr<int64_t>();
  const auto* positive_of = p.const_data_ptr<int64_t>();
  const auto* negative_of = n.const_data_ptr<int64_t>();
  BprSgdLoss out;
  by_type(users, [&](auto type) {
    using T = decltype(type);
    T* user_rows = users.mutable_data_ptr<T>();
    T* item_rows = items.mutable_data_ptr<T>();
    const T keep = static_cast<T>(1 - options.learning_rate * options.reg);
    for (int64_t t = 0; t < n_triples; ++t) {
      T* a = user_rows + user_of[t / k] * d;
      T* b = item_rows + positive_of[t / k] * d;
      T* c = item_rows + negative_of[t] * d;
      const kernels::Triple<T> at = kernels::triple(a, b, c, d);
      const double weight = 1 / (1 + std::exp(static_cast<double>(at.margin)));
      // -log(1 - weight) of the margin, without overflow at either end.
      out.bpr += at.margin > 0 ? std::log1p(std::exp(-static_cast<double>(at.margin)))
                               : std::log1p(std::exp(static_cast<double>(at.margin))) -
                                     static_cast<double>(at.margin);
      out.squares += static_cast<double>(at.squares) / 2;
      kernels::move_triple(a, b, c, d, static_cast<T>(options.learning_rate * weight), keep);
    }
  });
  if (n_triples > 0) {
    out.bpr /= static_cast<double>(n_triples);
    out.squares /= static_cast<double>(n_triples);
  }
  return out;
}

}  // namespace tessera
